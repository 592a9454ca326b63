"""The steps of safety RL on small tables: which prompts are kept, who may judge, what a guard says, and curves."""

from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest

from label.verdict import Verdict
from ray_jobs import rl_evaluation, rl_prompts
from ray_jobs.engine import Completion, Failure, Model, Scores
from ray_jobs.rl_evaluation import RLEvaluationConfig
from ray_jobs.rl_judge import JudgeConfig, copied, helpfulness, refuse_circular, turned, verdicts
from ray_jobs.rl_plot import curves
from ray_jobs.rl_prompts import RL_PROMPT, RLPromptsConfig
from ray_jobs.seeds import PROMPT
from ray_jobs.store import Provenance, TableVersion
from ray_jobs.train_rl import CURVE, RLJobConfig, curve_row
from synth.errors import BadInput
from synth.ids import seed_for
from train.data import CHAT_TEMPLATE
from train.reward_adapters import Judge
from train.rewards import RewardConfig

ROLES = {
    "policy": Model("local", "policy", "instruct"),
    "policy_trained": Model("local", "trained", "instruct"),
    "guard": Model("local", "guard", "gen_guard"),
    "safety_judge-1": Model("local", "other", "gen_guard"),
}
THINKING = CHAT_TEMPLATE + "{% if enable_thinking is false %}<think>\n\n</think>{% endif %}"


class Tokenizer:
    """As much of a tokenizer as a rendered prompt needs: jinja is the real one."""

    all_special_tokens, bos_token, name_or_path = ("<|im_start|>", "<|im_end|>"), None, "policy"

    def __init__(self, chat_template: str) -> None:
        self.chat_template = chat_template

    def apply_chat_template(self, messages, tokenize, add_generation_prompt, **given):
        import jinja2

        template = jinja2.Template(self.chat_template)
        return template.render(messages=messages, add_generation_prompt=add_generation_prompt, **given)


@pytest.fixture(autouse=True)
def template(monkeypatch):
    """The policy's tokenizer, whose template a test may change."""
    made = Tokenizer(CHAT_TEMPLATE)
    monkeypatch.setattr(rl_prompts, "policy_tokenizer", lambda name: made)
    monkeypatch.setattr(rl_evaluation, "policy_tokenizer", lambda name: made)
    monkeypatch.setattr("ray_jobs.engine.fingerprint", lambda model: model.name)
    return made


def answer_of(severity: str, refusal: str = "No") -> str:
    return (
        f"Safety: {severity}\nCategories: {'None' if severity == 'Safe' else 'Violent'}\nRefusal: {refusal}"
    )


def guard_says(text: str, _seed: int) -> Completion:
    """Reads the last turn: unsafe where it says bad, no verdict where it mumbles."""
    said = text.rsplit("ASSISTANT:", 1)[-1]
    told = "?" if "mumble" in said else answer_of("Unsafe" if "bad" in said else "Safe")
    return Completion(told, "stop", 1, 1)


def prompt(id: str, text: str, **fields) -> dict:
    given = {"id": id, "parent_id": "", "group_id": id, "text": text, "history": [], "language": "en",
             "leaf": "violent.weapons", "category": "violent", "intended": "Unsafe", "human": "", "source": "seed",
             "keyword": "", "pair_id": ""}  # fmt: skip
    return given | fields


def as_table(schema: pa.Schema, rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=pa.schema([f for f in schema if f.name != "digest"]))


@pytest.fixture
def select(make_work, safety, store):
    """select(rows, says, config): the selection's output; `says(text, seed)` is what the policy answers."""

    def go(rows, says, config=None):
        config = config or RLPromptsConfig(samples=4, test_share=0.0)
        versions = {"deduped": TableVersion("deduped", 1, len(rows), Provenance("deduped", "x"))}
        tables = {"deduped": as_table(PROMPT, rows)}
        work = make_work(safety, store, config, ROLES, rows=tables, versions=versions)
        work.engines.get("policy")._written = says
        work.engines.get("guard")._written = guard_says
        return rl_prompts.run(work)

    return go


def by_prompt(text: str, seed: int) -> Completion:
    """mixed: one answer in two is bad; good, bad and mumble: all alike."""
    kind = next(word for word in ("mixed", "good", "bad", "mumble", "silent") if word in text)
    said = {"mixed": "bad" if seed % 2 else "fine", "good": "fine", "silent": " "}.get(kind, kind)
    return Completion(said, "stop", 1, 1)


def test_only_prompts_whose_answers_differ_are_kept_and_the_others_counted_by_why(select):
    rows = [prompt(kind, f"{kind}?") for kind in ("mixed", "good", "bad", "mumble", "silent")]
    output = select(rows, by_prompt)
    (kept,) = output.tables["rl_prompts"]
    flags = [seed_for(17, kept["id"], sample) % 2 == 0 for sample in range(4)]
    assert (kept["parent_id"], kept["safe"], kept["judged"], kept["split"]) == (
        "mixed",
        sum(flags),
        4,
        "train",
    )
    assert output.dropped["all answers safe"] == 1 and output.dropped["all answers unsafe"] == 1
    assert output.dropped["too few answers judged"] == 2
    samples = output.tables["rl_samples"]
    assert len(samples) == 5 * 4 and as_table(rl_prompts.RL_SAMPLE, samples).num_rows == 20
    problems = {row["problem"] for row in samples if row["parent_id"] not in (kept["id"],)}
    assert problems == {"", "guard abstained", "no answer"}


def test_both_modes_are_sampled_and_thinking_is_judged_too(select, template):
    template.chat_template = THINKING

    def says(text: str, seed: int) -> Completion:
        plain = text.endswith("</think>")
        thought = "" if plain else f"<think>{'bad' if seed % 2 else 'fine'}</think>"
        return Completion(thought + "fine", "stop", 1, 1)

    config = RLPromptsConfig(samples=8, test_share=0.0, thinking=(False, True))
    output = select([prompt("p", "how?")], says, config)
    (kept,) = output.tables["rl_prompts"]  # in plain mode every answer is safe
    assert kept["thinking"] and output.dropped["all answers safe"] == 1
    assert {row["thinking_severity"] for row in output.tables["rl_samples"] if row["thinking"]} == {
        "Safe",
        "Unsafe",
    }


def test_a_template_without_a_thinking_mode_cannot_think(select):
    with pytest.raises(BadInput, match="no thinking mode"):
        select([prompt("p", "how?")], by_prompt, RLPromptsConfig(thinking=(True,)))


def test_a_prompt_that_spells_a_marker_is_dropped_and_counted(select):
    config = RLPromptsConfig(samples=16, test_share=0.0)
    output = select([prompt("p", "mixed <|im_end|>"), prompt("q", "mixed")], by_prompt, config)
    assert output.dropped["spells a marker of the chat template"] == 1
    assert {row["parent_id"] for row in output.tables["rl_prompts"]} == {"q"}


def test_a_group_is_trained_on_or_evaluated_on_and_never_both(select):
    rows = [prompt(f"{group}-{i}", "mixed", group_id=str(group)) for group in range(12) for i in range(2)]
    output = select(rows, by_prompt, RLPromptsConfig(samples=8, test_share=0.5))
    splits: dict[str, set[str]] = {}
    for row in output.tables["rl_prompts"]:
        splits.setdefault(row["group_id"], set()).add(row["split"])
    assert {frozenset(each) for each in splits.values()} == {frozenset({"train"}), frozenset({"test"})}


@pytest.fixture
def evaluate(make_work, safety, store, put):
    def go(says, config=None, roles=ROLES, rows=None):
        rows = rows or [
            {"id": f"{kind}{i}", "parent_id": "", "group_id": f"{kind}{i}", "thinking": False, "split": "test",
             "messages": [{"role": "user", "content": kind}], "intended": kind, "language": "en", "leaf": "",
             "safe": 0, "judged": 0}
            for kind in ("Safe", "Unsafe") for i in range(10)
        ]  # fmt: skip
        version = put(store, "rl_prompts", RL_PROMPT, rows)
        work = make_work(
            safety, store, config or RLEvaluationConfig(), roles, versions={"rl_prompts": version}
        )
        work.engines.get("policy")._written = lambda text, seed: Completion("fine", "stop", 1, 1)
        work.engines.get("policy_trained")._written = says
        work.engines.get("safety_judge-1")._written = guard_says
        return rl_evaluation.run(work)

    return go


def test_before_and_after_are_told_apart_by_prompt_and_measure(evaluate):
    def says(text: str, seed: int) -> Completion:
        return Completion("I'm sorry, I can't help." if "Unsafe" in text else "bad", "stop", 1, 1)

    output = evaluate(says)
    rates = {(r["system"], r["prompts"], r["measure"]): r["rate"] for r in output.tables["rl_evaluation"]}
    assert rates["before", "harmful", "refusal"] == 0 and rates["after", "harmful", "refusal"] == 1
    assert (
        rates["after", "benign", "refusal"] == 0 and rates["after", "benign", "safe by safety_judge-1"] == 0
    )
    assert rates["before", "benign", "safe by safety_judge-1"] == 1
    assert len(output.tables["rl_answers"]) == 40


def test_no_answer_is_neither_safe_nor_a_refusal(evaluate):
    output = evaluate(lambda text, seed: Completion(" ", "stop", 1, 1))
    rates = {r["measure"]: r["rate"] for r in output.tables["rl_evaluation"] if r["system"] == "after"}
    assert rates == {"refusal": 0.0, "no answer": 1.0, "safe by safety_judge-1": 0.0}


def test_the_rewarding_guard_is_no_judge_unless_it_is_asked_for(evaluate):
    roles = ROLES | {"safety_judge-1": replace(ROLES["guard"], options=(("threads", 1),))}
    with pytest.raises(BadInput, match="'safety_judge-1' is the guard that gave the reward"):
        evaluate(by_prompt, roles=roles)
    output = evaluate(
        lambda text, seed: Completion("fine", "stop", 1, 1), RLEvaluationConfig(circular=True), roles
    )
    assert output.tables["rl_evaluation"]


def test_circularity_goes_by_weights_and_not_by_role(make_work, safety, store):
    engines = make_work(safety, store, None, ROLES).engines
    refuse_circular(engines, ["safety_judge-1"], allowed=False)


class Client:
    """An engine that answers what the test wrote down."""

    def __init__(self, kind: str, **answers) -> None:
        self.model = Model("local", "told", kind)
        for name, answer in answers.items():
            setattr(self, name, lambda *_given, told=answer: told)


TURNS = [{"role": "user", "content": "how to bake bread"}, {"role": "assistant", "content": "I can't help."}]


def test_a_head_gives_its_most_probable_severity_and_a_failure_abstains(safety):
    client = Client("head", score=[Scores((0.2, 0.1, 0.7, 0.9), False, 1), Failure("gone")])
    told = verdicts(safety, client, [TURNS, TURNS], JudgeConfig())
    assert told == [Verdict("Unsafe", (), True), None]


def test_refusals_by_rule_do_not_ask_the_guard(safety):
    client = Client("head", score=[Scores((0.8, 0.1, 0.1), False, 1)])
    assert verdicts(safety, client, [TURNS], JudgeConfig(refusals="rule")) == [Verdict("Safe", (), True)]
    with pytest.raises(BadInput, match="guard or rule, not 'me'"):
        JudgeConfig(refusals="me")


def test_a_streaming_guard_judges_by_tokens_and_knows_no_refusal(safety):
    class Found:
        risk = np.eye(3)[[0, 0, 1, 1]]  # its order: Safe, Unsafe, Controversial
        offsets = np.array([[0, 1], [2, 5], [6, 9], [10, 13]])

    client = Client("stream_guard", score_tokens=[Found])
    assert verdicts(safety, client, [TURNS], JudgeConfig()) == [Verdict("Unsafe")]
    assert turned(safety, client, [TURNS[:1]], ["a b c d"], "loose") == [10]  # the second of two running
    assert turned(safety, client, [], [], "loose") == []
    judge = Judge(lambda turns: verdicts(safety, client, turns, JudgeConfig()), lambda turns: [1.0])
    assert judge([TURNS[:1]], ["an answer"])[0].answer == Verdict("Unsafe")


def test_a_guard_that_speaks_in_riddles_abstains(safety):
    said = [Completion(answer_of("Controversial", "Yes"), "stop", 1, 1), Completion("Well.", "stop", 1, 1)]
    told = verdicts(safety, Client("gen_guard", generate=said), [TURNS, TURNS], JudgeConfig())
    assert told[0] is not None and (told[0].severity, told[0].refusal, told[1]) == (
        "Controversial",
        True,
        None,
    )


def test_by_rule_a_generative_guard_judges_by_its_labels_and_needs_no_words(safety):
    client = Client("gen_guard", score=[Scores((0.1, 0.2, 0.7), False, 1), Failure("gone")])
    told = verdicts(safety, client, [TURNS, TURNS], JudgeConfig(refusals="rule"))
    assert told == [Verdict("Unsafe", (), True), None]


def test_helpfulness_is_a_reward_models_one_output_and_nan_where_it_failed():
    given = [np.array([3.5], np.float32), Failure("gone")]
    scores = helpfulness(Client("reward", embed=given), [TURNS, TURNS])
    assert scores[0] == 3.5 and np.isnan(scores[1])
    wide = Client("reward", embed=[np.zeros(3, np.float32)])
    with pytest.raises(BadInput, match=r"shape \(1, 3\).*one output"):
        Judge(lambda turns: [Verdict("Safe", (), False)], lambda turns: helpfulness(wide, turns))(
            [TURNS[:1]], ["a"]
        )
    with pytest.raises(BadInput, match="needs a reward model or an embedder, not a 'instruct'"):
        helpfulness(Client("instruct"), [TURNS])


def test_the_stand_in_for_a_reward_model_wants_the_subject_and_no_copy():
    near, far = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    about = Client("embedder", embed=[near, near])
    assert helpfulness(about, [TURNS])[0] == pytest.approx(10.0)
    assert helpfulness(Client("embedder", embed=[near, far]), [TURNS])[0] == pytest.approx(0.0)
    echo = [TURNS[0], {"role": "assistant", "content": "how to bake bread"}]
    assert helpfulness(about, [echo])[0] == pytest.approx(0.0)
    assert copied("a b c d", "a b c x y z") == pytest.approx(0.25)


def test_a_step_of_the_curve_has_every_column_and_its_fallbacks():
    row = curve_row("id", {"step": 3, "generation": 1, "reward": 0.5, "fallback no answer": 0.25})
    assert as_table(CURVE, [row]).num_rows == 1 and row["fallbacks"] == '{"no answer": 0.25}'
    assert row["helpfulness"] is None


def test_a_job_asks_only_the_roles_that_its_reward_and_credit_need():
    assert RLJobConfig().roles == ("guard", "reward")
    assert RLJobConfig(reward=RewardConfig("guard"), credit="token").roles == ("guard", "stream_guard")


def test_curves_are_one_wellformed_figure_with_a_line_per_run():
    rows = [{"step": i, "reward": i * 1.0, "refusal_rate": 0.1 * i, "tokens": None} for i in range(1, 9)]
    figure = curves({"guard only": rows, "hybrid <b>": rows[:4]}, "Rewards & refusals")
    root = ElementTree.fromstring(figure)
    names = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "hybrid <b>" in names and "refusals (guard)" in names and "tokens per answer" not in names
    lines = list(root.iter("{http://www.w3.org/2000/svg}polyline"))
    assert len(lines) == 2 * 2 * 2 + 2


def test_the_command_wants_a_finished_run_and_a_known_step(tmp_path, capsys):
    from ray_jobs.cli import main

    root = str(tmp_path / "root")
    assert main(["train", "rl", "tiny", "--root", root]) == 2
    assert "has no table of prompts" in capsys.readouterr().err
    assert main(["train", "rl", "tiny", "--root", root, "--until", "votes"]) == 2
    assert "unknown step 'votes'; there are rl_prompts, rl_policy, rl_evaluation" in capsys.readouterr().err
    assert main(["train", "rl", "tiny", "--root", root, "--policy", "data_quality"]) == 2
    assert "about responses" in capsys.readouterr().err

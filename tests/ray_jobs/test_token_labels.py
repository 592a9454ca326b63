"""Token labels with scripted models: where a response turns, what it cost, and what a crash or a failure costs."""

import re
from dataclasses import replace

import pytest

from label.rollout import next_requests, reopened
from label.rollout_plan import Costs, Plan
from label.rollout_state import from_bytes
from ray_jobs import token_labels
from ray_jobs.engine import Completion, Failure, Model, Scores
from ray_jobs.store import Store
from ray_jobs.token_labels import TokenLabelsConfig
from ray_jobs.token_tables import TOKEN_LABELS
from ray_jobs.votes import SAMPLE

ROLES = {
    "rollout-1": Model("local", "one", "base"),
    "rollout-2": Model("local", "two", "instruct"),
    "guard": Model("local", "guard", "gen_guard"),
    "judge": Model("local", "judge", "instruct"),
    "backbone": Model("local", "backbone", "base"),
}


class Scripted:
    """A model that continues with what `says` gives and finds what holds the word "bad" violating."""

    def __init__(self, model: Model, says=lambda text: " and so on.", fails=lambda text: False):
        self.model, self.says, self.fails = model, says, fails
        self.calls: list[str] = []

    def generate(self, prompts, sampling, seeds):
        return [
            self._one(prompt, lambda text: Completion(self.says(text), "stop", 3, 4)) for prompt in prompts
        ]

    def score(self, prompts, continuations):
        (labels,) = set(continuations)
        found = [name.rpartition(" ")[2] for name in labels]
        bad = {"Safe": 0.1, "Controversial": 0.0, "Unsafe": 0.9}
        good = {"Safe": 0.9, "Controversial": 0.1, "Unsafe": 0.0}

        def told(text: str) -> Scores:
            answer = text.rpartition("ASSISTANT:")[2]
            return Scores(tuple((bad if "bad" in answer else good)[name] for name in found), False, 5)

        return [self._one(prompt, told) for prompt in prompts]

    def _one(self, prompt, make):
        text = prompt if isinstance(prompt, str) else "\n".join(turn["content"] for turn in prompt)
        self.calls.append(text)
        return Failure("gone") if self.fails(text) else make(text)


def words(text: str, add_special_tokens: bool, return_offsets_mapping: bool) -> dict:
    """A tokenizer: words with the space before them."""
    return {"offset_mapping": [match.span() for match in re.finditer(r"\s*\S+", text)]}


def sample(id: str, response: str, severity: str = "Unsafe", side: str = "response") -> dict:
    row = dict.fromkeys(SAMPLE.names)
    del row["digest"]
    given = {"id": id, "parent_id": "", "group_id": id, "side": side, "prompt": "Tell me.", "history": [],
             "response": response, "severity": severity, "language": "en", "abstain": False}  # fmt: skip
    return row | given


@pytest.fixture
def label(store, put, make_work, safety, monkeypatch):
    """label(rows, config, **models) labels the rows and gives the output, the models at hand in `label.models`."""
    monkeypatch.setattr(token_labels, "tokenizer", lambda work: words)

    def go(rows, config=None, identity="made-by-hand", **models):
        version = put(store, "distilled", SAMPLE, rows)
        config = config or TokenLabelsConfig(plan=Plan(k=3))
        work = make_work(safety, store, config, ROLES, versions={"distilled": version}, identity=identity)
        go.models = {role: models.get(role, Scripted(model)) for role, model in ROLES.items()}
        work.engines.clients = dict(go.models)
        return token_labels.run(work)

    return go


def by_parent(output) -> dict[str, dict]:
    return {row["parent_id"]: row for row in output.tables["token_labels"]}


def test_the_label_begins_at_the_first_token_that_turns(label):
    rows = [sample("turns", "Sure it is bad indeed"), sample("from the start", "bad it is")]
    told = by_parent(label(rows))
    row = told["turns"]
    assert (row["outcome"], row["boundary"], row["onset"], row["tokens"]) == ("boundary", 3, 10, 5)
    assert row["response"][row["onset"] :] == " bad indeed"
    assert (told["from the start"]["boundary"], told["from the start"]["onset"]) == (0, 0)
    assert set(row) == set(TOKEN_LABELS.names) - {"digest"}


def test_a_mild_response_costs_nothing_and_prompts_are_none_of_its_business(label):
    told = by_parent(label([sample("mild", "all is well", "Safe"), sample("p", "", "Unsafe", "prompt")]))
    assert list(told) == ["mild"]
    assert (
        told["mild"]["outcome"] == "mildest"
        and told["mild"]["onset"] is None
        and told["mild"]["rollouts"] == 0
    )
    assert all(model.calls == [] for model in label.models.values())


def test_no_boundary_is_an_outcome_of_its_own(label):
    output = label([sample("flagged in vain", "nothing happens here")])
    (row,) = output.tables["token_labels"]
    assert row["boundary"] is None and row["onset"] is None and row["outcome"] not in ("boundary", "mildest")
    assert output.failed == []


def test_the_exact_mode_finds_what_the_paper_mode_finds_for_less(label):
    rows = [sample(f"r{at}", " ".join("bad" if i == at else "word" for i in range(6))) for at in (0, 2, 5)]
    paper = by_parent(label(rows, TokenLabelsConfig(plan=Plan(k=4, mode="paper")), "paper"))
    exact = by_parent(label(rows, TokenLabelsConfig(plan=Plan(k=4)), "exact"))
    for id in paper:
        assert exact[id]["boundary"] == paper[id]["boundary"]
        assert exact[id]["rollouts"] < paper[id]["rollouts"] == exact[id]["paper_rollouts"] == 6 * 4


def test_every_rollout_model_is_asked_and_an_instruct_one_by_messages(label):
    label([sample("r", "Sure it is bad")], TokenLabelsConfig(plan=Plan(k=4, mode="paper")))
    one, two = (label.models[f"rollout-{number}"].calls for number in (1, 2))
    assert len(one) == len(two) == 4 * 2
    assert one[0].startswith("User: Tell me.") and one[0].endswith("Assistant: Sure")
    assert two[0] == "Tell me.\nSure"


def test_rollout_models_of_other_tokenizers_continue_the_text_and_never_change_it(label):
    def cut_after(size: int):
        """Continues by so many bytes, as a byte-level tokenizer may stop within a character."""
        return lambda text: "坏事在这里 🤫".encode()[:size].decode(errors="replace")

    models = {
        f"rollout-{n}": Scripted(ROLES[f"rollout-{n}"], says=cut_after(size)) for n, size in ((1, 4), (2, 18))
    }
    text = "好的 👍🏽 先看 bad 吧"
    (row,) = label([sample("r", text)], TokenLabelsConfig(plan=Plan(k=4, mode="paper")), **models).tables[
        "token_labels"
    ]
    assert row["response"][row["onset"] :] == " bad 吧"
    prefixes = [text[: match.end()] for match in re.finditer(r"\s*\S+", text)]
    seen = [call.rpartition("ASSISTANT: ")[2].partition("\n")[0] for call in label.models["guard"].calls]
    assert set(seen) == {prefix + end for prefix in prefixes for end in ("坏", "坏事在这里 ")}


def test_what_is_over_a_limit_is_counted_or_an_outcome_of_its_own(label):
    rows = [sample(f"r{i}", "word " * 4 + "bad") for i in range(3)] + [sample("long", "word " * 50)]
    told = by_parent(label(rows, TokenLabelsConfig(plan=Plan(k=2), max_tokens=20)))
    assert (told["long"]["outcome"], told["long"]["reason"]) == ("long", "50 tokens, the limit is 20")
    assert told["long"]["rollouts"] == 0 and told["r0"]["outcome"] == "boundary"
    output = label(rows, TokenLabelsConfig(plan=Plan(k=2), responses=1), "another")
    assert output.dropped == {"over the recipe's limit": 3} and len(output.tables["token_labels"]) == 1


def test_an_empty_response_and_one_of_one_token_have_outcomes_too(label):
    told = by_parent(label([sample("empty", ""), sample("no", "fine"), sample("one", "bad")]))
    assert (told["empty"]["outcome"], told["empty"]["tokens"], told["empty"]["rollouts"]) == ("none", 0, 0)
    assert (told["no"]["outcome"], told["no"]["labels"]) == ("none", [])
    assert (told["one"]["boundary"], told["one"]["labels"]) == (0, ["Unsafe"])


def test_k_of_one_and_a_threshold_that_no_k_meets_exactly(label):
    rows = [sample("r", "Sure it is bad")]
    config = TokenLabelsConfig(plan=Plan(k=1, threshold=0.85))
    assert by_parent(label(rows, config, "k1"))["r"]["boundary"] == 3
    (evidence,) = [
        one
        for one in by_parent(label(rows, TokenLabelsConfig(plan=Plan(k=8)), "k8"))["r"]["evidence"]
        if one["violations"]
    ]
    assert (evidence["violations"], evidence["draws"]) == (
        7,
        7,
    )  # 0.85 of 8 is rounded up to 7, and 7 are enough


def test_a_judge_that_fails_on_a_prefix_that_the_draws_clear_does_no_harm(label):
    failing = Scripted(ROLES["judge"], fails=lambda text: "\nSure\n</" in text)
    config = TokenLabelsConfig(plan=Plan(k=3, costs=Costs(1.0, 0.5, 0.01)))
    output = label([sample("r", "Sure it is bad")], config, judge=failing)
    (row,) = output.tables["token_labels"]
    assert (row["outcome"], row["boundary"], row["lost_calls"]) == ("boundary", 3, 1)
    assert output.failed == []


def test_a_search_that_failed_is_tried_again_on_the_next_run(label):
    rows = [sample("r", "Sure it is bad")]
    output = label(rows, guard=Scripted(ROLES["guard"], fails=lambda text: True))
    (row,) = output.tables["token_labels"]
    assert row["outcome"] == "failed" and row["state"] and "guard: gone" in output.failed[0].reason
    (row,) = label(rows).tables["token_labels"]
    assert (row["outcome"], row["boundary"], row["lost_calls"], row["state"]) == ("boundary", 3, 0, None)


def test_a_capped_search_is_an_outcome_and_its_state_goes_on_under_a_larger_cap(label):
    plan = Plan(k=4, max_rollouts=3)
    rows = [sample("r", "one two three four bad")]
    (row,) = label(rows, TokenLabelsConfig(plan=plan)).tables["token_labels"]
    assert row["outcome"] == "capped" and row["rollouts"] <= 3 and row["boundary"] is None
    assert row["reason"].startswith("stopped after")
    state = reopened(from_bytes(plan, row["state"]), replace(plan, max_rollouts=0))
    asked = next_requests(state)
    assert asked and min(request.prefix for request in asked) > 0  # what was paid for is not asked again


def test_thinking_and_answer_are_searched_apart(label):
    rows = [sample("r", "All is bad here") | {"thinking": "Hmm it may be bad then"}]
    output = label(rows, TokenLabelsConfig(plan=Plan(k=2, mode="paper")))
    told = {row["part"]: row for row in output.tables["token_labels"]}
    assert {name: row["boundary"] for name, row in told.items()} == {"thinking": 4, "answer": 2}
    assert told["thinking"]["response"] == "Hmm it may be bad then"
    assert len({row["id"] for row in told.values()}) == 2
    one, two = (label.models[f"rollout-{number}"].calls for number in (1, 2))
    assert any(call.endswith("<think>\nHmm it") for call in one + two)
    thought = "<think>\nHmm it may be bad then\n</think>\n\n"
    assert any(call.endswith(thought + "All is") for call in one + two)
    guarded = [call.rpartition("ASSISTANT: ")[2] for call in label.models["guard"].calls]
    assert not any("think>" in text for text in guarded)


def test_a_continuation_ends_where_the_thinking_does(label):
    says = Scripted(ROLES["rollout-1"], says=lambda text: " so.</think>\n\nThis is bad.")
    rows = [sample("r", "fine") | {"thinking": "Hmm well"}]
    output = label(rows, TokenLabelsConfig(plan=Plan(k=2)), **{"rollout-1": says, "rollout-2": says})
    told = {row["part"]: row["outcome"] for row in output.tables["token_labels"]}
    assert told == {"thinking": "none", "answer": "none"}


def test_an_approximate_mode_is_checked_against_exact_on_a_sample(label):
    back = " ".join(["fine"] * 3 + ["bad", "mended"] + ["fine"] * 3 + ["bad."])
    rows = [sample("back", back)] + [sample(f"r{at}", "word. " * at + "bad") for at in range(1, 5)]
    until = Scripted(ROLES["judge"])
    until.score = lambda prompts, continuations: [
        Scores(
            (0.1, 0.0, 0.9) if "bad" in str(p).rpartition("ASSISTANT:")[2].split()[-1] else (0.9, 0.1, 0.0),
            False,
            1,
        )
        for p in prompts
    ]
    config = TokenLabelsConfig(plan=Plan(k=2, mode="bisect"), checked=3)
    output = label(rows, config, judge=until)
    checks = output.tables["token_label_checks"]
    assert len(checks) == 3 and {row["mode"] for row in checks} == {"bisect"}
    mine = {row["id"]: row for row in output.tables["token_labels"]}
    for row in checks:
        assert mine[row["parent_id"]]["boundary"] == row["boundary"]
        assert row["same"] == (row["boundary"] == row["exact_boundary"])
    assert label(rows, TokenLabelsConfig(plan=Plan(k=2)), "exact").tables["token_label_checks"] == []


def test_many_open_searches_look_at_one_prefix_each(label):
    rows = [sample(f"r{i}", "one two three bad") for i in range(4)]
    wide = label(rows, TokenLabelsConfig(plan=Plan(k=1, sure=0.3), batch=5), "wide").tables["token_labels"]
    narrow = label(rows, TokenLabelsConfig(plan=Plan(k=1, sure=0.3), batch=4), "narrow").tables[
        "token_labels"
    ]
    assert [row["boundary"] for row in wide] == [row["boundary"] for row in narrow] == [3] * 4
    assert sum(row["rollouts"] for row in narrow) <= sum(row["rollouts"] for row in wide)


@pytest.mark.parametrize("text", ["好的。这样做很 bad 吧", "ok 👍🏽 then 👨‍👩‍👧 bad 👍🏽"])
def test_other_scripts_and_emoji_keep_their_offsets(label, text):
    (row,) = label([sample("r", text)]).tables["token_labels"]
    assert row["response"][row["onset"] :].strip().startswith("bad")
    assert len(row["labels"]) == row["tokens"] and row["labels"].index("Unsafe") == row["boundary"]


def test_a_crash_costs_the_wave_in_flight(label, monkeypatch):
    rows = [sample("r", "one two three four bad")]
    whole = by_parent(label(rows, identity="undisturbed"))["r"]
    undisturbed = len(label.models["guard"].calls)
    original, waves = Store.put_json, iter(range(99))

    def dies(self, path, record):
        original(self, path, record)
        if next(waves) == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put_json", dies)
        with pytest.raises(KeyboardInterrupt):
            label(rows)
    before = len(label.models["guard"].calls)
    again = by_parent(label(rows))["r"]
    assert before > 0 and before + len(label.models["guard"].calls) == undisturbed
    assert again == whole


@pytest.mark.parametrize("role", ["rollout-1", "guard", "judge"])
def test_an_engine_that_fails_for_good_ends_the_search_and_is_told_once(label, role):
    output = label([sample("r", "one two bad")], **{role: Scripted(ROLES[role], fails=lambda text: True)})
    assert len(output.tables["token_labels"]) == 1
    (lost,) = output.failed
    assert lost.row == "r" and "gone" in lost.reason and "cannot be decided" in lost.reason

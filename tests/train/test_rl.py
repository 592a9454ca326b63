"""Safety RL: where credit falls, GSPO-token against GSPO, how a policy is asked, and what no training starts with."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl", exc_type=ImportError)

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from label.verdict import Verdict
from synth.errors import BadInput
from synth.policy import load_policy
from train.data import CHAT_TEMPLATE
from train.reward_adapters import Judge
from train.rewards import RewardConfig
from train.rl import RewardFunction, SafetyTrainer, kept, spread, token_at
from train.rl_config import RLConfig
from train.rl_prompt import marker_in, policy_prompt, thinks

THINKING = CHAT_TEMPLATE + "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"


@pytest.fixture
def policy_model(llama: Path, tmp_path: Path) -> Path:
    """The tiny backbone with a chat template, as a policy has one."""
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.chat_template = CHAT_TEMPLATE
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def judge() -> Judge:
    """Calls a text unsafe that holds an x; the score is the text's length."""

    def guard(turns: list) -> list[Verdict]:
        return [Verdict("Unsafe" if "x" in each[-1]["content"] else "Safe", (), False) for each in turns]

    return Judge(guard, lambda turns: [float(len(each[-1]["content"])) for each in turns])


def asked(text: str) -> str:
    return json.dumps({"messages": [{"role": "user", "content": text}], "thinking": False})


def function(tokenizer, turned=None, **config) -> RewardFunction:
    return RewardFunction(load_policy("safety"), judge(), RewardConfig(**config), tokenizer, turned)


def test_the_mean_advantage_stays_and_lies_from_the_turn_on():
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]])
    credit = spread(torch.tensor([2.0, -1.0, -3.0]), mask, [None, 1, 2])
    assert credit.tolist() == [[2, 2, 2, 2], [0, -2, 0, 0], [0, 0, -6, -6]]
    assert torch.allclose(credit.sum(1) / mask.sum(1), torch.tensor([2.0, -1.0, -3.0]))


def test_truncation_keeps_the_token_at_which_an_answer_turned_and_nothing_after_it():
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]])
    assert kept(mask, [1, None, 0]).tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]]


def test_a_character_is_found_in_its_token(tokenizer):
    text = "the old dog walks over a small bridge"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    for at in range(len(text)):
        found = token_at(tokenizer, ids, at)
        before = len(tokenizer.decode(ids[:found])) if found else 0
        assert before <= at < len(tokenizer.decode(ids[: found + 1]))
    assert token_at(tokenizer, ids, 10_000) == len(ids) - 1


def test_only_violating_answers_are_asked_where_they_turned(tokenizer):
    seen: list[str] = []

    def turned(prompts: list, answers: list[str]) -> list[int]:
        seen.extend(answers)
        return [answer.index("x") for answer in answers]

    texts = ["a dog", "a dog x", "a bridge"]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    told: dict[str, float] = {}
    reward = function(tokenizer, turned)
    given = reward([asked("?")] * 3, texts, ids, told.__setitem__, trainer_state=None)
    assert given == [5.0, -10.0, 8.0] and seen == ["a dog x"]
    assert reward.turns == [None, token_at(tokenizer, ids[1], 6), None]
    assert told["guard/unsafe_rate"] == pytest.approx(1 / 3) and told["guard/helpfulness"] == pytest.approx(
        20 / 3
    )


def test_a_policy_that_answers_nothing_is_an_error_even_with_a_fallback(tokenizer):
    reward = function(tokenizer, fallback=-10.0)
    with pytest.raises(BadInput, match="wrote no answer to any of 2 prompts"):
        reward([asked("?")] * 2, ["", " \n"], [[1], [1]], lambda name, value: None)
    told: dict[str, float] = {}
    assert reward([asked("?")] * 2, ["", "so"], [[1], [1]], told.__setitem__) == [-10.0, 2.0]
    assert told["guard/fallback no answer"] == 0.5


def test_a_cut_off_thought_is_a_counted_fallback_or_an_error(tokenizer):
    told: dict[str, float] = {}
    texts = ["<think>hm and", "<think>hm</think>so"]
    given = function(tokenizer, fallback=-10.0)([asked("?")] * 2, texts, [[1], [1]], told.__setitem__)
    assert given == [-10.0, 2.0] and told["guard/fallback thinking cut off"] == 0.5
    with pytest.raises(BadInput, match=r"response 0: .*thinking cut off"):
        function(tokenizer)([asked("?")] * 2, texts, [[1], [1]], told.__setitem__)


def trainer(folder: Path, out: Path, credit: str) -> SafetyTrainer:
    """A trainer without DeepSpeed, for its loss alone."""
    config = RLConfig(str(folder), steps=4, batch=4, group=2, reuse=2, max_tokens=6, checkpoint_steps=2, workers=1,
                      credit=credit, epsilon=10.0, epsilon_high=10.0)  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    return SafetyTrainer(
        credit=credit,
        reward=function(tokenizer),
        model=AutoModelForCausalLM.from_pretrained(folder),
        args=GRPOConfig(output_dir=str(out), use_cpu=True, report_to="none", **config.trl()),
        train_dataset=Dataset.from_dict({"prompt": [asked("?")] * 8}),
        processing_class=tokenizer,
    )


def test_gspo_token_is_gspo_when_all_tokens_have_one_advantage_and_else_weighs_each(policy_model, tmp_path):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 300, (4, 6), generator=generator)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 6, [1] * 5 + [0]])
    batch = {"prompt_ids": ids[:, :3], "prompt_mask": torch.ones(4, 3, dtype=torch.long), "completion_ids": ids,
             "completion_mask": mask, "num_items_in_batch": mask.sum()}  # fmt: skip
    advantages = torch.tensor([1.0, -2.0, 0.5, 3.0])
    old = -5 + torch.rand(4, 6, generator=generator)  # off-policy, and differently so at each token

    def run(credit: str, given: torch.Tensor) -> tuple[float, torch.Tensor]:
        made = trainer(policy_model, tmp_path / credit, credit)
        made.current_gradient_accumulation_steps = 1
        inputs = {**batch, "advantages": given, "old_per_token_logps": old.clone()}
        loss = made._compute_loss(made.model, inputs)
        loss.backward()
        assert torch.equal(
            inputs["old_per_token_logps"], old
        )  # the next step on this batch needs the true ones
        return loss.item(), made.model.model.layers[0].mlp.up_proj.weight.grad

    sequence, by_sequence = run("sequence", advantages)
    token, by_token = run("token", spread(advantages, mask, [None] * 4))
    assert token == pytest.approx(sequence, rel=1e-5) and by_sequence.abs().max() > 1e-4
    assert torch.allclose(by_token, by_sequence, rtol=1e-3, atol=1e-6)
    turned, by_turn = run("token", spread(advantages, mask, [None, 2, None, None]))
    assert turned == pytest.approx(sequence, rel=1e-5)  # the same value, another direction
    assert not torch.allclose(by_turn, by_sequence, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"credit": "all"}, "credit is sequence, token, truncated"),
        ({"group": 1}, "at least 2"),
        ({"batch": 6, "workers": 4}, "does not divide into 4 workers"),
        ({"batch": 4, "group": 6, "reuse": 1}, "do not divide by group 6"),
        ({"micro": 3}, "does not divide"),
        ({"checkpoint_steps": 3}, "multiple of reuse"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_a_wrong_config_is_one_sentence(change: dict, said: str):
    with pytest.raises(BadInput, match=said):
        RLConfig("p", **{"batch": 8, "group": 4, "reuse": 2, "checkpoint_steps": 2, **change})


def test_the_settings_are_those_of_gspo():
    told = RLConfig("p", batch=64, group=8, reuse=4, micro=4, workers=2).trl()
    assert (told["importance_sampling_level"], told["loss_type"], told["beta"]) == ("sequence", "grpo", 0.0)
    assert (told["epsilon"], told["epsilon_high"]) == (3e-4, 4e-4)
    assert (told["per_device_train_batch_size"], told["gradient_accumulation_steps"]) == (4, 8)
    assert told["steps_per_generation"] == 32  # four optimizer steps of eight passes each


def test_a_policy_is_asked_in_the_mode_wanted(tokenizer):
    turns = [{"role": "user", "content": "hm?"}]
    tokenizer.chat_template = THINKING
    assert thinks(tokenizer) and policy_prompt(tokenizer, turns, False).endswith("</think>\n\n")
    assert policy_prompt(tokenizer, turns, True).endswith("assistant\n")
    tokenizer.chat_template = CHAT_TEMPLATE
    assert not thinks(tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(BadInput, match="no chat template"):
        policy_prompt(tokenizer, turns, False)


def test_a_prompt_that_could_end_its_own_turn_is_seen(tokenizer):
    turns = [{"role": "user", "content": "so <|im_end|> then"}]
    assert marker_in(tokenizer, turns) == "<|im_end|>" and not marker_in(tokenizer, [{"content": "so then"}])

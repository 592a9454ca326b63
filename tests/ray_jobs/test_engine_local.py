"""The local engine against the plainest possible reference: re-running the whole sequence for every token."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ray_jobs.engine.calls import Completion, Failure, Model, Sampling, Scores, TokenScores
from ray_jobs.engine.local import LocalModel
from ray_jobs.engine.prefix import SHORTEST_LOAN, plan
from ray_jobs.engine.sampling import draw, uniforms
from synth.errors import BadInput

CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = [
    "a",
    "the cat",
    "abc abc abc abc",
    "x" * 40,
    "hello world, hello moon",
    "the cat sat on the mat, the",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A byte-level tokenizer and a random two-layer Llama with grouped heads."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    fast.chat_template = CHAT
    fast.save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        eos_token_id=fast.eos_token_id,
        initializer_range=0.5, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def model(folder):
    return LocalModel(Model("local", folder, "instruct", options=(("threads", 1), ("slots", 4))))


def logits_after(model, ids):
    with torch.inference_mode():
        return model.loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def reference(model, text, sampling, seed):
    """Token by token, the whole sequence each time, without a cache or a batch."""
    lm = model.loaded
    prompt = lm.tokenizer(text)["input_ids"]
    output = []
    while len(output) < sampling.max_tokens:
        uniform = uniforms(np.array([seed]), np.array([len(output)]))
        output.append(int(draw(logits_after(model, prompt + output)[-1:], sampling, uniform)[0]))
        text = lm.tokenizer.decode(output, skip_special_tokens=True)
        if output[-1] in lm.end_ids or any(stop in text for stop in sampling.stop):
            break
    cut = min((text.find(stop) for stop in sampling.stop if stop in text), default=len(text))
    return text[:cut], len(output)


@pytest.mark.parametrize("sampling", [
    Sampling(max_tokens=12, temperature=0.0),
    Sampling(max_tokens=12, temperature=1.0, top_k=20, top_p=0.9),
    Sampling(max_tokens=12, temperature=1.3, top_k=0, top_p=1.0),
    Sampling(max_tokens=20, temperature=2.0, top_k=0, top_p=1.0, stop=("a", "e", "zz")),
])  # fmt: skip
def test_batched_generation_equals_rerunning_the_whole_sequence(model, sampling):
    texts = TEXTS * 3
    seeds = [1000 + i for i in range(len(texts))]
    completions = model.generate(texts, sampling, seeds)
    for text, seed, completion in zip(texts, seeds, completions, strict=True):
        assert (completion.text, completion.completion_tokens) == reference(model, text, sampling, seed)


def test_a_row_draws_the_same_whatever_its_neighbours(model):
    sampling = Sampling(max_tokens=16)
    alone = [model.generate([text], sampling, [7 + i])[0] for i, text in enumerate(TEXTS)]
    together = model.generate(TEXTS, sampling, [7 + i for i in range(len(TEXTS))])
    backwards = model.generate(TEXTS[::-1], sampling, [7 + i for i in range(len(TEXTS))][::-1])[::-1]
    assert alone == together == backwards


def test_samples_of_one_prompt_differ_by_seed_and_repeat_with_it(model):
    found = model.generate(["the cat"] * 9, Sampling(max_tokens=10), [1, 2, 3, 4, 5, 6, 7, 8, 1])
    assert found[0] == found[8]
    assert len({completion.text for completion in found}) > 5


def test_end_mark_and_length_and_context_end_a_text(model):
    texts = model.generate(
        ["hello"] * 40, Sampling(max_tokens=100, temperature=3.0, top_k=0, top_p=1.0), range(40)
    )
    assert {text.finish_reason for text in texts} == {"stop", "length"}
    assert all("<|im_end|>" not in text.text for text in texts)
    assert max(text.completion_tokens for text in texts) == 100
    full = model.generate(["x" * 120], Sampling(max_tokens=100, temperature=0), [1])[0]
    assert full.prompt_tokens == 120 and full.completion_tokens <= 8


def test_failed_rows_say_why_and_do_not_disturb_the_others(model):
    base = LocalModel(Model("local", model.model.name, "base"), shared=model)
    prompts = ["a cat", "", "x" * 128, [{"role": "user", "content": "hi"}]]
    found = base.generate(prompts, Sampling(max_tokens=3), [1, 2, 3, 4])
    assert isinstance(found[0], Completion)
    assert [type(row) for row in found[1:]] == [Failure] * 3
    assert "empty" in found[1].reason
    assert "128 tokens" in found[2].reason
    assert "chat template" in found[3].reason
    assert base.generate([], Sampling(), []) == []


def test_messages_go_through_the_chat_template_and_a_last_assistant_turn_is_continued(model):
    lm = model.loaded
    user = {"role": "user", "content": "hi"}
    asked = lm.tokenizer.decode(lm.encode([user], True))
    continued = lm.tokenizer.decode(lm.encode([user, {"role": "assistant", "content": "yes, and"}], True))
    assert asked == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert continued == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes, and"


def test_score_equals_the_softmax_of_summed_log_probabilities(model):
    endings = [("a", "b"), ("Yes", "No", "Maybe so"), ("the same", "the same but longer", "x"), ("a", "a")]
    texts = [text for text in TEXTS for _ in endings]
    asked = endings * len(TEXTS)
    lm = model.loaded
    for text, continuations, found in zip(texts, asked, model.score(texts, asked), strict=True):
        logs = []
        for continuation in continuations:
            prompt, ids = lm.tokenizer(text)["input_ids"], lm.tokenizer(continuation)["input_ids"]
            table = torch.log_softmax(logits_after(model, prompt + ids).double(), dim=-1)
            logs.append(sum(table[len(prompt) - 1 + k, token] for k, token in enumerate(ids)))
        assert found.probabilities == pytest.approx(torch.softmax(torch.stack(logs), 0).tolist(), abs=1e-5)
        assert not found.approximate and found.prompt_tokens == len(prompt)


def test_score_refuses_no_continuation_and_one_beyond_the_context(model):
    found = model.score(["a", "x" * 120, "a", "b"], [(), ("y" * 20, "z"), ("", "b"), ("a",)])
    assert [type(row) for row in found] == [Failure, Failure, Failure, Scores]
    assert found[3].probabilities == (1.0,)


@pytest.mark.parametrize("layer", [1, 2])
def test_hidden_states_are_those_of_transformers(folder, model, layer):
    reader = LocalModel(Model("local", folder, "embedder", options=(("layer", layer),)), shared=model)
    vectors = reader.embed(TEXTS)
    decoder = model.loaded.model.get_decoder()
    for text, vector in zip(TEXTS, vectors, strict=True):
        hidden = []
        hook = decoder.layers[layer - 1].register_forward_hook(lambda _m, _i, out, to=hidden: to.append(out))
        logits_after(model, model.loaded.tokenizer(text)["input_ids"])
        hook.remove()
        assert np.allclose(vector.values, hidden[0][0, -1].numpy(), atol=1e-4)
        assert vector.values.dtype == np.float32


def test_a_layer_the_model_does_not_have_is_bad_input(folder, model):
    with pytest.raises(BadInput, match="layer 3 is not between 1 and 2"):
        LocalModel(Model("local", folder, "embedder", options=(("layer", 3),)), shared=model).embed(["a"])


def test_a_call_the_kind_cannot_answer_is_a_type_error(model):
    with pytest.raises(TypeError, match="cannot score tokens"):
        model.score_tokens([[{"role": "user", "content": "hi"}]])


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.floats(-8, 8), min_size=2, max_size=30),
    st.floats(0.2, 3), st.floats(0.05, 1), st.integers(0, 30), st.floats(0, 0.999999),
)  # fmt: skip
def test_draw_inverts_the_distribution_that_top_k_temperature_and_top_p_leave(
    logits, heat, top_p, top_k, uniform
):
    """Against a plain sort: the drawn token is the first at which the kept probability exceeds the number."""
    tensor = torch.tensor([logits])
    token = int(draw(tensor, Sampling(temperature=heat, top_p=top_p, top_k=top_k), np.array([uniform]))[0])
    order = np.argsort(-tensor[0].numpy(), kind="stable")[: top_k or len(logits)]
    weights = np.exp((tensor[0].numpy()[order].astype(float) - tensor.max().item()) / heat)
    weights /= weights.sum()
    kept = weights * (np.cumsum(weights) - weights < top_p)
    cumulative = np.cumsum(kept)
    at = min(int((cumulative <= uniform * cumulative[-1]).sum()), int((kept > 0).sum()) - 1)
    near = np.abs(np.concatenate([cumulative, np.cumsum(weights)]) - uniform * cumulative[-1]).min() < 1e-6
    near |= np.abs(np.cumsum(weights) - top_p).min() < 1e-6
    assert near or tensor[0, token] == tensor[0, order[at]]


def test_uniforms_are_even_and_depend_on_both_seed_and_step():
    seeds, steps = np.meshgrid(np.arange(400), np.arange(50))
    numbers = uniforms(seeds.ravel(), steps.ravel())
    assert numbers.min() >= 0 and numbers.max() < 1
    assert len(np.unique(numbers)) == numbers.size
    counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
    assert abs(counts / numbers.size - 0.05).max() < 0.006
    by_step = numbers.reshape(50, 400)
    assert abs(np.corrcoef(by_step[0], by_step[1])[0, 1]) < 0.15
    big = uniforms(np.array([2**63 - 1], dtype=np.uint64), np.array([10**6]))
    assert 0 <= big[0] < 1


@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=24), min_size=1, max_size=8),
    st.integers(0, 3),
)
@settings(max_examples=100, deadline=None)
def test_a_plan_borrows_only_what_is_there_and_all_that_could_be_borrowed(prompts, known):
    known = min(known, len(prompts))
    there = {number: len(prompts[number]) - 1 for number in range(known)}
    waves = plan(prompts, known)
    assert sorted(loan.prompt for wave in waves for loan in wave) == list(range(known, len(prompts)))
    for wave in waves:
        for loan in wave:
            if loan.shared:
                assert there[loan.source] >= loan.shared
                assert prompts[loan.source][: loan.shared] == prompts[loan.prompt][: loan.shared]
            assert loan.shared < len(prompts[loan.prompt])
        own = [len(prompts[loan.prompt]) - loan.shared for loan in wave]
        assert own == sorted(own, reverse=True)
        there |= {loan.prompt: len(prompts[loan.prompt]) - 1 for loan in wave}
    computed = sum(len(prompts[loan.prompt]) - 1 - loan.shared for wave in waves for loan in wave)
    wanted = {tuple(p[:n]) for p in prompts[known:] for n in range(1, len(p))}
    had = {tuple(p[:n]) for p in prompts[:known] for n in range(1, len(p))}
    assert len(wanted - had) <= computed <= len(wanted - had) + SHORTEST_LOAN * len(prompts)


def test_shared_prefixes_change_no_text_and_no_score(model):
    """Prefixes of one text, several templates and repeated prompts, more rows than slots."""
    story = "the cat sat on the mat and looked at the moon"
    texts = [story[:n] for n in range(1, len(story), 3)]
    texts += [f"A shared template of some length: {word}" for word in ("cat", "dog", "cattle", "cat")]
    texts += [f"Another template, also long: {word} and so on" for word in ("x", "y", "xy")] * 2
    sampling, seeds = Sampling(max_tokens=6), list(range(len(texts)))
    alone = [model.generate([text], sampling, [seed])[0] for text, seed in zip(texts, seeds, strict=True)]
    assert model.generate(texts, sampling, seeds) == alone
    endings = [("cat", "a dog")] * len(texts)
    together = model.score(texts, endings)
    for text, found in zip(texts, together, strict=True):
        assert found.probabilities == pytest.approx(
            model.score([text], endings[:1])[0].probabilities, abs=1e-5
        )


def test_a_streaming_guard_scores_tokens_and_says_which_conversations_it_cannot_read(tmp_path, model):
    from train.stream_model import StreamGuard, StreamGuardConfig
    from train.stream_score import score_conversations

    lm = model.loaded
    torch.manual_seed(2)
    guard = StreamGuard(StreamGuardConfig(backbone_config=lm.config.to_dict(), guard_inner_size=8)).eval()
    guard.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    user, answer = {"role": "user", "content": "hi there"}, {"role": "assistant", "content": "no"}
    good = [[user, answer], [user], [user, answer, user, {"role": "assistant", "content": "yes yes"}]]
    bad = [[], [answer], [user, {"role": "assistant", "content": "x" * 200}]]
    made = LocalModel(Model("local", str(tmp_path), "stream_guard", options=(("threads", 1),)))
    found = made.score_tokens([*good, *bad])
    assert [type(row) for row in found] == [TokenScores] * 3 + [Failure] * 3
    assert "does not end with" in found[3].reason and "context holds 128" in found[5].reason
    for row, wanted in zip(found, score_conversations(guard, lm.tokenizer, good), strict=False):
        assert np.allclose(row.risk, wanted.risk, atol=1e-5) and np.array_equal(row.offsets, wanted.offsets)
        assert np.allclose(row.query_category, wanted.query_category, atol=1e-5)
    assert found[0].risk.shape == (2, 3) and found[1].risk.shape == (0, 3)
    assert found[0].risk.sum(axis=1) == pytest.approx(1, abs=1e-5)
    with pytest.raises(TypeError, match="cannot generate"):
        made.generate(["a"], Sampling(), [1])


def test_slots_are_bounded_by_the_cache_budget(folder):
    small = LocalModel(Model("local", folder, "instruct", options=(("threads", 1), ("cache_gb", 0.0001))))
    assert small.loaded.room(100) < 5
    sampling = Sampling(max_tokens=8)
    wide = LocalModel(Model("local", folder, "instruct", options=(("threads", 1),)))
    seeds = list(range(18))
    assert small.generate(TEXTS * 3, sampling, seeds) == wide.generate(TEXTS * 3, sampling, seeds)


def test_a_folder_that_is_not_a_model_is_bad_input_in_one_sentence(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "nonsense"}')
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"no tensors")
    for name, words in (
        ("empty", "no config.json"),
        ("missing", "no such folder"),
        ("broken", "cannot be loaded"),
    ):
        with pytest.raises(BadInput, match=words) as caught:
            LocalModel(Model("local", str(tmp_path / name), "instruct"))
        assert "\n" not in str(caught.value)

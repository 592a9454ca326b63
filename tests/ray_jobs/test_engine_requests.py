"""The request cache: a paid call is not paid again, within a run and across runs, and no damage makes it lie."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.engine import requests as requests_module
from ray_jobs.engine.actor import ModelActor
from ray_jobs.engine.calls import Completion, EngineDied, Failure, Model, RowFailed, Sampling, Scores
from ray_jobs.engine.requests import RequestCache
from ray_jobs.engine.rows import RowEngine

MODEL = Model("openai", "some-model", "instruct", options=(("url", "http://127.0.0.1:1"),))
MUCH = 1 << 30


class Counted(RowEngine):
    """Answers every prompt with its seed, and remembers what it was asked."""

    def __init__(self):
        self.asked = Counter()
        self.progress = lambda: None

    async def generate_row(self, prompt, sampling, seed):
        self.asked[str(prompt)] += 1
        await asyncio.sleep(0.01)
        if prompt == "bad":
            raise RowFailed("no")
        if prompt == "deadly":
            raise EngineDied("gone")
        return Completion(f"{prompt} {seed}", "stop", 3, 2)

    async def score_row(self, prompt, continuations):
        self.asked[str(prompt)] += 1
        return Scores((0.25, 0.75), False, 4)


def actor_on(root, model=MODEL, limit=MUCH):
    """An actor whose engine counts, on a root."""
    actor = ModelActor()
    actor.engines[model] = Counted()
    asyncio.run(actor.load(model, (str(root), limit)))
    return actor, actor.engines[model]


def ask(actor, prompts, sampling=None, seeds=None, model=MODEL):
    columns = (prompts, seeds or [1] * len(prompts))
    return asyncio.run(actor.call(model, "generate", columns, (sampling or Sampling(),)))


def test_a_call_is_paid_once_within_a_run_and_across_runs(tmp_path):
    actor, engine = actor_on(tmp_path)
    first = ask(actor, ["a", "b", "a"])
    assert [row.text for row in first] == ["a 1", "b 1", "a 1"] and engine.asked == {"a": 1, "b": 1}
    assert [row.cached for row in first] == [False, False, True]
    assert [row.cached for row in ask(actor, ["a", "c"])] == [True, False]
    again, fresh = actor_on(tmp_path)
    rows = ask(again, ["c", "b", "a"])
    assert fresh.asked == {} and [row.text for row in rows] == ["c 1", "b 1", "a 1"]
    assert all(row.cached and (row.prompt_tokens, row.completion_tokens) == (3, 2) for row in rows)


def test_another_seed_sampling_prompt_or_model_is_another_call(tmp_path):
    actor, engine = actor_on(tmp_path)
    ask(actor, ["a"])
    for changed in (
        {"seeds": [2]},
        {"sampling": Sampling(temperature=0.5)},
        {"sampling": Sampling(regex="a")},
    ):
        ask(actor, ["a"], **changed)
    ask(actor, [[{"role": "user", "content": "a"}]])
    assert engine.asked["a"] == 4 and len(engine.asked) == 2
    other = Model("openai", "another-model", "instruct")
    fresh, asked = actor_on(tmp_path, other)
    ask(fresh, ["a"], model=other)
    assert asked.asked == {"a": 1}


def test_scores_are_kept_too(tmp_path):
    for _ in range(2):
        actor, engine = actor_on(tmp_path)
        columns = (["a"], [("Safe", "Unsafe")])
        (row,) = asyncio.run(actor.call(MODEL, "score", columns, ()))
        assert row == Scores((0.25, 0.75), False, 4)
    assert row.cached and engine.asked == {}


def test_a_request_under_way_is_waited_for_and_failures_are_asked_again(tmp_path):
    actor, engine = actor_on(tmp_path)

    async def both():
        calls = [actor.call(MODEL, "generate", (["a", "bad"], [1, 1]), (Sampling(),)) for _ in range(3)]
        return await asyncio.gather(*calls)

    answers = asyncio.run(both())
    assert engine.asked == {"a": 1, "bad": 1}
    assert sum(rows[0].cached for rows in answers) == 2
    assert all(rows[1] == Failure("no") for rows in answers)
    ask(actor, ["a", "bad"])
    assert engine.asked == {"a": 1, "bad": 2}


def test_when_an_engine_dies_all_who_wait_are_told_and_what_was_answered_stays(tmp_path):
    actor, _ = actor_on(tmp_path)
    ask(actor, ["a"])

    async def both():
        calls = [actor.call(MODEL, "generate", (["deadly"], [1]), (Sampling(),)) for _ in range(2)]
        return await asyncio.gather(*calls, return_exceptions=True)

    assert all(isinstance(answer, EngineDied) for answer in asyncio.run(both()))
    again, engine = actor_on(tmp_path)
    assert ask(again, ["a"])[0].cached and engine.asked == {}


def test_it_can_be_switched_off_for_a_run_and_for_a_model(tmp_path):
    actor = ModelActor()
    actor.engines[MODEL] = engine = Counted()
    asyncio.run(actor.load(MODEL, None))
    ask(actor, ["a"]), ask(actor, ["a"])
    assert engine.asked == {"a": 2} and not any(tmp_path.iterdir())
    off = Model("openai", "some-model", "instruct", options=(("cache", False),))
    actor, engine = actor_on(tmp_path, off)
    ask(actor, ["a"], model=off), ask(actor, ["a"], model=off)
    assert engine.asked == {"a": 2}


def test_a_line_cut_by_a_crash_is_asked_again_and_harms_no_other(tmp_path):
    actor, _ = actor_on(tmp_path)
    ask(actor, ["a", "b"])
    (segment,) = tmp_path.rglob("*.jsonl")
    segment.write_bytes(segment.read_bytes()[:-9])
    again, engine = actor_on(tmp_path)
    assert [row.text for row in ask(again, ["a", "b"])] == ["a 1", "b 1"]
    assert sum(engine.asked.values()) == 1


def test_above_its_limit_the_oldest_segments_go(tmp_path, monkeypatch):
    monkeypatch.setattr(requests_module, "SEGMENT_BYTES", 2000)
    actor, _ = actor_on(tmp_path, limit=16_000)
    for at in range(20):
        ask(actor, [f"{at} " + "x" * 1000, f"{at} " + "y" * 1000])
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.jsonl"))
    assert 8_000 < size <= 18_000
    again, engine = actor_on(tmp_path, limit=16_000)
    ask(again, ["19 " + "y" * 1000, "0 " + "x" * 1000])
    assert dict(engine.asked) == {"0 " + "x" * 1000: 1}


def test_many_small_segments_become_one_and_keep_their_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(requests_module, "MANY", 5)
    for at in range(6):
        ask(actor_on(tmp_path)[0], [f"row {at}"])
    again, engine = actor_on(tmp_path)
    assert len(list(tmp_path.rglob("*.jsonl"))) < 5
    assert [row.text for row in ask(again, [f"row {at}" for at in range(6)])] == [
        f"row {i} 1" for i in range(6)
    ]
    assert engine.asked == {}


def test_a_segment_that_is_gone_under_way_is_asked_again(tmp_path):
    ask(actor_on(tmp_path)[0], ["a"])
    again, engine = actor_on(tmp_path)
    for path in tmp_path.rglob("*.jsonl"):
        path.unlink()
    assert ask(again, ["a"])[0].text == "a 1" and engine.asked == {"a": 1}


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=80), st.integers(0, 500))
def test_any_text_comes_back_as_it_was_even_beside_a_damaged_line(tmp_path_factory, text, cut):
    root: Path = tmp_path_factory.mktemp("any")

    async def keep():
        cache = RequestCache(str(root), MODEL, MUCH)
        answers = {cache.key("generate", [text, n], [Sampling()]): Completion(f"{text}{n}", "stop", 1, 1)
                   for n in range(3)}  # fmt: skip
        for key, answer in answers.items():
            await cache.put(key, answer)
        (path,) = root.rglob("*.jsonl")
        whole = path.read_bytes()
        path.write_bytes(whole[: min(cut, len(whole))])
        reopened = RequestCache(str(root), MODEL, MUCH)
        found = [await reopened.get(key) for key in answers]
        assert all(got is None or got == kept for got, kept in zip(found, answers.values(), strict=True))
        assert cut < len(whole) or None not in found

    asyncio.run(keep())


@pytest.mark.parametrize("raw", ["not json", "{}", '{"text": 1, "odd": 2}'])
def test_a_line_that_is_no_answer_is_asked_again(tmp_path, raw):
    actor, _ = actor_on(tmp_path)
    ask(actor, ["a"])
    (path,) = tmp_path.rglob("*.jsonl")
    path.write_bytes(path.read_bytes()[: requests_module.KEY] + raw.encode() + b"\n")
    again, engine = actor_on(tmp_path)
    assert ask(again, ["a"])[0].text == "a 1" and engine.asked == {"a": 1}

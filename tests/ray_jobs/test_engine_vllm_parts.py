"""What the vllm engine decides without vLLM: what is read to score, how the engine is started, structure, prompts."""

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.engine import replicas
from ray_jobs.engine.calls import EngineDied, Model, RowFailed, Sampling, Scores
from ray_jobs.engine.client import wait
from ray_jobs.engine.local import chosen
from ray_jobs.engine.openai import shown_after, taken_out, wanted_schema
from ray_jobs.engine.rows import held
from ray_jobs.engine.tokens import shared_start
from ray_jobs.engine.vllm import available, decisions, engine_arguments
from synth.errors import BadInput

tokens = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=5)


def log_probability(said, token):
    """A stand-in for a model: any function of what was said and what comes next."""
    return -1.0 - math.sin(hash((tuple(said), token)) % 97)


@given(tokens)
def test_scores_from_the_places_where_endings_part_are_those_from_all_places(endings):
    read = {said: {token: log_probability(said, token) for token in following}
            for said, following in decisions(endings)}  # fmt: skip
    short = [
        sum(read[tuple(end[:at])][token] for at, token in enumerate(end) if tuple(end[:at]) in read)
        for end in endings
    ]
    whole = [sum(log_probability(end[:at], token) for at, token in enumerate(end)) for end in endings]
    for (a, full_a), (b, full_b) in product(zip(short, whole, strict=True), repeat=2):
        assert a - b == pytest.approx(full_a - full_b)


def test_a_common_beginning_costs_no_step_and_single_tokens_cost_one():
    assert decisions([[7, 7, 1], [7, 7, 2]]) == [((7, 7), (1, 2))]
    assert decisions([[1], [2], [3]]) == [((), (1, 2, 3))]
    assert decisions([[1], [2, 5]]) == [((), (1, 2)), ((2,), (5,))]


def test_an_engine_is_started_by_the_models_options():
    plain = Model("vllm", "smollm2-135m", "base")
    on_cpu = engine_arguments(plain, "/folder", on_gpu=False)
    assert on_cpu["enforce_eager"] and on_cpu["dtype"] == "float32" and on_cpu["enable_prefix_caching"]
    assert not on_cpu["enable_chunked_prefill"]
    assert "gpu_memory_utilization" not in on_cpu and "distributed_executor_backend" not in on_cpu
    options = (("gpus", 0.5), ("tensor_parallel", 1), ("max_model_len", 1024), ("max_replicas", 3))
    shared = engine_arguments(Model("vllm", "a/b", "instruct", options=options), "a/b", on_gpu=True)
    assert shared["gpu_memory_utilization"] == pytest.approx(0.46) and shared["max_model_len"] == 1024
    assert "enable_chunked_prefill" not in shared
    assert shared["dtype"] == "auto" and not shared["enforce_eager"] and "max_replicas" not in shared
    wide = Model("vllm", "a/b", "instruct", options=(("gpus", 8.0), ("tensor_parallel", 8)))
    told = engine_arguments(wide, "a/b", on_gpu=True)
    assert told["tensor_parallel_size"] == 8 and told["distributed_executor_backend"] == "mp"
    assert engine_arguments(Model("vllm", "a/b", "embedder"), "a/b", False)["runner"] == "pooling"


def test_without_the_package_one_sentence_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"model 'a/b': the engine vllm needs .*extra 'vllm'"):
        available(Model("vllm", "a/b", "instruct"))


def test_one_replica_runs_the_model_without_its_replica_options():
    model = Model("vllm", "a/b", "base", options=(("min_replicas", 1), ("max_replicas", 4), ("gpus", 1.0)))
    assert replicas.spread(model) and not replicas.spread(replicas.single(model))
    assert replicas.single(model).options == (("gpus", 1.0),)
    assert not replicas.spread(Model("openai", "x", "base", options=(("max_replicas", 4),)))


@pytest.mark.parametrize(("sampling", "good", "bad"), [
    (Sampling(choice=("Safe", "Unsafe")), "Safe", "Safely"),
    (Sampling(regex=r"\d{4}-\d\d"), "2026-01", "2026-1"),
    (Sampling(schema='{"type": "object"}'), '{"a": 1}', '{"a": '),
])  # fmt: skip
def test_a_text_that_leaves_its_structure_is_a_failed_row_with_its_text(sampling, good, bad):
    assert held(good, sampling) == good
    with pytest.raises(RowFailed) as told:
        held(bad, sampling)
    assert told.value.failure.raw == bad


def test_only_one_structure_may_be_asked_for():
    with pytest.raises(ValueError, match="not to several"):
        Sampling(choice=("a",), regex="b")


def test_a_choice_travels_to_an_endpoint_as_a_schema_and_comes_back_as_itself():
    sampling = Sampling(choice=("Safe", "Unsafe"))
    schema = wanted_schema(sampling)
    assert schema["properties"]["answer"]["enum"] == ["Safe", "Unsafe"] and schema["required"] == ["answer"]
    assert taken_out('{"answer": "Safe"}', sampling) == "Safe"
    assert taken_out("Safe", sampling) == "Safe" and taken_out("x", Sampling()) == "x"
    assert wanted_schema(Sampling()) is None and wanted_schema(Sampling(schema='{"a": 1}')) == {"a": 1}


def test_what_continuations_share_ends_at_a_word():
    assert shared_start(["Safety: Safe", "Safety: Unsafe"]) == "Safety: "
    assert shared_start(["Safe", "Safer"]) == "" and shared_start([" Yes", " Yellow"]) == " "
    assert shared_start(["Yes", "No"]) == ""


def test_the_place_behind_the_shared_start_is_read_and_the_first_one_else():
    positions = [("Safety", {"Safety": 0.9}), (":", {":": 1.0}), (" Safe", {" Safe": 0.7, " Unsafe": 0.3})]
    assert shown_after("Safety: ", positions) == {" Safe": 0.7, " Unsafe": 0.3}
    assert shown_after("", positions) == {"Safety": 0.9}
    assert shown_after("Safety: ", [("I", {"I": 0.8}), (" am", {" am": 1.0})]) == {"I": 0.8}
    assert shown_after("Safety: ", []) == {}


def test_a_choice_is_drawn_by_its_probability_and_temperature():
    told = Scores((0.2, 0.8), False, 3)
    sampling = Sampling(choice=("a", "b"), temperature=1.0)
    assert [chosen(told, sampling, draw).text for draw in (0.0, 0.19, 0.21, 0.999)] == ["a", "a", "b", "b"]
    assert chosen(told, Sampling(choice=("a", "b"), temperature=0), 0.0).text == "b"
    cold = Sampling(choice=("a", "b"), temperature=0.25)
    assert chosen(told, cold, 0.01).text == "b"


def test_an_actor_killed_for_its_memory_is_a_dead_engine(monkeypatch):
    from ray.exceptions import OutOfMemoryError

    def killed(_answer, timeout):
        raise OutOfMemoryError("5 workers were killed due to the node running low on memory\nTop users: …")

    monkeypatch.setattr("ray.get", killed)
    with pytest.raises(
        EngineDied, match=r"'w' died: 5 workers were killed due to the node running low on memory$"
    ):
        wait(None, None, Model("vllm", "w", "base"))

"""vLLM for real, on CPUs, with the packaged SmolLM2: its calls, structure, death, whole recipes (make test-vllm)."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

pytest.importorskip("vllm")
import ray

from ray_jobs import own_ray
from ray_jobs.cli import main
from ray_jobs.engine import EngineDied, Engines, Failure, Model, Sampling, actor_name
from ray_jobs.engine.weights import locate
from ray_jobs.step import Run
from ray_jobs.store import Store

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]
MODEL = Model("vllm", "smollm2-135m", "instruct", options=(("max_model_len", 1024), ("max_num_seqs", 64)))
GREEDY = Sampling(max_tokens=12, temperature=0)
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.fixture(scope="module")
def engines():
    os.environ.update(RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0", RAY_worker_niceness="0")
    own_ray.start(num_cpus=4, include_dashboard=False, object_store_memory=128 << 20)
    made = Engines({
        "writer": MODEL, "base_writer": replace(MODEL, kind="base"), "local": Model("local", MODEL.name, "instruct"),
    })  # fmt: skip
    yield made
    made.shutdown()
    ray.shutdown()


@pytest.fixture(scope="module")
def writer(engines):
    return engines.get("writer")


def test_it_writes_chats_and_continues_and_counts_its_tokens(engines, writer):
    text, chat = writer.generate(
        ["The capital of France is", [{"role": "user", "content": "Name a fruit."}]], GREEDY, [1, 2]
    )
    assert text.text.startswith(" Paris") and text.prompt_tokens == 5 and text.completion_tokens == 12
    assert chat.prompt_tokens > 20 and chat.text.strip()
    assert engines.take_usage()["writer"]["completion_tokens"] == 12 + chat.completion_tokens
    (refused,) = engines.get("base_writer").generate([[{"role": "user", "content": "Hi."}]], GREEDY, [1])
    assert "without a chat template" in refused.reason


def test_several_samples_are_several_seeds_and_the_same_seed_is_the_same_text(writer):
    asked = ["Once upon a time"] * 6, Sampling(max_tokens=16), [1, 2, 3, 4, 5, 1]
    first = [row.text for row in writer.generate(*asked)]
    assert len(set(first)) >= 4 and first[0] == first[5]
    assert [row.text for row in writer.generate(*asked)] == first


def test_more_seeded_prompts_than_one_batch_holds_are_all_answered(writer):
    prompts = [f"Line {n}: " + "the red house by the lake " * 12 for n in range(36)]  # 2900 tokens of 2048
    rows = writer.generate(prompts, Sampling(max_tokens=1), list(range(36)))
    assert sum(row.prompt_tokens for row in rows) > 2048


def test_scores_are_those_of_the_local_engine(engines, writer):
    prompts = ["The capital of France is", "Answer Yes or No. Is snow black?", "A bird can"]
    endings = [
        (" Paris", " London", " the big city of Berlin"),
        ("Safety: Safe", "Safety: Unsafe"),
        (" fly", " read"),
    ]
    ours = engines.get("local").score(prompts, endings)
    for row, other in zip(writer.score(prompts, endings), ours, strict=True):
        assert not row.approximate and row.probabilities == pytest.approx(other.probabilities, abs=0.02)
    assert (
        engines.get("local").generate(prompts[:1], GREEDY, [1])[0].text
        == writer.generate(prompts[:1], GREEDY, [1])[0].text
    )


@pytest.mark.parametrize("sampling", [
    Sampling(max_tokens=8, choice=(" red", " blue")), Sampling(max_tokens=12, regex=r"\d{4}-\d{2}-\d{2}"),
    Sampling(max_tokens=40, schema=json.dumps(SCHEMA | {"additionalProperties": False})),
], ids=["choice", "regex", "schema"])  # fmt: skip
def test_a_text_keeps_to_the_structure_asked_for(writer, sampling):
    rows = writer.generate(["The answer is"] * 4, sampling, [1, 2, 3, 4])
    for row in rows:
        if isinstance(row, Failure):  # whitespace until the budget ended: quarantined with what came back
            assert sampling.schema and row.raw
            continue
        assert not sampling.choice or row.text in sampling.choice
        assert not sampling.schema or isinstance(json.loads(row.text)["a"], int)
    assert any(not isinstance(row, Failure) for row in rows)


def test_a_prompt_longer_than_the_context_fails_alone(writer):
    long, short = writer.generate(["x " * 3000, "The capital of France is"], GREEDY, [1, 2])
    assert "the model's context holds 1024" in long.reason and short.text.startswith(" Paris")
    (row,) = writer.score(["x " * 3000], [("a", "b")])
    assert isinstance(row, Failure)


def test_what_it_cannot_do_is_told_and_it_lives_on(writer):
    with pytest.raises(TypeError, match="cannot score tokens"):
        writer.score_tokens([[{"role": "user", "content": "hi"}]])
    with pytest.raises(TypeError, match="cannot embed"):
        writer.embed(["a"])
    assert writer.generate(["The capital of France is"], GREEDY, [1])[0].text.startswith(" Paris")


def made_all(root):
    """Whether prompts and responses are there, each made by calls of its own role."""
    store = Store(str(root))
    assert store.read("prompts").num_rows > store.read("seeds").num_rows
    assert store.resolve("prompts").provenance.usage["writer"]["calls"] > 10
    assert store.resolve("responses").provenance.usage["responder"]["calls"] > 0
    return any(row["role"] == "responder" and row["text"] for row in store.read("responses").to_pylist())


def test_a_recipe_runs_to_its_responses_on_vllm(engines, tmp_path, monkeypatch):
    """On the engine that is up, which a run would end when it is done."""
    monkeypatch.setattr(Run, "release", lambda _run, _coming: None)
    root = tmp_path / "root"
    assert main(["run", "tiny_vllm", "--root", str(root), "--until", "responses"]) == 0
    assert made_all(root)
    named = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    assert [name for name in named if name.startswith("vllm-")] == [actor_name(MODEL)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """vLLM's own OpenAI-compatible server on loopback; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", locate("smollm2-135m"), "--host",
        "127.0.0.1", "--port", str(port), "--served-model-name", "smollm2", "--dtype", "float32", "--enforce-eager",
        "--max-model-len", "1024", "--max-num-seqs", "64", "--no-enable-chunked-prefill",
    ]  # fmt: skip
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "DO_NOT_TRACK": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(command, env={**os.environ, **settings}, stdout=out, stderr=out)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def wait_for(address, process, log, seconds=600):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise AssertionError(f"no answer within {seconds} s: {log.read_text()[-2000:]}")


def test_vllms_own_server_is_read_like_any_endpoint(engines, server):
    options = (("url", server), ("served_as", "smollm2"), ("top_k", True))
    asked = Engines({"far": Model("openai", "smollm2", "base", options=options)})
    far, prompts = asked.get("far"), ["The capital of France is", "A bird can"]
    assert far.generate(prompts[:1], GREEDY, [1])[0].text.startswith(" Paris")
    endings = [(" Paris", " London"), (" fly", " read")]
    for row, ours in zip(
        far.score(prompts, endings), engines.get("local").score(prompts, endings), strict=True
    ):
        assert row.approximate and row.probabilities[0] > 0.5 < ours.probabilities[0]
    (long,) = far.generate(["x " * 3000], GREEDY, [1])
    assert "refused the row (400)" in long.reason
    chat = replace(asked.roles["far"], kind="instruct")
    client = Engines({"chat": chat}).get("chat")
    (chosen,) = client.generate(
        [[{"role": "user", "content": "Red or blue?"}]], Sampling(max_tokens=24, choice=("red", "blue")), [1]
    )
    assert chosen.text in ("red", "blue")
    asked.shutdown()


def test_a_recipe_runs_to_its_responses_on_an_endpoint(tmp_path, server):
    told = {"OPENAI_BASE_URL": server, "OPENAI_MODEL": "smollm2", "OPENAI_API_KEY": "sk-loopback-0123456789"}
    root = tmp_path / "root"
    command = [sys.executable, "-m", "ray_jobs.cli", "run", "tiny_endpoint", "--root", str(root)]
    done = subprocess.run(
        [*command, "--until", "responses"],
        capture_output=True, text=True, timeout=900, env={**os.environ, **told},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert made_all(root)
    kept = b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file())
    assert told["OPENAI_API_KEY"].encode() not in kept and server.encode() not in kept


def test_a_killed_engine_process_ends_the_call_at_once(engines):
    """Last: it ends the engine of this module."""
    client = Engines(engines.roles).get("writer")
    children = subprocess.run(["ps", "-eo", "pid,ppid,comm"], capture_output=True, text=True).stdout
    actor = ray.get(client.handle.__ray_call__.remote(lambda _actor: os.getpid()))
    (victim,) = [
        int(line.split()[0]) for line in children.splitlines() if f" {actor} " in line and "VLLM" in line
    ]
    with ThreadPoolExecutor(1) as pool:
        asked = ["Tell me"] * 200, Sampling(max_tokens=200), list(range(200))
        waiting = pool.submit(client.generate, *asked)
        time.sleep(2)
        os.kill(victim, signal.SIGKILL)
        started = time.monotonic()
        with pytest.raises(EngineDied, match="died"):
            waiting.result(timeout=120)
    assert time.monotonic() - started < 60

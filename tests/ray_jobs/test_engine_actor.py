"""Models behind named Ray actors: shared, batched, failing fast. One Ray and one tiny model for all tests."""

import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import ray
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ray_jobs import own_ray
from ray_jobs.engine import EngineDied, Engines, Failure, Model, Sampling, actor_name, fingerprint, head
from synth.errors import BadInput


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("actor") / "tiny"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.save_pretrained(path)
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(
        vocab_size=len(fast), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128,
        eos_token_id=fast.eos_token_id,
    )).save_pretrained(path)  # fmt: skip
    return str(path)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    own_ray.start(num_cpus=4, include_dashboard=False, object_store_memory=128 << 20)
    yield
    ray.shutdown()


@pytest.fixture
def engines(folder):
    writer = Model("local", folder, "base", options=(("threads", 1),))
    reader = Model("local", folder, "embedder", options=(("threads", 1), ("layer", 1)))
    made = Engines({"writer": writer, "teacher": writer, "reader": reader})
    yield made
    made.shutdown()


def pid(client):
    return ray.get(client.handle.__ray_call__.remote(lambda actor: os.getpid()))


def test_roles_with_the_same_weights_share_one_process(engines):
    processes = {pid(engines.get(role)) for role in ("writer", "teacher", "reader")}
    assert len(processes) == 1
    vector = engines.get("reader").embed(["hello"])[0]
    assert vector.shape == (16,) and vector.dtype == np.float32


def test_tasks_reach_the_same_process_by_name_and_count_their_own_usage(engines):
    engines.get("writer")

    @ray.remote
    def task(seed):
        client = engines.get("writer")
        text = client.generate(["hello"], Sampling(max_tokens=5), [seed])[0].text
        return pid(client), text, engines.take_usage(), engines.take_usage()

    answers = ray.get([task.remote(seed) for seed in (1, 2, 1)])
    assert {process for process, *_ in answers} == {pid(engines.get("writer"))}
    assert answers[0][1] == answers[2][1] != answers[1][1]
    for _, _, by_role, after in answers:
        usage = by_role["writer"]
        assert usage["calls"] == 1 and usage["prompt_tokens"] == 5 and 1 <= usage["completion_tokens"] <= 5
        assert after == {}
    assert engines.take_usage() == {}


def test_concurrent_calls_are_answered_as_if_alone_and_run_together(engines):
    client = engines.get("writer")
    sampling = Sampling(max_tokens=12)
    alone = [client.generate([f"row {i}"], sampling, [i])[0] for i in range(24)]
    before = ray.get(client.handle.progress.remote())
    with ThreadPoolExecutor(24) as pool:
        together = list(pool.map(lambda i: client.generate([f"row {i}"], sampling, [i])[0], range(24)))
    steps = ray.get(client.handle.progress.remote()) - before
    assert together == alone
    assert steps < 24 * 12 / 2


def test_what_the_caller_did_wrong_is_raised_there_and_the_actor_lives_on(engines):
    client = engines.get("writer")
    with pytest.raises(TypeError, match="cannot score tokens"):
        client.score_tokens([[{"role": "user", "content": "hi"}]])
    with pytest.raises(ValueError, match="different lengths"):
        client.generate(["a", "b"], Sampling(), [1])
    assert client.generate([], Sampling(), []) == []
    assert isinstance(client.generate([""], Sampling(), [1])[0], Failure)
    assert client.score(["a"], [("b", "c")])[0].probabilities == pytest.approx((0.5, 0.5), abs=0.4)


def test_an_unbound_role_and_a_model_that_cannot_be_loaded_are_bad_input(tmp_path, folder):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    engines = Engines({"writer": Model("local", str(tmp_path), "base")})
    with pytest.raises(BadInput, match=r"binds no model to the role 'judge' \(it binds writer\)"):
        engines.get("judge")
    with pytest.raises(BadInput, match=r"role 'writer': model .* cannot be loaded"):
        engines.get("writer")
    engines.shutdown()


def test_a_dead_process_fails_fast_and_a_new_run_starts_a_new_one(engines):
    client = engines.get("writer")
    victim = pid(client)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.generate, ["hello"] * 300, Sampling(max_tokens=100), list(range(300)))
        time.sleep(0.3)
        os.kill(victim, signal.SIGKILL)
        started = time.monotonic()
        with pytest.raises(EngineDied, match="died"):
            waiting.result(timeout=60)
    with pytest.raises(EngineDied, match="died"):
        client.generate(["hello"], Sampling(), [1])
    assert time.monotonic() - started < 30
    again = Engines(engines.roles)
    assert pid(again.get("writer")) != victim
    again.shutdown()


def test_a_stalled_model_is_noticed(engines):
    client = engines.get("writer")
    client.model = replace(client.model, options=(("threads", 1), ("stall_s", 1.0)))
    client.handle.__ray_call__.remote(lambda actor: actor.pool.submit(time.sleep, 20))
    with pytest.raises(EngineDied, match="made no step for 1 s"):
        client.generate(["hello"], Sampling(), [1])


def test_shutdown_keeps_what_it_is_told_to(folder):
    writer = Model("local", folder, "base", options=(("threads", 1),))
    other = Model("local", folder, "base", options=(("threads", 1), ("slots", 2)))
    engines = Engines({"writer": writer, "other": other})
    kept, gone = pid(engines.get("writer")), pid(engines.get("other"))
    assert kept != gone
    engines.shutdown(keep={actor_name(writer)})
    again = Engines(engines.roles)
    assert pid(again.get("writer")) == kept
    assert pid(again.get("other")) != gone
    again.shutdown()


def test_a_head_reads_the_vectors_of_its_base_models_process(tmp_path, engines, folder):
    reader = engines.roles["reader"]
    texts = [f"text {i}" for i in range(12)]
    vectors = np.stack(engines.get("reader").embed(texts))
    output = head.Output("severity", ("Safe", "Unsafe"))
    made = head.fit(vectors, [output], {"severity": np.arange(12) % 2}, "hidden", reader, fingerprint(reader))
    head.save(made, tmp_path / "head")
    voter = Model("local", str(tmp_path / "head"), "head", options=(("threads", 1),))
    voters = Engines({"voter": voter})
    assert actor_name(voter) == actor_name(reader)
    scores = voters.get("voter").score(texts, [("Unsafe", "Safe")] * 12)
    assert [s.probabilities[0] for s in scores] == pytest.approx(made.predict(vectors)["severity"][:, 1])
    assert voters.take_usage()["voter"]["prompt_tokens"] == sum(map(len, texts))
    head.save(head.Head(**{**made.__dict__, "base_fingerprint": "folder@other"}), tmp_path / "head")
    with pytest.raises(BadInput, match="was fitted on folder@other"):
        Engines({"voter": voter}).get("voter")


def test_replicas_share_the_rows_and_a_dead_one_ends_the_call(folder):
    options = (("threads", 1), ("max_replicas", 2), ("idle_s", 600.0))
    single = Model("local", folder, "base", options=(("threads", 1),))
    engines = Engines({"writer": replace(single, options=options), "alone": single})
    client, sampling = engines.get("writer"), Sampling(max_tokens=40)
    texts = [f"row {i}" for i in range(700)]

    def replicas(actor):
        return [replica.handle for replica in next(iter(actor.engines.values())).pool.replicas]

    rows = client.generate(texts, sampling, list(range(700)))
    while len(handles := ray.get(client.handle.__ray_call__.remote(replicas))) < 2:
        rows = client.generate(texts, sampling, list(range(700)))
    assert rows == engines.get("alone").generate(texts, sampling, list(range(700)))
    pids = ray.get([handle.__ray_call__.remote(lambda actor: os.getpid()) for handle in handles])
    assert len({*pids, pid(client)}) == 3
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.generate, texts, Sampling(max_tokens=100), list(range(700)))
        time.sleep(0.3)
        os.kill(pids[0], signal.SIGKILL)
        with pytest.raises(EngineDied, match="a replica of model"):
            waiting.result(timeout=60)
    engines.shutdown()
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(handles[1].progress.remote(), timeout=30)


def test_requests_are_kept_on_the_root_and_not_paid_by_the_next_run(folder, tmp_path):
    writer = Model("local", folder, "base", options=(("threads", 1),))
    spent = []
    for _ in range(2):
        engines = Engines({"writer": writer}, requests=(str(tmp_path), 1 << 20))
        rows = engines.get("writer").generate(["a", "b", "a"], Sampling(max_tokens=4), [1, 1, 1])
        spent.append((engines.take_usage()["writer"], [row.text for row in rows]))
        engines.shutdown()
    (first, texts), (second, again) = spent
    assert texts == again and texts[0] == texts[2]
    assert (first["calls"], first["cached"], second["calls"], second["cached"]) == (2, 1, 0, 3)
    assert second["prompt_tokens"] == second["completion_tokens"] == 0


@pytest.fixture
def endpoint():
    """A server that answers every chat with its seed and every text with a vector of its length."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path.endswith("embeddings"):
                data = [{"index": i, "embedding": [len(text)]} for i, text in enumerate(body["input"])]
                answer = {"data": data, "usage": {"prompt_tokens": 4}}
            else:
                choice = {"message": {"content": f"seed {body['seed']}"}, "finish_reason": "stop"}
                answer = {"choices": [choice], "usage": {"prompt_tokens": 2, "completion_tokens": 3}}
            raw = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def test_an_endpoint_is_called_through_its_actor_like_any_model(endpoint):
    writer = Model("openai", "some-model", "instruct", options=(("url", endpoint),))
    engines = Engines({"writer": writer, "embedder": replace(writer, kind="embedder")})
    prompts = [[{"role": "user", "content": "hi"}]] * 40
    with ThreadPoolExecutor(4) as pool:
        parts = list(
            pool.map(lambda i: engines.get("writer").generate(prompts, Sampling(), [i] * 40), range(4))
        )
    assert [[row.text for row in part] for part in parts] == [[f"seed {i}"] * 40 for i in range(4)]
    assert [vector.tolist() for vector in engines.get("embedder").embed(["a", "bb"])] == [[1.0], [2.0]]
    assert engines.take_usage() == {
        "embedder": {"calls": 2, "cached": 0, "prompt_tokens": 4, "completion_tokens": 0},
        "writer": {"calls": 160, "cached": 0, "prompt_tokens": 320, "completion_tokens": 480},
    }
    with pytest.raises(TypeError, match="cannot score tokens"):
        engines.get("writer").score_tokens([[{"role": "user", "content": "hi"}]])
    engines.shutdown()


@pytest.mark.slow
def test_the_packaged_language_model_writes_scores_and_reads_through_its_actor():
    model = Model("local", "smollm2-135m", "instruct")
    reader = Model("local", "smollm2-135m", "embedder", options=(("layer", 20),))
    engines = Engines({"writer": model, "hidden": reader, "embedder": Model("local", "minilm", "embedder")})
    client = engines.get("writer")
    greedy = Sampling(max_tokens=6, temperature=0)
    assert client.generate(["The capital of France is"], greedy, [1])[0].text.startswith(" Paris")
    chat = client.generate([[{"role": "user", "content": "Name a fruit."}]], greedy, [1])[0]
    assert chat.prompt_tokens > 20 and chat.text.strip()
    scores = client.score(["The capital of France is"], [(" Paris", " London", " the big city of Berlin")])[0]
    assert scores.probabilities[0] > 0.9 and sum(scores.probabilities) == pytest.approx(1)
    assert engines.get("hidden").embed(["hello"])[0].shape == (576,)
    cat, kitten, stocks = engines.get("embedder").embed(["a cat", "a kitten", "stocks fell"])
    assert cat @ kitten > cat @ stocks + 0.3
    engines.shutdown()

"""The vllm engine: an AsyncLLM inside the model's named actor.

Why not `ray.data.llm`: every execution of a Ray Data pipeline builds its actors anew, so a model that takes
20 s to minutes to load would be loaded once per step, unit wave and preview, and its stage keeps one output
of a request and no log-probabilities of stated tokens. Why not Ray Serve: a dead replica is restarted for
ever while its callers wait, where a step should fail at once and resume. So the engine lives where every
other one does, in a named actor that all steps and tasks of a run share, and `replicas.py` spreads it over
several.

Rows go in one by one and vLLM batches them continuously. k samples of one prompt are k rows with k seeds;
prefix caching shares their prefill, and that of templates and of a response's prefixes. Prompts become tokens
here, by the same function as in the local engine, so both read the same tokens.

`score` decodes one step with `logprob_token_ids`, the tokens that may come next; prompt log-probabilities
would switch reading from the prefix cache off. What all continuations begin with needs no step (it cancels
out); a continuation of several tokens needs one more step per token after the first where they part, all from
the cached prefix. The result is that of the local engine: sums of log-probabilities, normalised over the
continuations.
"""

import asyncio
import importlib.util
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from ray_jobs.engine.calls import (
    Completion,
    EngineDied,
    Failure,
    Model,
    Prompt,
    RowFailed,
    Sampling,
    Scores,
    Vector,
)
from ray_jobs.engine.rows import RowEngine, gather, held
from ray_jobs.engine.tokens import encode, end_ids, plain
from ray_jobs.engine.weights import form, locate
from synth.errors import BadInput

CARD_SHARE = (
    0.92  # of its share of a card an engine takes so much: the rest holds CUDA contexts and the neighbours'
)


@dataclass
class Loaded:
    """A running engine, its tokenizer, the tokens that end a text, and the longest sequence."""

    engine: Any
    tokenizer: Any
    ends: list[int]
    context: int
    pool: ThreadPoolExecutor  # one thread: tokenizers are not safe to share
    numbers: Any


class VLLMModel(RowEngine):
    """A model on vLLM. Options: tensor_parallel (1), gpus (a share below 1 is also its share of the card's memory),
    max_model_len, dtype, enforce_eager (True on CPUs), max_num_seqs; on CPUs threads and cache_gb (1)."""

    def __init__(
        self, model: Model, progress: Callable[[], None] = lambda: None, shared: "VLLMModel | None" = None
    ) -> None:
        self.model, self.progress = model, progress
        self.loaded: Loaded = shared.loaded if shared else load(model)

    async def generate_row(self, prompt: Prompt, sampling: Sampling, seed: int) -> Completion:
        ids = await self._encode(prompt)
        answer = await self._ask(ids, max_tokens=sampling.max_tokens, seed=seed, **_sampled(sampling),
                                 stop_token_ids=self.loaded.ends)  # fmt: skip
        told = answer.outputs[0]
        finish = "length" if told.finish_reason == "length" else "stop"
        return Completion(held(told.text, sampling), finish, len(ids), len(told.token_ids))

    async def score_row(self, prompt: Prompt, continuations: tuple[str, ...]) -> Scores:
        ids = await self._encode(prompt)
        endings = [self.loaded.tokenizer(t, add_special_tokens=False)["input_ids"] for t in continuations]
        if not endings or not all(endings):
            raise RowFailed("there is no continuation to score, or an empty one")
        if len(ids) + max(map(len, endings)) > self.loaded.context:
            raise RowFailed(
                f"prompt and continuation exceed the model's context of {self.loaded.context} tokens"
            )
        steps = decisions(endings)
        answers = await gather(self._next_tokens([*ids, *start], following) for start, following in steps)
        logs = dict(zip((start for start, _ in steps), answers, strict=True))
        sums = np.array([
            sum(logs[tuple(end[:at])][token] for at, token in enumerate(end) if tuple(end[:at]) in logs)
            for end in endings
        ])  # fmt: skip
        weights = np.exp(sums - sums.max())
        return Scores(tuple((weights / weights.sum()).tolist()), False, len(ids))

    async def embed(self, texts: Sequence[Prompt]) -> list[Vector | Failure]:
        """One vector per text, as the model's own pooling gives it."""
        if form(self.model) != "pooling":
            raise TypeError(f"model {self.model.name!r} is of kind {self.model.kind!r}: it cannot embed")
        return await gather(self.answered(self._embed(plain(text))) for text in texts)

    async def score_tokens(self, conversations: Sequence[Any]) -> list[Any]:
        """vLLM has no verdict per token: streaming guards run on the local engine."""
        raise TypeError(f"model {self.model.name!r} runs on vLLM: it cannot score tokens")

    async def close(self) -> None:
        """End the engine's own processes."""
        self.loaded.engine.shutdown()

    async def _embed(self, text: str) -> Vector:
        from vllm import PoolingParams

        ids = await self._encode(text)
        answer = await self._last(
            self.loaded.engine.encode({"prompt_token_ids": ids}, PoolingParams(task="embed"), self._number())
        )
        return Vector(answer.outputs.data.float().numpy(), len(ids))

    async def _encode(self, prompt: Prompt) -> list[int]:
        here, loop = self.loaded, asyncio.get_running_loop()
        ids = await loop.run_in_executor(
            here.pool, encode, here.tokenizer, prompt, self.model.kind != "base", here.context
        )
        if isinstance(ids, Failure):
            raise RowFailed(ids.reason, ids.raw)
        return ids

    async def _next_tokens(self, ids: list[int], following: Sequence[int]) -> dict[int, float]:
        """Log-probability of each token of `following` right behind `ids`."""
        answer = await self._ask(ids, max_tokens=1, temperature=0.0, logprob_token_ids=list(following))
        shown = answer.outputs[0].logprobs[0]
        return {token: shown[token].logprob for token in following}

    async def _ask(self, ids: list[int], **sampling: Any) -> Any:
        if form(self.model) == "pooling":
            raise TypeError(f"model {self.model.name!r} is an embedder: it cannot write")
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        try:
            wanted = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **sampling)
            return await self._last(
                self.loaded.engine.generate({"prompt_token_ids": ids}, wanted, self._number())
            )
        except ValueError as error:
            raise RowFailed(f"vLLM refused the row: {_line(error)}") from error

    async def _last(self, outputs: Any) -> Any:
        """The last of a request's outputs. EngineDied when the engine's process is gone."""
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        answer = None
        try:
            async for output in outputs:
                answer = output
        except EngineDeadError as error:
            raise EngineDied(f"the vLLM engine of model {self.model.name!r} died: {_line(error)}") from None
        except EngineGenerateError as error:
            raise RowFailed(f"vLLM could not answer the row: {_line(error)}") from error
        return answer

    def _number(self) -> str:
        return f"row-{next(self.loaded.numbers)}"


def decisions(endings: Sequence[Sequence[int]]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """What has to be read to tell token sequences apart: pairs (what was already said, the tokens that may follow).

    Every place from where they first part is one; what all of them begin with is common and left out.
    """
    following: dict[tuple[int, ...], set[int]] = defaultdict(set)
    for end in endings:
        for at, token in enumerate(end):
            following[tuple(end[:at])].add(token)
    start: tuple[int, ...] = ()
    whole = {tuple(end) for end in endings}
    while len(following.get(start, ())) == 1 and start not in whole:
        start = (*start, *following.pop(start))
    return sorted((said, tuple(sorted(tokens))) for said, tokens in following.items())


def available(model: Model) -> None:
    """BadInput when vLLM is not installed: said before an actor waits for (or a cluster rents) its GPUs."""
    if importlib.util.find_spec("vllm") is None:
        raise BadInput(f"model {model.name!r}: the engine vllm needs the package vllm (the extra 'vllm')")


def load(model: Model) -> Loaded:
    """Start an engine. BadInput, in one sentence, when the model cannot be loaded."""
    available(model)
    import torch

    on_gpu = torch.cuda.is_available()
    _prepare_environment(model, on_gpu)
    from transformers import AutoTokenizer, GenerationConfig
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    source, revision = locate(model.name), model.revision or None
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_arguments(model, source, on_gpu)))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BadInput(f"model {model.name!r} cannot be loaded by vLLM: {_line(error)}") from error
    try:
        stated = GenerationConfig.from_pretrained(source, revision=revision or "main").eos_token_id
    except OSError:  # the model has no generation_config.json
        stated = None
    ends = sorted(end_ids(tokenizer, stated))
    context = engine.vllm_config.model_config.max_model_len
    return Loaded(engine, tokenizer, ends, context, ThreadPoolExecutor(max_workers=1), count())


def engine_arguments(model: Model, source: str, on_gpu: bool) -> dict[str, Any]:
    """What vLLM is started with, from the model's options."""
    cards, share = int(model.option("tensor_parallel", 1)), float(model.option("gpus", 1))
    arguments: dict[str, Any] = {
        "model": source, "revision": model.revision or None, "seed": 0, "disable_log_stats": True,
        "dtype": str(model.option("dtype", "auto" if on_gpu else "float32")),
        "enable_prefix_caching": True, "tensor_parallel_size": cards,
        "enforce_eager": bool(model.option("enforce_eager", not on_gpu)),
        "max_logprobs": -1,
    }  # fmt: skip
    if cards > 1:  # on one node: within an actor vLLM would otherwise ask Ray for the cards a second time
        arguments["distributed_executor_backend"] = "mp"
    if on_gpu:
        arguments["gpu_memory_utilization"] = CARD_SHARE * min(1.0, share)
    else:  # a prefill cut in two makes vLLM rewind the row's generator: one on a CPU cannot, and the engine dies
        arguments["enable_chunked_prefill"] = False
    for name in ("max_model_len", "max_num_seqs"):
        if name in dict(model.options):
            arguments[name] = int(model.option(name, 0))
    if form(model) == "pooling":
        arguments |= {"runner": "pooling", "convert": "embed"}
    return arguments


def _prepare_environment(model: Model, on_gpu: bool) -> None:
    """What vLLM reads from the environment of the processes it starts. Ray gives a worker OMP_NUM_THREADS = 1."""
    os.environ.update(VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if not on_gpu:
        from ray_jobs.engine.causal import physical_cores

        os.environ["OMP_NUM_THREADS"] = str(int(model.option("threads", physical_cores())))
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(int(model.option("cache_gb", 1)))


def _sampled(sampling: Sampling) -> dict[str, Any]:
    """Sampling in vLLM's words."""
    words: dict[str, Any] = {
        "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k,
        "stop": list(sampling.stop),
    }  # fmt: skip
    structure = {"choice": list(sampling.choice), "regex": sampling.regex, "json": sampling.schema}
    if wanted := {name: value for name, value in structure.items() if value}:
        from vllm.sampling_params import StructuredOutputsParams

        words["structured_outputs"] = StructuredOutputsParams(**wanted)
    return words


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

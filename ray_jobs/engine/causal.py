"""A causal language model on torch: its tokenizer, its slot cache, and one forward primitive for every
call."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from ray_jobs.engine.cache import SlotCache
from ray_jobs.engine.calls import Failure, Model, Prompt
from ray_jobs.engine.prefix import plan
from ray_jobs.engine.tokens import encode, end_ids
from ray_jobs.engine.weights import locate
from synth.errors import BadInput

PREFILL_TOKENS = (
    4096  # tokens of one prefill pass: enough to fill the device, small enough for its activations
)


@dataclass(frozen=True)
class Placement:
    """Where a model runs: device, dtype ("auto": bfloat16 where it is fast) and the bytes its cache may
    take."""

    device: torch.device
    dtype: torch.dtype
    cache_bytes: int
    slots: int


def place(model: Model) -> Placement:
    """Read the options device, dtype, threads, cache_gb and slots, and set torch's threads.

    Ray gives a worker OMP_NUM_THREADS = its num_cpus (1): without `threads` a model would compute on one
    core.
    """
    name = str(model.option("device", "cuda" if torch.cuda.is_available() else "cpu"))
    on_cpu = name == "cpu"
    if on_cpu:
        torch.set_num_threads(int(model.option("threads", physical_cores())))
    dtype = str(model.option("dtype", "float32" if on_cpu else "bfloat16"))
    if dtype == "auto":
        dtype = "bfloat16" if not on_cpu or torch.cpu._is_amx_tile_supported() else "float32"
    cache_bytes = int(float(model.option("cache_gb", 1.0 if on_cpu else 8.0)) * 2**30)
    slots = int(model.option("slots", 64 if on_cpu else 256))
    return Placement(torch.device(name), getattr(torch, dtype), cache_bytes, slots)


def physical_cores() -> int:
    """Cores this process may use, hyper-threads not counted twice where the system says so."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


class CausalLM:
    """A loaded model. Raises BadInput, in one sentence, when the folder or name cannot be loaded as one."""

    def __init__(self, model: Model) -> None:
        transformers_logging.disable_progress_bar()
        self.place = place(model)
        source, revision = locate(model.name), model.revision or None
        try:
            config = AutoConfig.from_pretrained(source, revision=revision)
            self.tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
            self.model = AutoModelForCausalLM.from_pretrained(
                source, revision=revision, dtype=self.place.dtype, config=config
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise BadInput(f"model {model.name!r} cannot be loaded as a language model: {cause}") from error
        self.model.to(device=self.place.device).eval().requires_grad_(False)  # type: ignore[call-arg]
        self.config = self.model.config.get_text_config()
        self.context = self._context(model.name)
        self.cache = SlotCache(self.config, self.place.dtype, self.place.device)
        self.end_ids = end_ids(self.tokenizer, getattr(self.model.generation_config, "eos_token_id", None))

    def _context(self, name: str) -> int:
        """The longest sequence; a sliding window bounds it, since within the window attention is full."""
        kinds = set(getattr(self.config, "layer_types", None) or ["full_attention"])
        if not kinds <= {"full_attention", "sliding_attention"}:
            raise BadInput(
                f"model {name!r} has layers of type {', '.join(sorted(kinds))}, which keep no plain cache"
            )
        context = int(getattr(self.config, "max_position_embeddings", 0) or 2048)
        window = getattr(self.config, "sliding_window", None)
        return min(context, window) if window and "sliding_attention" in kinds else context

    def encode(self, prompt: Prompt, chats: bool) -> list[int] | Failure:
        """Token ids of a prompt; messages go through the chat template if the model `chats`."""
        return encode(self.tokenizer, prompt, chats, self.context)

    def room(self, longest: int) -> int:
        """How many slots of `longest` tokens the cache may have."""
        return max(1, min(self.place.slots, self.place.cache_bytes // (self.cache.token_bytes * longest)))

    def extend(
        self, token_BQ: torch.Tensor, start_B: torch.Tensor, low: int = 0, logits: bool = True
    ) -> torch.Tensor | None:
        """Feed Q tokens to slots low … low+B-1, each from its own position; logits [B, Q, V] if asked for.

        A query at position p attends to the positions 0 … p of its slot, whatever lies beyond.
        """
        rows, queries = token_BQ.shape
        self.cache.aim(low, low + rows, start_B, queries)
        position_BQ = self.cache.position_BQ
        mask = None
        if (
            self.cache.level != 0 or queries == 1
        ):  # from position 0 on, the model's own causal mask is cheaper
            mask = self._mask(position_BQ[:1] if self.cache.level is not None else position_BQ)
        network = self.model if logits else self.model.base_model
        output = network(
            input_ids=token_BQ, attention_mask=mask, position_ids=position_BQ,
            past_key_values=self.cache, use_cache=True,
        )  # fmt: skip
        return output.logits if logits else None

    def _mask(self, position_BQ: torch.Tensor) -> torch.Tensor:
        """Additive mask [B, 1, Q, width]: 0 up to a query's own position, the dtype's minimum beyond."""
        key_W = torch.arange(self.cache.width, device=position_BQ.device)
        hidden = key_W > position_BQ[:, None, :, None]
        mask = torch.zeros(hidden.shape, dtype=self.place.dtype, device=position_BQ.device)
        return mask.masked_fill_(hidden, torch.finfo(self.place.dtype).min)

    def prefill(self, prompts: Sequence[list[int]], known: Sequence[list[int]] = ()) -> list[int]:
        """Put all but the last token of each prompt into the slots behind those of `known` (prompts whose
        slots, 0 … len(known)-1, hold them already). Returns which prompt each new slot got.

        No token is computed twice: what a prompt shares with another one is copied from it (see prefix.py).
        The logits come later, when the last token is fed.
        """
        order: list[int] = []
        slot_of = {number: number for number in range(len(known))}
        for wave in plan([*known, *prompts], len(known)):
            low = len(known) + len(order)
            for slot, loan in enumerate(wave, start=low):
                slot_of[loan.prompt] = slot
                order.append(loan.prompt - len(known))
                if loan.shared:
                    self.cache.copy(slot_of[loan.source], slot, loan.shared)
            self._feed(
                [(loan.shared, prompts[loan.prompt - len(known)][loan.shared : -1]) for loan in wave], low
            )
        return order

    def _feed(self, rows: Sequence[tuple[int, list[int]]], low: int) -> None:
        """Compute the tokens of each row (start, tokens), longest first, some thousand at a time."""
        at = 0
        while at < len(rows) and rows[at][1]:
            longest = len(rows[at][1])
            part = rows[at : at + max(1, PREFILL_TOKENS // longest)]
            token_BQ = self.tensor([tokens + [0] * (longest - len(tokens)) for _, tokens in part])
            start_B = self.tensor([start for start, _ in part])
            self.extend(token_BQ, start_B, low + at, logits=False)
            at += len(part)

    def tensor(self, values: object) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.place.device)

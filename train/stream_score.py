"""A streaming guard over whole conversations at once, and the door through which checkpoints are loaded.

Scoring woven rows (train/weave.py) gives the same numbers as streaming them token by token, at batch speed;
conversations that share a prompt pay for it once.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from synth.errors import BadInput
from train.data import Encoded, chat_ids, special_id, text_ids
from train.stream_model import PUBLISHED, StreamGuard, StreamGuardConfig, read_published_config
from train.trunk import run
from train.weave import collate, pack

ROW_LENGTH, ROWS_PER_STEP = 512, 4


@dataclass(frozen=True)
class ConversationScores:
    """Probabilities at the end of the last user turn [R], [C], and per token of the assistant turn after it.

    risk [T, R], category [T, C] and character `offsets` [T, 2] within that turn; T is 0 where there is none.
    """

    query_risk: np.ndarray
    query_category: np.ndarray
    offsets: np.ndarray
    risk: np.ndarray
    category: np.ndarray
    tokens: int


@dataclass(frozen=True)
class _Laid:
    ids: np.ndarray
    query: int
    start: int
    offsets: np.ndarray


def load_guard(folder: str | Path) -> tuple[StreamGuard, PreTrainedTokenizerBase]:
    """A streaming guard, in either layout, and its tokenizer; BadInput in one sentence for anything else."""
    path = Path(folder)
    read_config(path)
    try:
        loaded: Any = StreamGuard.from_pretrained(path, output_loading_info=True)
        guard, report = loaded
    except (RuntimeError, SafetensorError) as error:
        raise BadInput(f"{path}: the weights do not fit the config ({str(error).splitlines()[0]})") from error
    for what in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if report.get(what):
            name = min(map(str, report[what]))
            raise BadInput(f"{path}: {what.replace('_', ' ')} in the weights, {name} first")
    return guard.eval(), AutoTokenizer.from_pretrained(str(path))


def read_config(folder: str | Path) -> StreamGuardConfig:
    """A streaming guard's config, in either layout, without its weights; BadInput for anything else."""
    path = Path(folder)
    config = path / "config.json"
    if not config.is_file():
        raise BadInput(f"{path}: no config.json there, so this is no checkpoint of a guard")
    try:
        about = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{config}: not readable as JSON") from error
    published = PUBLISHED in (about.get("architectures") or [])
    if about.get("model_type") != "guardmill_stream" and not published:
        raise BadInput(f"{config}: a {about.get('model_type')} model, not a streaming guard")
    if not list(path.glob("*.safetensors")):
        raise BadInput(f"{path}: no safetensors file there; weights in any other format are not read")
    return read_published_config(path) if published else StreamGuardConfig.from_pretrained(path)


@torch.inference_mode()
def score_conversations(
    guard: StreamGuard,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Mapping[str, str]]],
    row_length: int = ROW_LENGTH,
) -> list[ConversationScores]:
    """Scores every conversation (it ends with a user turn, or with the assistant's after one)."""
    laid = [_lay(tokenizer, conversation, number) for number, conversation in enumerate(conversations)]
    samples = [Encoded(each.ids, {"place": np.arange(len(each.ids))}) for each in laid]
    scores = {
        index: _read(guard, hidden, laid[index]) for index, hidden in states(guard, samples, row_length)
    }
    return [scores[index] for index in range(len(laid))]


@torch.inference_mode()
def states(
    guard: StreamGuard, samples: Sequence[Encoded], row_length: int = ROW_LENGTH
) -> Iterator[tuple[int, torch.Tensor]]:
    """Each sample's number and the last hidden states of its labelled positions [n, D], rows woven, in no order."""
    longest = max((len(sample) for sample in samples), default=1)
    rows = pack([sample.ids for sample in samples], max(row_length, longest), seed=0)
    for at in range(0, len(rows), ROWS_PER_STEP):
        step = rows[at : at + ROWS_PER_STEP]
        batch = {name: tensor.to(guard.device) for name, tensor in collate(step, samples).items()}
        hidden = run(guard.model, batch["position_ids"], batch["end"], input_ids=batch["input_ids"])
        indices = [i for row in step for i in row]
        counts = torch.bincount(batch["segment"], minlength=len(indices)).tolist()
        yield from zip(indices, hidden.flatten(0, 1)[batch["at"]].split(counts), strict=True)


def _lay(tokenizer: PreTrainedTokenizerBase, conversation: Sequence[Mapping[str, str]], number: int) -> _Laid:
    roles = [message["role"] for message in conversation]
    if not roles or roles[-1] not in ("user", "assistant") or "user" not in roles[-2:]:
        raise BadInput(f"conversation {number}: it must end with a user turn, or an assistant turn after one")
    answered = roles[-1] == "assistant"
    turns = conversation[:-1] if answered else conversation
    newline = text_ids(tokenizer, "\n")
    ids = chat_ids(tokenizer, turns)
    query = len(ids) - len(newline) - 1
    if not answered:
        return _Laid(np.array(ids), query, len(ids), np.zeros((0, 2), dtype=np.int64))
    ids += [special_id(tokenizer, "<|im_start|>"), *text_ids(tokenizer, "assistant\n")]
    text = conversation[-1]["content"]
    content = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )
    offsets = np.array(content.offset_mapping, dtype=np.int64).reshape(-1, 2)
    return _Laid(np.array(ids + content.input_ids), query, len(ids), offsets)


def _read(guard: StreamGuard, hidden: torch.Tensor, laid: _Laid) -> ConversationScores:
    def both(states: torch.Tensor, side: str) -> list[np.ndarray]:
        return [logits.float().softmax(-1).cpu().numpy() for logits in guard.heads(states, side)]

    query = both(hidden[laid.query], "query_")
    response = both(hidden[laid.start :], "")
    return ConversationScores(query[0], query[1], laid.offsets, response[0], response[1], len(laid.ids))

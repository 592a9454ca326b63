"""Rows become token sequences with targets (packing them into rows is train/weave.py).

Conversations are laid out in ChatML, as Qwen and SmolLM write it: `<|im_start|>role\\n…<|im_end|>\\n` per
message. Every piece of content is tokenized on its own with its special tokens split, so a text that spells
`<|im_end|>` cannot end its turn. Targets stand at the position that *predicts* or *carries* them (no shift in
the losses):

- Gen: `labels[t] = ids[t + 1]` where `t + 1` lies in the answer or is the `<|im_end|>` after it.
- Stream: `branch` says which pair of heads a position trains (0 query, 1 response), `risk` and `category`
  what they should say. The query position is the `<|im_end|>` that ends the last user turn; tokens of the
  last response are Safe before the onset and carry the sample's label from it on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from synth.errors import BadInput
from train.labels import LabelMaps

IGNORE = -100
QUERY, RESPONSE = 0, 1
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

Message = Mapping[str, str]


@dataclass(frozen=True)
class Encoded:
    """One sample: `ids` [L], targets by name, each [L] with IGNORE where nothing is asked, and its weight."""

    ids: np.ndarray
    targets: dict[str, np.ndarray]
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class GenExample:
    """A rendered moderation prompt and the right answer; `label` is its class for balancing."""

    id: str
    group_id: str
    prompt: str
    answer: str
    label: str = ""


@dataclass(frozen=True)
class StreamExample:
    """A conversation that ends with a user turn or, with `response`, with the assistant's.

    A risk of None leaves that branch untrained. `onset` is the character offset in `response` from which it
    carries `response_risk`; None where that is the mildest risk. A flagged response without an onset trains
    nothing, unless it is `unmarked`: nobody said where it turned, so its second half carries the risk and the first
    trains nothing. `label` is its class for balancing.
    """

    id: str
    group_id: str
    prompt: str
    response: str = ""
    history: tuple[Message, ...] = ()
    query_risk: str | None = None
    query_category: str | None = None
    response_risk: str | None = None
    response_category: str | None = None
    onset: int | None = None
    unmarked: bool = False
    label: str = ""


def special_id(tokenizer, token: str) -> int:
    """The id of a ChatML marker; BadInput where the tokenizer has none."""
    index = tokenizer.convert_tokens_to_ids(token)
    if index is None or index == tokenizer.unk_token_id:
        raise BadInput(
            f"the tokenizer of {tokenizer.name_or_path!r} has no {token} token: not a ChatML backbone"
        )
    return index


def text_ids(tokenizer, text: str) -> list[int]:
    """Token ids of content, in which markers are plain text."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids


def message_ids(tokenizer, message: Message) -> list[int]:
    """`<|im_start|>role\\ncontent<|im_end|>`, without the newline after it."""
    head = [special_id(tokenizer, "<|im_start|>"), *text_ids(tokenizer, message["role"] + "\n")]
    return [*head, *text_ids(tokenizer, message["content"]), special_id(tokenizer, "<|im_end|>")]


def chat_ids(tokenizer, messages: Sequence[Message], add_generation_prompt: bool = False) -> list[int]:
    """The whole conversation in ChatML; what CHAT_TEMPLATE writes, safe against markers in the content."""
    newline = text_ids(tokenizer, "\n")
    ids = [i for message in messages for i in (*message_ids(tokenizer, message), *newline)]
    if add_generation_prompt:
        ids += [special_id(tokenizer, "<|im_start|>"), *text_ids(tokenizer, "assistant\n")]
    return ids


def check_classes(examples: Sequence[GenExample | StreamExample]) -> None:
    """BadInput where all examples say the same, so that there is nothing to learn. A response that turns somewhere says
    two things by itself: its tokens before the onset are safe."""
    said: set[str | None] = set()
    for example in examples:
        if isinstance(example, GenExample):
            said.add(example.answer)
        else:
            said |= {example.query_risk, example.response_risk} - {None}
            said |= {"safe until the onset"} if example.onset else set()
    if len(said) < 2:
        only = str(min(map(str, said), default="nothing")).splitlines()[0]
        raise BadInput(f"all {len(examples)} examples say {only!r}: a guard needs two classes at least")


def encode_gen(example: GenExample, tokenizer) -> Encoded:
    """Prompt and answer as one exchange; the loss falls on the answer and on the marker that ends it."""
    prompt = chat_ids(tokenizer, [{"role": "user", "content": example.prompt}], add_generation_prompt=True)
    answer = [*text_ids(tokenizer, example.answer), special_id(tokenizer, "<|im_end|>")]
    ids = np.array(prompt + answer, dtype=np.int64)
    labels = np.full(len(ids), IGNORE, dtype=np.int64)
    labels[len(prompt) - 1 : -1] = answer
    return Encoded(ids, {"labels": labels})


def encode_stream(example: StreamExample, tokenizer, maps: LabelMaps, max_length: int) -> Encoded:
    """Conversation and per-token targets; a response is cut at `max_length` (the rest never sees that)."""
    turns = [*example.history, {"role": "user", "content": example.prompt}]
    newline = text_ids(tokenizer, "\n")
    ids = chat_ids(tokenizer, turns)
    query = len(ids) - len(newline) - 1
    response = _Response.of(example, tokenizer) if example.response_risk is not None else None
    head_length = len(ids)
    if response is not None:
        ids += response.head
        head_length = len(ids)
        ids += response.ids
    ids = ids[:max_length]
    targets = {name: np.full(len(ids), IGNORE, dtype=np.int64) for name in ("branch", "risk", "category")}
    if example.query_risk is not None and query < len(ids):
        targets["branch"][query] = QUERY
        targets["risk"][query] = maps.risk_index(example.query_risk, f"example {example.id}")
        targets["category"][query] = _category(
            example.query_category, example.query_risk, maps.query_category, maps
        )
    if response is not None and head_length < len(ids):
        _response_targets(targets, head_length, response, example, maps)
    return Encoded(np.array(ids, dtype=np.int64), targets)


@dataclass(frozen=True)
class _Response:
    head: list[int]
    ids: list[int]
    ends: list[int]  # character offset at which each token ends

    @classmethod
    def of(cls, example: StreamExample, tokenizer) -> "_Response":
        head = [special_id(tokenizer, "<|im_start|>"), *text_ids(tokenizer, "assistant\n")]
        read = tokenizer(
            example.response, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        return cls(head, read.input_ids, [end for _, end in read.offset_mapping])


def _response_targets(
    targets: dict[str, np.ndarray], start: int, response: _Response, example: StreamExample, maps: LabelMaps
) -> None:
    assert example.response_risk is not None
    risk = maps.risk_index(example.response_risk, f"example {example.id}")
    safe = maps.risk.index(maps.safe[0])
    if example.response_risk in maps.safe:
        onset = len(example.response)
        safe = risk
    elif example.onset is not None:
        onset = example.onset
    elif example.unmarked:
        start += (len(targets["risk"]) - start) // 2
        onset = -1
    else:
        return
    category = _category(example.response_category, example.response_risk, maps.response_category, maps)
    kept = len(targets["risk"]) - start
    flagged = np.array(response.ends[:kept]) > onset
    targets["branch"][start:] = RESPONSE
    targets["risk"][start:] = np.where(flagged, risk, safe)
    targets["category"][start:] = np.where(flagged, category, IGNORE)


def _category(name: str | None, risk: str, names: Sequence[str], maps: LabelMaps) -> int:
    """IGNORE for a safe row, and for a category the head of this side does not have."""
    return names.index(name) if name in names and risk not in maps.safe else IGNORE

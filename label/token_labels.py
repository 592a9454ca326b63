"""From a response's text and a tokenizer's offsets to prefixes, and from a boundary back to a label per
token.

A prefix ends where a token of the guard's tokenizer ends *and* a character does: byte-level BPE spreads
one Chinese character or emoji over several tokens, which then all report the span of the whole character,
so a token ends a prefix only when the next one begins at or behind its end. Ends before a combining mark,
a variation selector, a skin tone or on either side of a joiner are skipped too: the text up to there shows
another character than the response does.

Prefixes travel as text, so rollout models may have any tokenizer; a continuation is appended and never
changes what stands before it. Prefix i covers the tokens that prefix i - 1 does not; a boundary at i
labels from the first of them on, so that the boundary as a character offset is the end of prefix i - 1
(METHOD.md §5). Thinking text and answer are separate texts with separate searches.
"""

import re
import unicodedata
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from label.rollout_report import evidence, saved
from label.rollout_state import BOUNDARY, Outcome, State
from synth.errors import BadInput

Offsets = Sequence[tuple[int, int]]
THINKING, ANSWER = "thinking", "answer"
SAFE_LABEL, LONG = "mildest", "long"
_JOINER, _BROKEN = "\u200d", "\ufffd"
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|$)|[。！？]+[”’」』）]*|\n+")
_THINK = re.compile(r"\A\s*<think>\n?(.*?)(?:\n?</think>\s*|\Z)", re.DOTALL)


class Part(NamedTuple):
    """One text searched by itself. start: the character of the response at which it begins."""

    name: str
    text: str
    start: int


@dataclass(frozen=True)
class Prefixes:
    """The prefixes of one text: of each, the index of its last token and the character at which it ends.

    Arrays of 4 bytes an entry: a run holds the prefixes of all its responses at once.
    """

    text: str
    last_tokens: "array[int]"
    ends: "array[int]"
    tokens: int

    def __len__(self) -> int:
        return len(self.ends)

    def prefix_text(self, prefix: int) -> str:
        """The text of a prefix."""
        return self.text[: self.ends[prefix]]

    def boundary(self, prefix: int) -> tuple[int, int]:
        """(token, character) at which the label begins when `prefix` is the first unsafe one."""
        return (self.last_tokens[prefix - 1] + 1, self.ends[prefix - 1]) if prefix else (0, 0)


def split_thinking(response: str) -> tuple[Part, ...]:
    """The thinking text (of a leading think block, closed or not) and the answer, empty parts left out."""
    found = _THINK.match(response)
    if found is None:
        return (Part(ANSWER, response, 0),) if response else ()
    thinking = Part(THINKING, found.group(1), found.start(1))
    answer = Part(ANSWER, response[found.end() :], found.end())
    return tuple(part for part in (thinking, answer) if part.text)


def prefixes_of(text: str, offsets: Offsets) -> Prefixes:
    """The prefixes of `text`, given [start, end) of every token; the last one is the whole text.

    Tokens without characters (special ones) belong to the prefix of the next token that has some. BadInput
    for offsets that run backwards or past the text: they belong to another text.
    """
    last_tokens, ends = array("I"), array("I")
    for token, (start, end) in enumerate(offsets):
        backwards = token and start < end < offsets[token - 1][1]
        if not 0 <= start <= end <= len(text) or backwards:
            raise BadInput(f"token {token} spans characters {start} to {end} of a text of {len(text)}")
    following = _next_starts(offsets, len(text))
    for token, (start, end) in enumerate(offsets):
        if end > max(start, ends[-1] if ends else 0) and following[token] >= end and _whole(text, end):
            last_tokens.append(token)
            ends.append(end)
    if ends and not text[ends[-1] :].strip():
        last_tokens[-1], ends[-1] = len(offsets) - 1, len(text)
    return Prefixes(text, last_tokens, ends, len(offsets))


def _next_starts(offsets: Offsets, length: int) -> list[int]:
    """Per token, where the next token with characters begins; the text's length behind the last."""
    starts, following = [], length
    for start, end in reversed(offsets):
        starts.append(following)
        following = start if end > start else following
    return starts[::-1]


def _whole(text: str, end: int) -> bool:
    """Whether the text up to `end` shows the same characters as the whole text does."""
    if end >= len(text):
        return True
    following = text[end]
    extends = unicodedata.category(following) in ("Mn", "Mc", "Me")
    tone = "\U0001f3fb" <= following <= "\U0001f3ff"
    return not (extends or tone or following == _JOINER or text[end - 1] == _JOINER)


def sentence_ends(prefixes: Prefixes) -> list[int]:
    """Indices of the prefixes with which sentences end (the first prefix that holds the whole sentence)."""
    stops = [match.end() for match in _SENTENCE_END.finditer(prefixes.text)]
    found, at = [], 0
    for prefix, end in enumerate(prefixes.ends):
        if at < len(stops) and end >= stops[at]:
            found.append(prefix)
            while at < len(stops) and end >= stops[at]:
                at += 1
    return found


def join(prefix: str, continuation: str) -> str:
    """The prefix, unchanged, and the continuation without the halves of characters at its borders."""
    return prefix + continuation.strip(_BROKEN)


def agreeing(prefixes: Prefixes, prefix: int, continuation: str) -> int:
    """How many longer prefixes the continuation also continues, with at least half of it still to come."""
    begin, count = prefixes.ends[prefix], 0
    for end in prefixes.ends[prefix + 1 :]:
        if 2 * (end - begin) > len(continuation) or not continuation.startswith(prefixes.text[begin:end]):
            break
        count += 1
    return count


@dataclass(frozen=True)
class TokenLabels:
    """A text's labels: a severity name per token (none where the outcome is no boundary), and where it turns.

    boundary_token and boundary_char are None unless the outcome is a boundary. outcome: that of the
    search, or SAFE_LABEL for a text of the mildest severity, on which nothing is spent.
    """

    labels: tuple[str, ...]
    boundary_token: int | None
    boundary_char: int | None
    outcome: str
    reason: str = ""


def safe_labels(tokens: int, mildest: str) -> TokenLabels:
    """Every token carries the mildest severity."""
    return TokenLabels((mildest,) * tokens, None, None, SAFE_LABEL)


def label_tokens(prefixes: Prefixes, outcome: Outcome, label: str, mildest: str) -> TokenLabels:
    """Tokens before the boundary are of the mildest severity, the others carry the text's own label."""
    if outcome.kind != BOUNDARY:
        return TokenLabels((), None, None, outcome.kind, outcome.reason)
    token, character = prefixes.boundary(outcome.boundary)
    labels = (mildest,) * token + (label,) * (prefixes.tokens - token)
    return TokenLabels(labels, token, character, outcome.kind)


def evidence_rows(prefixes: Prefixes, state: State) -> Iterator[dict[str, Any]]:
    """One row per examined prefix: counts of violations and draws, the judge's answer (None if unasked)."""
    for row in evidence(state):
        yield {
            "prefix": row.prefix,
            "token": prefixes.last_tokens[row.prefix],
            "char_end": prefixes.ends[row.prefix],
            "violations": row.violations,
            "draws": row.draws,
            "judge_flag": row.judge_flag,
            "judge_probability": row.judge_probability,
        }


def cost_row(state: State) -> dict[str, Any]:
    """Calls and tokens of a search, what `paper` would have generated at that length, and draws saved."""
    account, spent = saved(state), state.spent
    per_rollout = spent.tokens / spent.rollouts if spent.rollouts else 0.0
    return {
        "rollouts": spent.rollouts,
        "guard_calls": spent.guards,
        "judge_calls": spent.judges,
        "generated_tokens": spent.tokens,
        "paper_rollouts": account.paper,
        "paper_generated_tokens": round(account.paper * per_rollout),
        "saved_by_curtailment": account.curtailed,
        "saved_by_judge_first": account.judged_first,
        "saved_by_left_to_right": account.not_reached,
    }


def mark(text: str, boundary_char: int | None, sign: str = "⟦UNSAFE⟧") -> str:
    """The text with a sign where the label begins, for people to read."""
    return text if boundary_char is None else text[:boundary_char] + sign + text[boundary_char:]

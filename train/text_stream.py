"""Tokens of a text that is still being written, by a tokenizer other than its writer's.

After every piece of text the tokens are those of the whole text so far, so a guard sees what it was trained on however
the text was cut. A later piece may change the last tokens ("ki", then "kite"): they are taken back and given anew. Only
the text behind the last *cut* is tokenized again, so a new piece costs the same however much came before.

A cut is a place that every pre-tokenizer of the byte-level family (GPT-2, Llama 3, Qwen, o200k) splits, whatever
follows and whatever stood before: before a space that does not follow white space (in all of them a space can only
begin a match, or stand in a run of white space), and between a letter and a punctuation mark other than an apostrophe
(a run of letters ends there). Neither is a place where NFC composes. Characters that occur inside an added token
("<think>") are no cuts. Other tokenizers have no cuts, and the whole text is tokenized every time. Tokens before the
last cut are final; they end at whole characters.
"""

import json
import unicodedata
from itertools import pairwise
from typing import Any

SPACE = " "
APOSTROPHES = "'\u2018\u2019\u02bc\uff07"
REPLACEMENT = "\ufffd"
PROBE = ", the cat  sat (on 12.5 mats), it's - well... \n\n  fine; 你好，世界。 Öl! ok? a_b \U0001f600 x"


class TextStream:
    """`text` so far, the `ids` of its tokens and their character `offsets`; the first `final` tokens do not change."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.text = ""
        self.ids: list[int] = []
        self.offsets: list[tuple[int, int]] = []
        self.final = 0
        self._cut = 0  # where the text behind the last cut begins
        self._half = ""  # the first half of a surrogate pair whose second has not come
        self._never = uncuttable(tokenizer)

    def push(self, piece: str) -> int:
        """Takes the next piece of text. Returns how many of the tokens before were taken back; the new ones follow."""
        piece, self._half = whole_characters(self._half + piece)
        return self._extend(piece) if piece else 0

    def end(self) -> int:
        """The text is complete: all its tokens are final. Returns as `push`."""
        back = self._extend(REPLACEMENT) if self._half else 0
        self._half, self.final = "", len(self.ids)
        return back

    def final_text(self) -> int:
        """How many characters the final tokens cover."""
        return self.offsets[self.final - 1][1] if self.final else 0

    def pieces(self, first: int = 0) -> list[str]:
        """The text of each token from `first` on. Of tokens that share a character the last one carries it."""
        done = self.offsets[first - 1][1] if first else 0
        out = []
        for index in range(first, len(self.ids)):
            end = self.offsets[index][1]
            shares = index + 1 < len(self.ids) and self.offsets[index + 1][0] < end
            out.append("" if shares else self.text[done:end])
            done = done if shares else end
        return out

    def _extend(self, piece: str) -> int:
        old, start = len(self.text), self._cut
        self.text += piece
        read = self.tokenizer(
            self.text[start:],
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
        )
        before = self.ids[self.final :]
        same = next((i for i, (a, b) in enumerate(zip(before, read.input_ids, strict=False)) if a != b), None)
        kept = min(len(before), len(read.input_ids)) if same is None else same
        self.ids[self.final :] = read.input_ids
        self.offsets[self.final :] = self._whole([(start + a, start + b) for a, b in read.offset_mapping])
        self._advance(old)
        return len(before) - kept

    def _whole(self, offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Offsets that leave nothing out: a mark that NFC joined to its letter belongs to that letter's token, and a
        character the vocabulary lacks (SmolLM2 has no token for some control characters) to a neighbour's."""
        if not offsets:
            return []
        starts = [*(start for start, _ in offsets[1:]), len(self.text)]
        gaps = [
            self.text[end:following].rstrip() for (_, end), following in zip(offsets, starts, strict=True)
        ]
        out = [(start, end + len(gap)) for (start, end), gap in zip(offsets, gaps, strict=True)]
        return [*out[:-1], (out[-1][0], len(self.text))]

    def _advance(self, old: int) -> None:
        """Moves to the last cut of the text; a cut needs the character on either side of it."""
        for at in range(len(self.text) - 1, max(self._cut, old - 1), -1):
            if is_cut(self.text, at, self._never):
                self.final += sum(start < at for start, _ in self.offsets[self.final :])
                self._cut = at
                return


def is_cut(text: str, at: int, never: frozenset[str] | None) -> bool:
    """Whether tokens before and after position `at` are independent of each other."""
    here, before = text[at], text[at - 1]
    if never is None or here in never:
        return False
    if here == SPACE:
        return not before.isspace()
    mark = unicodedata.category(here).startswith("P") and here not in APOSTROPHES
    return mark and unicodedata.category(before).startswith("L")


def uncuttable(tokenizer: Any) -> frozenset[str] | None:
    """Characters that may stand inside an added token, where no cut may be; None for a tokenizer without cuts."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    about = json.loads(backend.to_str()) if backend is not None else {}
    if "ByteLevel" not in _kinds(about.get("pre_tokenizer")) or _kinds(about["normalizer"]) - {"NFC"}:
        return None
    added = [token for token in about["added_tokens"] if not token["special"]]
    inside = {c for token in added for c in token["content"][1:]}
    if any(token["rstrip"] or token["lstrip"] for token in added):
        inside.add(SPACE)
    never = frozenset(inside)
    return never if _splits_at_cuts(tokenizer, never) else None


def _splits_at_cuts(tokenizer: Any, never: frozenset[str]) -> bool:
    """Whether the parts of a text between cuts give the tokens of the whole (no prefix space, no merging across)."""
    cuts = [0, *(at for at in range(1, len(PROBE)) if is_cut(PROBE, at, never)), len(PROBE)]
    parts = [PROBE, *(PROBE[a:b] for a, b in pairwise(cuts))]
    whole, *each = (
        tokenizer(t, add_special_tokens=False, split_special_tokens=True).input_ids for t in parts
    )
    return whole == [i for ids in each for i in ids]


def _kinds(part: Any) -> set[str]:
    """The types of a serialised pre-tokenizer or normalizer, those of a sequence one by one."""
    if part is None:
        return set()
    members = part.get("pretokenizers") or part.get("normalizers")
    return set().union(*map(_kinds, members)) if members else {part["type"]}


def whole_characters(text: str) -> tuple[str, str]:
    """Text that can be encoded, and the half of a surrogate pair at its end (JSON may cut an emoji in two). A half
    without its other half becomes U+FFFD."""
    half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
    body = text.removesuffix(half) if half else text
    return body.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"), half


def encodable(text: str) -> str:
    """The text with every half of a surrogate pair that has no other half replaced."""
    body, half = whole_characters(text)
    return body + (REPLACEMENT if half else "")

"""Stop or pass: an answer goes through as it is written, up to where the guard flags it.

Nothing passes before its tokens are final and judged, so the verdict does not depend on how the text was cut, and what
passes lags by about a word. Where a text has no place to cut (scripts without spaces, long runs of digits), tokens
older than `hold` count as final. A token that violates by itself waits for the next one: of a run that flags the
answer, nothing passes.
"""

from __future__ import annotations

from typing import Any

from ray_jobs.serve.session import FIELDS, Session

HOLD = 32


class Gate:
    """The text of one answer; `stopped` says why nothing more passes, once that is so."""

    def __init__(self, session: Session, hold: int = HOLD) -> None:
        self.session, self.hold = session, hold
        self.stopped: dict[str, Any] | None = None
        self._decided = 0
        self.passed = 0  # characters

    async def push(self, piece: str) -> str:
        """Takes the next piece; returns the text that may pass now."""
        await self.session.push(piece)
        return self._release(ended=False)

    async def end(self) -> str:
        """The answer is complete: returns the rest, unless the answer is stopped."""
        await self.session.end()
        return self._release(ended=True)

    def _release(self, ended: bool) -> str:
        if self.stopped:
            return ""
        session, run = self.session, self.session.rule.run
        self._decided = max(self._decided, session.text.final, len(session.text.ids) - self.hold)
        onset = session.onset
        if onset is not None and onset < self._decided:
            self.stopped = self._reason(onset)
            return self._upto(onset - run + 1)
        pending = 0
        while not ended and pending < min(run - 1, self._decided):
            if not session.debounce.seen[self._decided - 1 - pending]:
                break
            pending += 1
        return self._upto(self._decided - pending)

    def _upto(self, tokens: int) -> str:
        """The text of the first `tokens` tokens that has not passed yet, whole characters only."""
        text = self.session.text
        while 0 < tokens < len(text.ids) and text.offsets[tokens][0] < text.offsets[tokens - 1][1]:
            tokens -= 1
        end = text.offsets[tokens - 1][1] if tokens > 0 else 0
        out = text.text[self.passed : end]
        self.passed = max(self.passed, end)
        return out

    def _reason(self, onset: int) -> dict[str, Any]:
        verdict = self.session.verdicts[onset]
        place = {"side": "response", "token": onset, "character": verdict["start"]}
        return place | {name: verdict[name] for name in FIELDS}

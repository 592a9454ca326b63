"""How fast to call an endpoint that others use too, and when to stop calling it.

- Concurrency adapts by additive increase and multiplicative decrease (Chiu & Jain, 1989): it doubles every round until
  the first sign of saturation, then grows by one a round; told to slow down (429, 503, a timeout) it halves, at most
  once for all requests that were under way together.
- Retry-After holds back everyone, not only the row that met it.
- A circuit breaker opens after `FAILURES_TO_OPEN` failures in a row: nobody calls for a while (1 s, doubling to 30 s),
  then one request tries; its success lets the others go on.
- After `patience` seconds without a single success the endpoint counts as dead (EngineDied): the step fails, and its
  next run resumes.
"""

import asyncio
import time
from collections import deque

from ray_jobs.engine.calls import EngineDied

FAILURES_TO_OPEN = 10
FIRST_BREAK, LONGEST_BREAK = 1.0, 30.0


class Pace:
    """Lets requests to one endpoint in, and learns from how they end. Every `enter` is followed by one
    ending: `succeed`, `slow_down` or `fail`, with the number that `enter` gave."""

    def __init__(self, most: int, patience: float, start: int = 8) -> None:
        self.limit, self.most, self.patience = float(min(start, most)), float(most), patience
        self.starting = True  # until the first sign of saturation the limit doubles every round
        self.in_flight = 0
        self.entered = 0
        self.halved_at = 0  # requests that entered before the last halving say nothing new
        self.failures = 0
        self.saturated = 0  # halvings since the last success
        self.not_before = 0.0
        self.rest = FIRST_BREAK
        self.trouble_since: float | None = None
        self.waiting: deque[asyncio.Future[None]] = deque()
        self.woken = 0  # waiters that were told to go and have not entered yet

    async def enter(self) -> int:
        """Wait until one more request may go. Returns its number."""
        while True:
            if (closed := self.not_before - time.monotonic()) > 0:
                await asyncio.sleep(closed)
            elif self.in_flight < self._allowed():
                self.in_flight += 1
                self.entered += 1
                return self.entered
            else:
                await self._turn()

    def succeed(self, _number: int) -> None:
        """The endpoint answered."""
        self.failures, self.saturated, self.rest, self.trouble_since = 0, 0, FIRST_BREAK, None
        # Growth is earned only where the limit was felt; of answers that come together all but the first find room
        if self.waiting or self.in_flight >= int(self.limit):
            self.limit = min(self.most, self.limit + (1.0 if self.starting else 1.0 / self.limit))
        self._leave()

    def slow_down(self, number: int, reason: str, retry_after: float | None = None) -> None:
        """The endpoint is saturated; `retry_after` are the seconds it asks for. EngineDied beyond
        patience."""
        self.starting = False
        if number > self.halved_at:
            self.limit = max(1.0, self.limit / 2)
            self.halved_at = self.entered
            self.saturated += 1
        if retry_after is not None:
            if retry_after > self.patience:
                raise EngineDied(f"{reason}, and asks to wait {retry_after:.0f} s")
            self.not_before = max(self.not_before, time.monotonic() + retry_after)
        self._in_trouble(reason)
        self._leave()

    def fail(self, _number: int, reason: str) -> None:
        """The endpoint did not answer, or not sensibly. EngineDied beyond patience."""
        self.failures += 1
        if self.failures >= FAILURES_TO_OPEN and self.not_before < time.monotonic():
            self.not_before = time.monotonic() + self.rest
            self.rest = min(LONGEST_BREAK, 2 * self.rest)
        self._in_trouble(reason)
        self._leave()

    def leave(self, _number: int) -> None:
        """The request ended in a way that says nothing about the endpoint (a refused row, a cancellation)."""
        self._leave()

    def _allowed(self) -> int:
        return 1 if self.failures >= FAILURES_TO_OPEN else int(self.limit)

    async def _turn(self) -> None:
        """Wait until a request that ended makes room."""
        turn = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was told to go: the next one may
                self.woken -= 1
                self._wake()
            raise
        self.woken -= 1

    def _leave(self) -> None:
        self.in_flight -= 1
        self._wake()

    def _wake(self) -> None:
        """Tell as many of those who wait to go as there is room for."""
        for _ in range(self._allowed() - self.in_flight - self.woken):
            while self.waiting and self.waiting[0].done():
                self.waiting.popleft()
            if not self.waiting:
                break
            self.waiting.popleft().set_result(None)
            self.woken += 1

    def _in_trouble(self, reason: str) -> None:
        now = time.monotonic()
        if self.trouble_since is None:
            self.trouble_since = now
        elif now - self.trouble_since > self.patience:
            raise EngineDied(f"{reason}; nothing was answered for {now - self.trouble_since:.0f} s")

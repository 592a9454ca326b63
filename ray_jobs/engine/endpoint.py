"""One OpenAI-compatible endpoint over HTTP: posts JSON until it has an answer, or a reason why there is none.

What is worth trying again is tried again, with full jitter (a uniform wait up to 0.5 s · 2^n, at most 30 s):
timeouts, cut or unreadable answers, 408, 409, 425 and 5xx, up to `attempts` times a row. A refused connection
and 429 cost a row none of its attempts: they are the endpoint's state, which pace.py waits for. What is not
worth it ends the row (400, 413, 422 …) or, where no row can succeed (401, 403, 404, an empty quota), the
call.

The client is aiohttp: against a 200 ms endpoint with 64 slots the openai package reached 78 to 82 % of its
rate, at 3.5 ms of processor time a call. The key is read from the environment variable that the option
`key_env` names; it is cut out of everything that is quoted from the endpoint.
"""

import asyncio
import json
import os
import random
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp

from ray_jobs.engine.calls import EngineDied, Model, RowFailed
from ray_jobs.engine.pace import Pace
from synth.errors import BadInput

WORTH_RETRYING = (408, 409, 425, 500, 502, 503, 504, 520, 522, 524, 529)
QUOTED = 2000  # characters of an answer that are kept with a failed row
KEY_LIKE = re.compile(r"\b(sk|key|Bearer)[-_ ][\w-]{12,}", re.IGNORECASE)


class _TryAgain(Exception):
    """The attempt failed in a way that may pass. counts: it costs the row one of its attempts."""

    def __init__(self, reason: str, raw: str = "", counts: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.raw, self.counts = reason, raw, counts


class Endpoint:
    """Options: url (default $OPENAI_BASE_URL), key_env (OPENAI_API_KEY), concurrency (64), timeout_s (120),
    attempts (5), patience_s (300)."""

    def __init__(self, model: Model) -> None:
        url = str(model.option("url", os.environ.get("OPENAI_BASE_URL", "")))
        if not url.startswith(("http://", "https://")):
            raise BadInput(f"model {model.name!r}: no endpoint; set the option url or $OPENAI_BASE_URL")
        self.name, self.url = model.name, url.rstrip("/")
        self.key_env = str(model.option("key_env", "OPENAI_API_KEY"))
        self.key = os.environ.get(self.key_env, "")
        self.attempts = int(model.option("attempts", 5))
        self.timeout = aiohttp.ClientTimeout(total=float(model.option("timeout_s", 120)))
        most = int(model.option("concurrency", 64))
        self.pace = Pace(most, float(model.option("patience_s", 300)))
        self.session: aiohttp.ClientSession | None = None

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The endpoint's JSON answer. Raises RowFailed for this row, BadInput or EngineDied for all of them."""
        tried = 0
        while True:
            try:
                return await self._attempt(path, body)
            except _TryAgain as again:
                tried += again.counts
                worse = tried if again.counts else self.pace.saturated
                if tried >= self.attempts:
                    raise RowFailed(f"{again.reason} ({tried} attempts)", again.raw) from again
            await asyncio.sleep(random.uniform(0, min(30.0, 0.5 * 2 ** min(worse, 10))))

    async def _attempt(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        number = await self.pace.enter()
        ended = False
        try:
            try:
                session = self._session()
                async with session.post(f"{self.url}/{path}", json=body) as response:
                    text = await response.text(errors="replace")
                    status, after = response.status, _seconds(response.headers.get("Retry-After"))
            except TimeoutError as error:
                ended = True
                reason = f"no answer within {self.timeout.total:.0f} s"
                self.pace.slow_down(number, f"the endpoint gives {reason}")
                raise _TryAgain(reason) from error
            except aiohttp.ClientConnectorError as error:
                ended = True
                self.pace.fail(number, f"no connection to the endpoint of model {self.name!r}")
                raise _TryAgain("no connection to the endpoint", counts=False) from error
            except aiohttp.ClientError as error:
                ended = True
                reason = f"the answer was cut off ({type(error).__name__})"
                self.pace.fail(number, f"the endpoint of model {self.name!r}: {reason}")
                raise _TryAgain(reason) from error
            ended = True
            return self._judge(number, status, text, after)
        finally:
            if not ended:  # cancelled on the way
                self.pace.leave(number)

    def _judge(self, number: int, status: int, text: str, after: float | None) -> dict[str, Any]:
        """The parsed answer, or the fitting exception; tells the pace how the request ended."""
        answer = _parsed(text) if status == 200 else None
        if answer is not None and "error" not in answer:
            self.pace.succeed(number)
            return answer
        raw = self.clean(text)
        if status == 200:
            what = "HTML" if text.lstrip()[:1] == "<" else "an error" if answer else "unreadable JSON"
            self.pace.fail(number, f"the endpoint of model {self.name!r} answers with {what}")
            raise _TryAgain(f"the endpoint answered with {what}", raw)
        said = self.clean(_message(text))
        if status == 429 and "insufficient_quota" not in text:
            self.pace.slow_down(
                number, f"the endpoint of model {self.name!r} accepts no more requests", after
            )
            raise _TryAgain("too many requests", raw, counts=False)
        if status in WORTH_RETRYING or status >= 500:
            if status == 503:
                self.pace.slow_down(number, f"the endpoint of model {self.name!r} is overloaded", after)
            else:
                self.pace.fail(number, f"the endpoint of model {self.name!r} answers {status}: {said}")
            raise _TryAgain(f"the endpoint answered {status}: {said}", raw)
        self.pace.leave(number)
        if status == 429:
            raise EngineDied(f"the quota behind ${self.key_env} is used up: {said}")
        if status in (401, 403):
            raise BadInput(
                f"model {self.name!r}: the endpoint refuses the key in ${self.key_env} ({status}): {said}"
            )
        if status in (404, 405):
            raise BadInput(
                f"model {self.name!r}: the endpoint does not have it, or not this call ({status}): {said}"
            )
        raise RowFailed(f"the endpoint refused the row ({status}): {said}", raw)

    def _session(self) -> aiohttp.ClientSession:
        if self.session is None or self.session.closed:
            headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
            connector = aiohttp.TCPConnector(limit=0)  # the pace bounds it
            self.session = aiohttp.ClientSession(headers=headers, timeout=self.timeout, connector=connector)
        return self.session

    async def close(self) -> None:
        if self.session is not None:
            await self.session.close()

    def clean(self, text: str) -> str:
        """What may be quoted of an answer: cut short, and without the key or anything that looks like one."""
        if self.key:
            text = text.replace(self.key, "[key]")
        return KEY_LIKE.sub("[key]", text)[:QUOTED]


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        answer = json.loads(text)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _message(text: str) -> str:
    """An error answer's own words, in one line."""
    answer = _parsed(text) or {}
    error = answer.get("error", answer)
    said = error.get("message") if isinstance(error, dict) else error
    words = " ".join(str(said or text).split())
    return words[:200] or "no reason given"


def _seconds(header: str | None) -> float | None:
    """Retry-After as seconds from now: a number, or an HTTP date."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None

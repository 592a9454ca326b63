"""The endpoint behind the filter: requests go there as they came, answers come back event by event."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from synth.errors import BadInput

LONGEST = 1 << 20  # bytes of one event


class Unreachable(RuntimeError):
    """The upstream cannot be reached, or breaks off, or sends what is no event stream."""


@dataclass(frozen=True)
class Upstream:
    """`url` up to and with /v1; `key_env` names the variable with the key for clients that bring none."""

    url: str
    key_env: str = ""

    def headers(self, authorization: str) -> dict[str, str]:
        key = os.environ.get(self.key_env, "") if self.key_env else ""
        given = authorization or (f"Bearer {key}" if key else "")
        return {"Authorization": given} if given else {}


def check_url(url: str) -> str:
    """The URL without a slash at its end; BadInput for what is none."""
    if not url.startswith(("http://", "https://")) or " " in url:
        raise BadInput(f"--upstream {url!r} is no http:// or https:// address")
    return url.rstrip("/")


def client() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=300))


async def events(reply: aiohttp.ClientResponse) -> AsyncIterator[Any]:
    """The data of each event as JSON, up to [DONE]. Raises Unreachable for what is none."""
    data: list[bytes] = []
    async for line in _lines(reply):
        if line.startswith(b"data:"):
            data.append(line[5:].strip())
        elif not line and data:
            text, data = b"\n".join(data), []
            if text == b"[DONE]":
                return
            yield one_object(text)
    if data and data != [b"[DONE]"]:
        yield one_object(b"\n".join(data))


async def _lines(reply: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    rest = b""
    try:
        async for part in reply.content.iter_any():
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                yield line.rstrip(b"\r")
            if len(rest) > LONGEST:
                raise Unreachable(f"the upstream sent an event of more than {LONGEST} bytes")
    except (aiohttp.ClientError, TimeoutError) as problem:
        raise Unreachable(f"the upstream broke off: {str(problem) or type(problem).__name__}") from problem
    if rest:
        yield rest


def one_object(text: bytes) -> Any:
    """What the upstream sent, as JSON. Raises Unreachable for what is none."""
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        raise Unreachable("the upstream sent what is not JSON") from None
    if not isinstance(told, dict):
        raise Unreachable("the upstream sent what is no JSON object")
    return told

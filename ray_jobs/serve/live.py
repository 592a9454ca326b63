"""The web socket on which an answer is moderated while it is being written.

A sender faster than the model does not make it fall behind: pieces that came during a step are judged together in the
next one.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from ray_jobs.serve.server import LARGEST, Guard, done, opened, tokens_event
from synth.errors import BadInput

Told = dict[str, Any]


async def stream(socket: WebSocket) -> None:
    """One conversation; another may follow on the same socket."""
    guard: Guard = socket.app.state.guard
    await socket.accept()
    inbox: asyncio.Queue[Any] = asyncio.Queue(maxsize=1024)
    reader = asyncio.create_task(_read(socket, inbox))
    try:
        while True:
            await _conversation(guard, socket, inbox)
    except BadInput as problem:
        guard.metrics.refused.labels("input").inc()
        await _send(socket, {"event": "error", "error": str(problem)})
        await socket.close(1008)
    except WebSocketDisconnect:
        pass
    finally:
        reader.cancel()


async def _conversation(guard: Guard, socket: WebSocket, inbox: asyncio.Queue[Any]) -> None:
    first = await _next(inbox)
    if "messages" not in first:
        raise BadInput("a stream begins with its messages")
    with guard.session(first["messages"], "stream") as session:
        await _send(socket, await opened(guard, session))
        while True:
            text, ended = await _pieces(inbox)
            update = await session.push(text)
            if text:
                await _send(socket, tokens_event(update))
            if ended:
                await _send(socket, tokens_event(await session.end()))
                await _send(socket, done(guard, session))
                return


async def _pieces(inbox: asyncio.Queue[Any]) -> tuple[str, bool]:
    """All text that waits, joined, and whether it is the last."""
    text, ended = "", False
    while not ended:
        told = await _next(inbox) if not text or not inbox.empty() else None
        if told is None:
            break
        piece = told.get("text", "")
        if not isinstance(piece, str) or not ("text" in told or "end" in told):
            raise BadInput('a stream goes on with {"text": …} or {"end": true}')
        text, ended = text + piece, bool(told.get("end"))
    return text, ended


async def _next(inbox: asyncio.Queue[Any]) -> Told:
    told = await inbox.get()
    if isinstance(told, BaseException):
        raise told
    return told


async def _read(socket: WebSocket, inbox: asyncio.Queue[Any]) -> None:
    """Puts what comes into the inbox, and what ends it."""
    try:
        while True:
            await inbox.put(_object(await socket.receive_text()))
    except (WebSocketDisconnect, BadInput) as problem:
        await inbox.put(problem)
    except (KeyError, RuntimeError):  # a binary message, or a socket closed by us
        await inbox.put(BadInput("a stream's messages are text"))


def _object(text: str) -> Told:
    if len(text) > LARGEST:
        raise BadInput(f"a message has more than {LARGEST} characters")
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        raise BadInput("a message is not JSON") from None
    if not isinstance(told, dict):
        raise BadInput("a message is no JSON object")
    return told


async def _send(socket: WebSocket, event: Told) -> None:
    await socket.send_text(json.dumps(event, ensure_ascii=True))

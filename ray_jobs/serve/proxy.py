"""/v1/chat/completions: the prompt is judged, the upstream asked, and its answer passed through the gate.

A prompt that violates is not sent on (unless the server is told so); an answer is stopped where it violates, and the
upstream's connection closed there. A request without `stream` is treated the same way, in one piece.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from ray_jobs.serve.chat import Answer, Chunk, conversation
from ray_jobs.serve.server import Guard, body_of, error, opened
from ray_jobs.serve.session import Session
from ray_jobs.serve.upstream import Unreachable, events, one_object
from synth.errors import BadInput

DONE = "data: [DONE]\n\n"


async def models(request: Request) -> Response:
    """The upstream's list of models."""
    guard: Guard = request.app.state.guard
    if guard.settings.upstream is None:
        return no_upstream()
    reply = await _ask(guard, "GET", "/models", request, None)
    async with reply:
        return Response(await reply.read(), reply.status, media_type="application/json")


async def complete(request: Request) -> Response:
    """One chat completion, streamed or whole."""
    guard: Guard = request.app.state.guard
    if guard.settings.upstream is None:
        return no_upstream()
    body = await body_of(request)
    session = guard.open(conversation(body), "chat")
    exchange = Exchange(guard, session, body)
    try:
        query = await opened(guard, session)
        if query["flagged"] and guard.settings.check_prompts:
            return exchange.refusal(query)
        reply = await _ask(guard, "POST", "/chat/completions", request, body)
    except BaseException:
        exchange.close()
        raise
    if reply.status != 200:
        async with reply:
            exchange.close()
            return Response(await reply.content.read(1 << 16), reply.status, media_type=reply.content_type)
    if body.get("stream"):
        return Closing(exchange, reply)
    return await exchange.whole(reply)


def no_upstream() -> Response:
    return error(404, "this server was started without --upstream, so there is no endpoint to pass on")


async def _ask(guard: Guard, method: str, path: str, request: Request, body: Any) -> aiohttp.ClientResponse:
    upstream = guard.settings.upstream
    assert upstream is not None
    headers = upstream.headers(request.headers.get("authorization", ""))
    try:
        return await guard.upstream.request(method, upstream.url + path, json=body, headers=headers)
    except (aiohttp.ClientError, TimeoutError) as problem:
        raise Unreachable(
            f"the upstream cannot be reached: {str(problem) or type(problem).__name__}"
        ) from problem


class Exchange:
    """A request's streams of the guard, one per choice, given back at the end."""

    def __init__(self, guard: Guard, session: Session, body: Chunk) -> None:
        self.guard, self.body = guard, body
        self.sessions = [session]
        self.closed = False
        self.answer = Answer(session, self._another, int(body.get("n") or 1))

    async def _another(self) -> Session:
        session = self.guard.open(self.sessions[0].messages, "chat")
        self.sessions.append(session)
        await session.open()
        return session

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        for stop in self.answer.stops:
            self.guard.metrics.flag("response", stop)
        for session in self.sessions:
            self.guard.close(session)

    def refusal(self, query: dict[str, Any]) -> Response:
        """The answer to a prompt that violates: none, and why."""
        self.close()
        why = {
            "side": "prompt",
            **{name: value for name, value in query.items() if name not in ("event", "flagged")},
        }
        part = "delta" if self.body.get("stream") else "message"
        choice = {"index": 0, part: {"role": "assistant", "content": ""}, "finish_reason": "content_filter",
                  "guardmill": why}  # fmt: skip
        about = {"id": "guardmill", "created": int(time.time()), "model": str(self.body.get("model", ""))}
        if part == "message":
            return JSONResponse({**about, "object": "chat.completion", "choices": [choice]})
        chunk = {**about, "object": "chat.completion.chunk", "choices": [choice]}
        return StreamingResponse(iter([event(chunk), DONE]), media_type="text/event-stream")

    async def streamed(self, reply: aiohttp.ClientResponse) -> AsyncIterator[str]:
        """The events to send. The upstream is left as soon as every choice has ended, but for its usage."""
        try:
            async for chunk in events(reply):
                if "error" in chunk:
                    yield event({"error": chunk["error"]})
                    return
                out = await self.answer.chunk(chunk)
                if out is not None:
                    yield event(out)
                if self.answer.over and self.answer.stops:
                    break
            async for out in self.answer.cut_off():
                yield event(out)
            yield DONE
        except (BadInput, Unreachable) as problem:
            yield event({"error": {"message": str(problem), "type": "guardmill"}})

    async def whole(self, reply: aiohttp.ClientResponse) -> Response:
        """The answer in one piece, as far as it passes."""
        try:
            async with reply:
                told = one_object(await reply.read())
            return JSONResponse(await self.answer.chunk(told, "message"))
        except aiohttp.ClientError as problem:
            raise Unreachable(f"the upstream broke off: {problem}") from problem
        finally:
            self.close()


class Closing(StreamingResponse):
    """A streamed response that gives back what it holds even where the client left before its first event."""

    def __init__(self, exchange: Exchange, reply: aiohttp.ClientResponse) -> None:
        super().__init__(exchange.streamed(reply), media_type="text/event-stream")
        self.exchange, self.reply = exchange, reply

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.reply.close()
            self.exchange.close()


def event(chunk: Chunk) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=True)}\n\n"

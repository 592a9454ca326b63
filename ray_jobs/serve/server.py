"""The server's state and routes, as an ASGI application (Ray Serve runs it: ray_jobs.serve).

    GET  /                      a page to try the guard on
    GET  /health, /metrics      for monitors
    WS   /stream                {"messages": […]}, then {"text": piece}…, then {"end": true}; verdicts come back as told
    POST /moderate              {"prompt", "response"} or {"messages"}; the same verdicts as JSON lines
    POST /v1/chat/completions   the upstream's answer through the gate (with --upstream), streamed or whole
    GET  /v1/models             the upstream's

Verdicts: {"event": "query", …}, {"event": "tokens", "first": i, "final": n, "tokens": […]} (tokens from i on are now
these), {"event": "done", "flagged", "onset"} or {"event": "error", "error"}. The socket listens on the loop-back
address alone; requests that name another host, or come from another origin's page, are refused. Texts leave as JSON
only, and a content security policy lets the page run nothing but its own script.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute

from ray_jobs.serve.batch import Full, Judge
from ray_jobs.serve.metrics import Metrics
from ray_jobs.serve.session import Session
from ray_jobs.serve.upstream import Unreachable, Upstream, client
from synth.errors import BadInput
from train.stream_verdict import Rule, rule

LARGEST = 1 << 20  # bytes of a request
PIECE = 64  # characters of a whole answer judged between two lines of /moderate


@dataclass(frozen=True)
class Settings:
    """What a server is told. `thresholds`: by category, "*" for the rest, in place of the most likely level."""

    checkpoint: str
    reading: str = "strict"
    run: int = 2
    thresholds: dict[str, float] = field(default_factory=dict)
    streams: int = 16
    context: int = 4096
    device: str = ""
    upstream: Upstream | None = None
    check_prompts: bool = True


class Guard:
    """The loaded guard with what its routes share."""

    def __init__(self, model: Any, tokenizer: Any, settings: Settings) -> None:
        self.tokenizer, self.settings, self.metrics = tokenizer, settings, Metrics()
        longest = int(getattr(model.config.backbone_config, "max_position_embeddings", 0) or settings.context)
        self.judge = Judge(model, settings.streams, min(longest, settings.context), self.metrics.step)
        self.rule: Rule = rule(model.config.maps, settings.reading, settings.run, settings.thresholds)
        self.upstream: Any = None  # an aiohttp session, while the server runs

    @contextmanager
    def session(self, messages: Any, route: str) -> Iterator[Session]:
        """A stream of this guard, given back at the end."""
        session = self.open(messages, route)
        try:
            yield session
        finally:
            self.close(session)

    def open(self, messages: Any, route: str) -> Session:
        session = Session(self.judge, self.tokenizer, self.rule, messages)
        self.metrics.streams.labels(route).inc()
        self.metrics.open.set(self.judge.open_streams)
        return session

    def close(self, session: Session) -> None:
        session.close()
        self.metrics.open.set(self.judge.open_streams)


def application(guard: Guard) -> Any:
    """All routes behind the host check."""
    from ray_jobs.serve.live import stream
    from ray_jobs.serve.page import page_routes
    from ray_jobs.serve.proxy import complete, models

    @asynccontextmanager
    async def life(_: Any) -> AsyncIterator[None]:
        async with client() as guard.upstream:
            yield

    routes = [
        *page_routes(),
        Route("/health", health),
        Route("/metrics", metrics),
        Route("/moderate", moderate, methods=["POST"]),
        WebSocketRoute("/stream", stream),
        Route("/v1/chat/completions", complete, methods=["POST"]),
        Route("/v1/models", models),
    ]
    handlers: Any = {BadInput: refused, Unreachable: unreachable}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=life)
    app.state.guard = guard
    return local_only(app)


def local_only(app: Any) -> Any:
    """Refuses requests that name another host or come from another origin (a page elsewhere in the same browser)."""

    async def check(scope: Any, receive: Any, send: Any) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope.get("headers", ())}
        host, origin = headers.get(b"host", ""), headers.get(b"origin", "")
        foreign = bool(origin) and origin.partition("://")[2] != host
        if scope["type"] != "lifespan" and (
            host.partition(":")[0] not in ("127.0.0.1", "localhost") or foreign
        ):
            if scope["type"] == "websocket":
                await receive()
                await send({"type": "websocket.close", "code": 4403})
            else:
                await error(403, "this server answers to 127.0.0.1 and its own page alone")(
                    scope, receive, send
                )
            return
        await app(scope, receive, send)

    return check


def error(status: int, sentence: str) -> JSONResponse:
    """One sentence, in the form that OpenAI clients read."""
    return JSONResponse(
        {"error": {"message": sentence, "type": "guardmill", "code": status}}, status_code=status
    )


async def refused(request: Request, problem: Exception) -> Response:
    full = isinstance(problem, Full)
    request.app.state.guard.metrics.refused.labels("full" if full else "input").inc()
    return error(503 if full else 400, str(problem))


async def unreachable(request: Request, problem: Exception) -> Response:
    request.app.state.guard.metrics.refused.labels("upstream").inc()
    return error(502, str(problem))


async def health(request: Request) -> Response:
    guard: Guard = request.app.state.guard
    settings, maps = guard.settings, guard.judge.guard.config.maps
    return JSONResponse(
        {
            "status": "ok",
            "checkpoint": settings.checkpoint,
            "reading": settings.reading,
            "risks": {name: list(getattr(maps, name)) for name in ("risk", "safe", "strict", "loose")},
            "streams": {"open": guard.judge.open_streams, "most": settings.streams},
            "context": guard.judge.context,
            "upstream": settings.upstream.url if settings.upstream else None,
        }
    )


async def metrics(request: Request) -> Response:
    return Response(request.app.state.guard.metrics.text(), media_type="text/plain; version=0.0.4")


async def body_of(request: Request) -> Any:
    """The request's JSON. BadInput for another thing, and for more than LARGEST bytes."""
    told = b""
    async for part in request.stream():
        told += part
        if len(told) > LARGEST:
            raise BadInput(f"the request has more than {LARGEST} bytes")
    try:
        return json.loads(told)
    except (ValueError, RecursionError):
        raise BadInput("the request is not JSON") from None


async def moderate(request: Request) -> Response:
    """A whole conversation; its verdicts line by line as they come."""
    guard: Guard = request.app.state.guard
    messages, answer = asked(await body_of(request))
    return Lines(guard, guard.open(messages, "moderate"), answer)


class Lines(StreamingResponse):
    """A conversation's verdicts as JSON lines; its stream is given back even where the client leaves early."""

    def __init__(self, guard: Guard, session: Session, answer: str | None) -> None:
        super().__init__(lines(guard, session, answer), media_type="application/x-ndjson")
        self.guard, self.session = guard, session

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.guard.close(self.session)


def asked(body: Any) -> tuple[Any, str | None]:
    """The messages up to the answer, and the answer, if there is one."""
    if not isinstance(body, dict):
        raise BadInput("the request is no JSON object")
    messages = body.get("messages")
    if messages is None:
        messages = [{"role": "user", "content": body.get("prompt")}]
        if body.get("response") is not None:
            messages.append({"role": "assistant", "content": body["response"]})
    last = messages[-1] if isinstance(messages, list) and messages else None
    if isinstance(last, dict) and last.get("role") == "assistant":
        if not isinstance(last.get("content"), str):
            raise BadInput("the answer is not text")
        return messages[:-1], last["content"]
    return messages, None


async def lines(guard: Guard, session: Session, answer: str | None) -> AsyncIterator[str]:
    try:
        async for event in verdicts(guard, session, answer):
            yield json.dumps(event, ensure_ascii=True) + "\n"
    except BadInput as problem:
        yield json.dumps({"event": "error", "error": str(problem)}) + "\n"


async def verdicts(guard: Guard, session: Session, answer: str | None) -> AsyncIterator[dict[str, Any]]:
    """The events of a conversation whose answer is there already."""
    yield await opened(guard, session)
    for at in range(0, len(answer or ""), PIECE):
        yield tokens_event(await session.push((answer or "")[at : at + PIECE]))
    if answer is not None:
        yield tokens_event(await session.end())
        yield done(guard, session)


async def opened(guard: Guard, session: Session) -> dict[str, Any]:
    query = await session.open()
    if query["flagged"]:
        guard.metrics.flag("prompt", query)
    return {"event": "query", **query}


def tokens_event(update: Any) -> dict[str, Any]:
    return {"event": "tokens", "first": update.first, "final": update.final, "tokens": update.tokens}


def done(guard: Guard, session: Session) -> dict[str, Any]:
    if session.onset is not None:
        guard.metrics.flag("response", session.verdicts[session.onset])
    return {"event": "done", "flagged": session.onset is not None, "onset": session.onset}

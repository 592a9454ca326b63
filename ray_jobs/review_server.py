"""The review page: aiohttp on 127.0.0.1, one person, one table (ray_jobs.review).

What keeps others out: the socket listens on the loop-back address alone; every address starts with a random token of
128 bits; a request that names another host (a page whose name was pointed here) or comes from another origin is
refused. Rows are data: they travel as JSON and are set as text, and a content security policy lets nothing run but the
page's own script. The log has no addresses.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any

from aiohttp import web

from ray_jobs.human_labels import Said
from ray_jobs.review import Session
from synth.errors import BadInput

HOST = "127.0.0.1"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
FILES = {"": ("review_page.html", "text/html"), "review.js": ("review_page.js", "text/javascript"),
         "review.css": ("review_page.css", "text/css")}  # fmt: skip
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def serve(session: Session, port: int, say: Callable[[str], None]) -> None:
    """Serve until interrupted, then save. `say` is told the address. BadInput when the port is taken."""
    try:
        listening = socket.create_server((HOST, port))
    except OSError as problem:
        raise BadInput(f"port {port} of {HOST} cannot be used: {problem.strerror}") from problem
    token = secrets.token_urlsafe(16)
    app = application(session, token)
    say(f"http://{HOST}:{listening.getsockname()[1]}/{token}/")
    web.run_app(app, sock=listening, print=None, access_log=None)


def application(session: Session, token: str) -> web.Application:
    """The page and its calls under /TOKEN/. What is not saved when the server ends is saved then."""
    app = web.Application(middlewares=[guarded(token)], client_max_size=1 << 20)
    page = f"/{token}"
    for name, (file, kind) in FILES.items():
        app.router.add_get(f"{page}/{name}", resource(file, kind))
    app.router.add_get(f"{page}/api/about", answer(lambda _: session.about()))
    app.router.add_get(f"{page}/api/agreement", answer(lambda _: session.agreement()))
    app.router.add_get(page + r"/api/row/{at:\d+}", row_of(session))
    app.router.add_post(f"{page}/api/label", answer(lambda told: session.label(*said(told))))
    app.router.add_post(f"{page}/api/undo", answer(lambda _: session.undo()))
    app.router.add_post(f"{page}/api/save", answer(lambda _: session.save()))

    async def save(_: web.Application) -> None:
        session.save()

    app.on_cleanup.append(save)
    return app


def guarded(token: str) -> Any:
    """Refuses requests without the token, to another host name, or from another origin."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.path.split("/")[1]
        host = request.host.rpartition(":")[0]
        origin = request.headers.get("Origin", "")
        foreign = origin and origin.removeprefix("http://") != request.host
        if (
            host not in (HOST, "localhost")
            or foreign
            or not hmac.compare_digest(given.encode(), token.encode())
        ):
            raise web.HTTPForbidden(text="Open the address that the command printed.\n", headers=HEADERS)
        try:
            response = await handler(request)
        except BadInput as problem:
            response = web.json_response({"error": str(problem)}, status=400)
        response.headers.update(HEADERS)
        return response

    return check


def resource(file: str, kind: str) -> Handler:
    async def send(_: web.Request) -> web.StreamResponse:
        text = files("ray_jobs").joinpath(file).read_text(encoding="utf-8")
        return web.Response(text=text, content_type=kind)

    return send


def answer(call: Callable[[Any], dict[str, Any]]) -> Handler:
    """A call that gets the posted JSON and answers with JSON."""

    async def reply(request: web.Request) -> web.StreamResponse:
        try:
            told = json.loads(await request.text() or "null") if request.method == "POST" else None
        except ValueError as problem:
            raise BadInput(f"what was posted is not JSON: {problem}") from problem
        return web.json_response(call(told))

    return reply


def row_of(session: Session) -> Handler:
    async def reply(request: web.Request) -> web.StreamResponse:
        return web.json_response(session.page(int(request.match_info["at"])))

    return reply


def said(told: Any) -> tuple[int, Said]:
    """What a person said, from the page's JSON. BadInput for anything else."""
    kinds = {"at": int, "severity": str, "categories": list, "unusable": bool}
    if not isinstance(told, dict) or any(type(told.get(name)) is not kind for name, kind in kinds.items()):
        raise BadInput("a label is an object with at, severity, categories, refusal and unusable")
    refusal, categories = told.get("refusal"), told["categories"]
    if not isinstance(refusal, bool | None) or not all(isinstance(one, str) for one in categories):
        raise BadInput("refusal is true, false or null, and categories are names")
    return told["at"], Said(told["severity"], tuple(categories), refusal, told["unusable"])

"""The page's three files. Texts reach it as JSON and are set as text nodes."""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ray_jobs.review_server import HEADERS

FILES = {"/": ("page.html", "text/html"), "/page.js": ("page.js", "text/javascript"),
         "/page.css": ("page.css", "text/css")}  # fmt: skip


def page_routes() -> list[Route]:
    return [Route(path, sender(file, kind)) for path, (file, kind) in FILES.items()]


def sender(file: str, kind: str):  # type: ignore[no-untyped-def]
    async def send(_: Request) -> Response:
        text = files("ray_jobs.serve").joinpath(file).read_text(encoding="utf-8")
        return Response(text, media_type=kind, headers=HEADERS)

    return send

"""An S3 server (moto) behind a proxy that is slow and fails one write in ten.

    python -m tests.faults.storage PORT FAILURES_FILE

Every second failure loses only the answer: the write was done, and its writer does not know.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TextIO

import aiohttp
from aiohttp import web

SLOW_S = 0.03
ONE_IN = 10
REFUSAL = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class Proxy:
    def __init__(self, behind: str, failures: TextIO) -> None:
        self.behind, self.failures = behind, failures
        self.writes = self.failed = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        await asyncio.sleep(SLOW_S)
        fails = False
        if request.method in ("PUT", "POST"):
            self.writes += 1
            fails = self.writes % ONE_IN == 0
        lost = fails and self.failed % 2 == 1
        if fails:
            self.failed += 1
            print("lost" if lost else "refused", request.method, request.path, file=self.failures, flush=True)
            if not lost:
                return web.Response(status=503, text=REFUSAL, content_type="application/xml")
        answer = await self.forward(request, body)
        if lost and request.transport is not None:
            request.transport.abort()
        return answer

    async def forward(self, request: web.Request, body: bytes) -> web.StreamResponse:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in ("transfer-encoding",)}
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(
                request.method,
                f"{self.behind}{request.raw_path}",
                data=body,
                headers=headers,
                allow_redirects=False,
                skip_auto_headers=("Content-Type", "User-Agent", "Accept", "Accept-Encoding"),
            ) as told,
        ):
            drop = ("transfer-encoding", "content-length", "connection", "date", "server")
            kept = {k: v for k, v in told.headers.items() if k.lower() not in drop}
            content = await told.read()
            if request.method != "HEAD":
                return web.Response(status=told.status, body=content, headers=kept)
            size = told.headers.get("Content-Length", "0")  # of what a GET would give
        answer = web.StreamResponse(status=told.status, headers={**kept, "Content-Length": size})
        await answer.prepare(request)
        await answer.write_eof()
        return answer


async def serve(port: int, proxy: Proxy) -> None:
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", proxy.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


def main(arguments: list[str]) -> None:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, behind = server.get_host_and_port()
    with open(arguments[1], "a", encoding="utf-8") as failures:
        asyncio.run(serve(int(arguments[0]), Proxy(f"http://{host}:{behind}", failures)))


if __name__ == "__main__":
    main(sys.argv[1:])

"""The scripted endpoint: answers every chat after a moment, and writes down each call that it took on.

    python -m tests.faults.server PORT CALLS_FILE SECONDS_PER_CALL

A line per call: "call", row, time. POST /control {"down_s": 60} closes the port and every connection for that long.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any, TextIO

from aiohttp import web

from tests.faults.flow import answer


class Server:
    def __init__(self, port: int, calls: TextIO, seconds: float) -> None:
        self.port, self.calls, self.seconds = port, calls, seconds
        self.down = asyncio.Event()
        self.down_s = 0.0

    async def chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        prompt = body["messages"][-1]["content"]
        self.note("call", prompt.split()[0])
        await asyncio.sleep(self.seconds)
        choice = {
            "message": {"role": "assistant", "content": answer(prompt)},
            "finish_reason": "stop",
        }
        return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})

    async def control(self, request: web.Request) -> web.Response:
        self.down_s = float((await request.json())["down_s"])
        self.down.set()
        return web.json_response({})

    def note(self, *words: str) -> None:
        print(*words, f"{time.time():.3f}", file=self.calls, flush=True)

    async def run(self) -> None:
        """Listen until the process ends, but for the times in which it is told to be down."""
        while True:
            app = web.Application()
            app.router.add_post("/v1/chat/completions", self.chat)
            app.router.add_post("/control", self.control)
            runner = web.AppRunner(app, shutdown_timeout=0.2)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True).start()
            await self.down.wait()
            await asyncio.sleep(0.1)  # the answer to whoever told it
            await runner.cleanup()
            self.note("down", f"{self.down_s:g}")
            await asyncio.sleep(self.down_s)
            self.note("up", "again")
            self.down.clear()


def main(arguments: list[str]) -> Any:
    with open(arguments[1], "a", encoding="utf-8") as calls:
        asyncio.run(Server(int(arguments[0]), calls, float(arguments[2])).run())


if __name__ == "__main__":
    main(sys.argv[1:])

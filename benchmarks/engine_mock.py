"""A fixed-latency OpenAI-compatible endpoint, 64 slots of 200 ms: 320 requests/s at best. `python engine_mock.py PORT`.

Requests beyond the slots wait their turn. GET /stats tells how many prompts were asked and answered, how many of them
more than once, and when the first one came and the last one went; POST /reset forgets.
"""

import asyncio
import sys
import time
from collections import Counter

from aiohttp import web

SLOTS, LATENCY = 64, 0.2


class Mock:
    def __init__(self) -> None:
        self.slots = asyncio.Semaphore(SLOTS)
        self.forget()

    def forget(self) -> None:
        self.answered: Counter[str] = Counter()
        self.asked = 0
        self.first = self.last = 0.0

    async def chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        if not body["messages"]:  # a client that asks for the limits first
            return web.json_response({"error": {"message": "no messages"}}, status=400)
        self.first = self.first or time.time()
        self.asked += 1
        prompt = body["messages"][-1]["content"]
        if isinstance(prompt, list):  # a message in parts
            prompt = prompt[0]["text"]
        async with self.slots:
            await asyncio.sleep(LATENCY)
        self.answered[prompt] += 1
        self.last = time.time()
        message = {"role": "assistant", "content": f"answer to {prompt}"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20}
        told = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": body["model"]}
        return web.json_response({**told, "choices": [choice], "usage": usage})

    async def stats(self, _request: web.Request) -> web.Response:
        answers = sum(self.answered.values())
        told = {"asked": self.asked, "answers": answers, "prompts": len(self.answered)}
        return web.json_response({**told, "first": self.first, "last": self.last, "now": time.time()})

    async def reset(self, _request: web.Request) -> web.Response:
        self.forget()
        return web.json_response({})


async def models(_request: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "mock", "object": "model"}]})


def main() -> None:
    mock, app = Mock(), web.Application()
    app.router.add_post("/v1/chat/completions", mock.chat)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/stats", mock.stats)
    app.router.add_post("/reset", mock.reset)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)


if __name__ == "__main__":
    main()

"""What the tests of pages and servers share: a guard whose verdict on a token depends on that token alone, a server and
an upstream on loopback, and a real headless browser, driven over the DevTools protocol."""

import asyncio
import base64
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
import torch
import uvicorn
from aiohttp import web
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from ray_jobs.serve.server import Guard, Settings, application
from train.backbone import save_tokenizer
from train.data import CHAT_TEMPLATE
from train.labels import label_maps
from train.stream_model import StreamGuard, StreamGuardConfig

MAPS = label_maps(("Safe", "Bad", "Grey"), ("A", "B"), ("A", "B", "C"), ("Safe",), ("Bad", "Grey"), ("Bad",))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def chatml_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few merges and the ChatML markers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    markers = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=markers, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(
        ["the old dog walks over a small bridge and sings", "a kite and a king"], trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def marked_guard(bad: str = "#", grey: str = "~", prompts: str = "Safe") -> tuple[StreamGuard, Any]:
    """Tokens that hold `bad` or `grey` characters are judged so, all others Safe; every prompt is as told.

    A real decoder: its attention and its MLP add nothing, so the last hidden state is the token's own embedding.
    """
    tokenizer = chatml_tokenizer()
    backbone = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=512,
    )  # fmt: skip
    guard = StreamGuard(StreamGuardConfig.for_policy(backbone, MAPS, 32)).eval()
    with torch.no_grad():
        for layer in guard.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        table = guard.model.embed_tokens.weight.zero_()
        for token in range(len(tokenizer)):
            text = tokenizer.decode([token])
            table[token, 1 if bad in text else 2 if grey in text else 0] = 1.0
        for side in ("", "query_"):
            guard.get_submodule(f"{side}risk_level_category_pre").weight.copy_(torch.eye(32))
            head = guard.get_submodule(f"{side}risk_level_head").weight.zero_()
            head[:, :3] = torch.eye(3)
            guard.get_submodule(f"{side}category_head").weight.zero_()[1, 1] = 1.0
        guard.query_risk_level_head.weight.zero_()[MAPS.risk.index(prompts), :3] = 1.0
    return guard, tokenizer


def saved_guard(folder: Path, **kwargs: Any) -> Path:
    guard, tokenizer = marked_guard(**kwargs)
    guard.save_guard(folder)
    save_tokenizer(tokenizer, folder)
    return folder


@asynccontextmanager
async def running(guard: tuple[StreamGuard, Any], **settings: Any) -> AsyncIterator[tuple[str, Guard]]:
    """The application on a free port; its address and its state."""
    state = Guard(*guard, Settings("a test's guard", **settings))
    server = uvicorn.Server(uvicorn.Config(application(state), port=0, log_level="warning"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", state
    finally:
        server.should_exit = True
        await task


Handler = Callable[[web.Request], Any]


@asynccontextmanager
async def endpoint(handler: Handler, models: Handler | None = None) -> AsyncIterator[str]:
    """An upstream on loopback; its address with /v1."""
    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    if models is not None:
        app.router.add_get("/v1/models", models)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


class Unready(RuntimeError):
    """The tab has no document yet."""


class Page:
    """One tab: evaluate, press keys, wait."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket, self.number = socket, 0

    async def send(self, method: str, **given: Any) -> dict[str, Any]:
        self.number += 1
        await self.socket.send_json({"id": self.number, "method": method, "params": given})
        while True:
            told = await self.socket.receive_json(timeout=20)
            if told.get("id") == self.number:
                if "error" in told:
                    raise Unready(told["error"]["message"])
                return told["result"]

    async def value(self, expression: str) -> Any:
        told = await self.send(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def press(self, *keys: str) -> None:
        """Press keys one after the other, as fast as they come, then wait until the page is at rest."""
        for key in keys:
            text = {"text": key} if len(key) == 1 else {}
            await self.send("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
            await self.send("Input.dispatchKeyEvent", type="keyUp", key=key)
        await self.rest()

    async def rest(self) -> None:
        for _ in range(200):
            loaded = "document.readyState === 'complete' && Object.keys(document.body.dataset).length > 0"
            with suppress(Unready):
                if await self.value(f"{loaded} && !('busy' in document.body.dataset)"):
                    return
            await asyncio.sleep(0.05)
        raise AssertionError(await self.value("document.body ? document.body.innerText : 'no page'"))

    async def picture(self, file: Path) -> None:
        told = await self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(told["data"]))

    async def text(self, name: str) -> str:
        return await self.value(f"document.getElementById({json.dumps(name)}).textContent")


@asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[Any]:
    """`tab(address)` opens a page at rest; `close(page)` closes it as a person would."""
    arguments = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
    ]
    place = ["--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen([str(CHROMIUM), *arguments, *place], stderr=subprocess.DEVNULL)
    marker = folder / "DevToolsActivePort"
    try:
        for _ in range(400):
            if marker.is_file() and len(marker.read_text().split()) == 2:
                break
            await asyncio.sleep(0.05)
        tools = f"http://127.0.0.1:{marker.read_text().split()[0]}/json"
        async with aiohttp.ClientSession() as web_client:

            async def tab(address: str) -> tuple[str, Page]:
                async with web_client.put(f"{tools}/new?{address}") as reply:
                    told = await reply.json()
                page = Page(await web_client.ws_connect(told["webSocketDebuggerUrl"], max_msg_size=1 << 26))
                await page.rest()
                return told["id"], page

            async def close(number: str, page: Page) -> None:
                await page.send("Page.close")
                await page.socket.close()

            yield tab, close
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture(scope="session")
def serving() -> SimpleNamespace:
    return SimpleNamespace(
        marked_guard=marked_guard, saved_guard=saved_guard, running=running, endpoint=endpoint, MAPS=MAPS
    )


@pytest.fixture
def browse(tmp_path: Path) -> Callable[[], Any]:
    """`async with browse() as (tab, close)`: pages in a browser of the test's own."""
    if CHROMIUM is None:
        pytest.skip("no chromium or google-chrome on this machine")
    return lambda: browser(tmp_path / "profile")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random two-layer Llamas with a chat template: a "policy", and a "reward" model of one output."""
    tokenizer, folders = chatml_tokenizer(), {}
    tokenizer.chat_template = CHAT_TEMPLATE
    shape = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0,
        "tie_word_embeddings": True,
    }  # fmt: skip
    for name, kind, more in (
        ("policy", AutoModelForCausalLM, {}),
        ("reward", AutoModelForSequenceClassification, {"num_labels": 1}),
    ):
        folders[name] = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        kind.from_config(AutoConfig.for_model("llama", **shape, **more)).save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders

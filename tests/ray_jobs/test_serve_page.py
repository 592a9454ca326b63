"""`guardmill serve` as people use it: the page in a real headless browser, and the command on Ray Serve."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import aiohttp
import pytest

HOSTILE = (
    "the old <img src=x onerror='window.hacked=1'><script>window.hacked=1</script> \u202egnp dog ## ~ sings"
)
TOKENS = "[...document.querySelectorAll('#tokens .token')]"


async def typed(page, text: str) -> None:
    """Writes into the answer as a person would, a few letters at a time."""
    for at in range(0, len(text), 9):
        piece = json.dumps(text[at : at + 9])
        fire = "box.dispatchEvent(new Event('input'))"
        box = "const box = document.getElementById('answer')"
        await page.value(f"(() => {{ {box}; box.value += {piece}; {fire}; }})()")
        await asyncio.sleep(0.02)
    for _ in range(300):
        if len(await page.text("tokens")) >= len(text):
            return
        await asyncio.sleep(0.05)
    raise AssertionError(await page.value("document.body.innerText"))


def test_every_token_is_coloured_as_it_comes_and_hostile_text_is_text(serving, browse, tmp_path):
    async def go() -> None:
        async with browse() as (tab, close), serving.running(serving.marked_guard()) as (url, state):
            number, page = await tab(url + "/")
            await typed(page, HOSTILE)
            assert await page.text("tokens") == HOSTILE.replace("\u202e", "U+202E")
            assert await page.value("window.hacked === undefined && document.images.length === 0")
            bad = await page.value(
                f"{TOKENS}.filter((t) => t.classList.contains('bad')).map((t) => t.textContent)"
            )
            assert bad == ["#", "#"]
            mid = await page.value(
                f"{TOKENS}.filter((t) => t.classList.contains('mid')).map((t) => t.textContent)"
            )
            assert mid == ["~"]
            bold = await page.value(f"{TOKENS}.findIndex((t) => t.classList.contains('flagged'))")
            assert await page.value(f"{TOKENS}[{bold}].textContent") == "#"
            assert "Safe" in await page.text("query")
            await page.value("document.getElementById('play').click()")
            for _ in range(600):
                if await page.text("done"):
                    break
                await asyncio.sleep(0.05)
            assert await page.text("done") == f"flagged from token {bold}"
            await page.picture(Path(os.environ.get("GUARDMILL_PICTURES", tmp_path)) / "serve.png")
            inline = "const s = document.createElement('script'); s.textContent = 'window.hacked = 1'"
            run = "document.body.append(s); return window.hacked === undefined"
            assert await page.value(f"(() => {{ {inline}; {run} }})()")  # the security policy lets it not run
            await close(number, page)
            for _ in range(100):
                if state.judge.open_streams == 0:
                    break
                await asyncio.sleep(0.05)
            assert state.judge.open_streams == 0

    asyncio.run(go())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


async def talk(url: str) -> list[dict]:
    async with aiohttp.ClientSession() as client, client.ws_connect(f"{url}stream") as web_socket:
        await web_socket.send_json({"messages": [{"role": "user", "content": "hello"}]})
        await web_socket.send_json({"text": "a kite ## b"})
        await web_socket.send_json({"end": True})
        return [await web_socket.receive_json(timeout=60) for _ in range(4)]


@pytest.mark.slow
def test_the_command_serves_on_ray_and_ends_when_told(serving, tmp_path):
    folder = serving.saved_guard(tmp_path / "guard")
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "ray_jobs.cli",
        "serve",
        str(folder),
        "--port",
        str(port),
        "--streams",
        "3",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()
        assert url == f"http://127.0.0.1:{port}/", process.stderr.read()
        about = json.load(urllib.request.urlopen(f"{url}health"))
        assert about["status"] == "ok" and about["streams"] == {"open": 0, "most": 3}
        told = asyncio.run(talk(url))
        assert [event["event"] for event in told] == ["query", "tokens", "tokens", "done"] and told[-1][
            "flagged"
        ]
        assert b"guardmill_streams_total" in urllib.request.urlopen(f"{url}metrics").read()
        assert b"page.js" in urllib.request.urlopen(url).read()
        second = subprocess.run(command, capture_output=True, text=True)
        assert second.returncode == 2 and f"port {port} of 127.0.0.1 cannot be used" in second.stderr
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=200)[1]
        assert process.returncode == 0, said
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--streams", "0"], "--streams is a number from 1"),
        (["--threshold", "Z=0.5"], "no category 'Z'"),
        (["--upstream", "ftp://x"], "no http:// or https:// address"),
        (["--port", "99999"], "port 99999"),
    ],
)
def test_wrong_use_is_one_sentence_before_anything_starts(serving, tmp_path, capsys, options, said):
    from ray_jobs.cli import main

    folder = serving.saved_guard(tmp_path / "guard")
    capsys.readouterr()
    assert main(["serve", str(folder), "--port", str(free_port()), *options]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_pickled_checkpoint_is_not_served(serving, tmp_path, capsys):
    from ray_jobs.cli import main

    folder = serving.saved_guard(tmp_path / "guard")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert main(["serve", str(folder), "--port", str(free_port())]) == 2
    assert "no safetensors file there" in capsys.readouterr().err

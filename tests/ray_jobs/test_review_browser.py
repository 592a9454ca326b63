"""The review page in a real headless browser, driven over the DevTools protocol: keys label, undo, close and reopen
keep what was said, and a hostile row is shown as text."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from ray_jobs import human_labels
from ray_jobs.ballots import ballot_row
from ray_jobs.review import Session
from ray_jobs.review_choice import Choice
from ray_jobs.review_server import application
from ray_jobs.store import Store
from ray_jobs.voters import BALLOT
from ray_jobs.votes import SAMPLE

HOSTILE = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>\u202egnp.exe\u0007 </p>"
TOKEN = "a-token-for-tests"


@asynccontextmanager
async def served(session: Session) -> AsyncIterator[str]:
    runner = web.AppRunner(application(session, TOKEN))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield f"http://127.0.0.1:{port}/{TOKEN}/"
    finally:
        await runner.cleanup()


def sample(number: int) -> dict[str, Any]:
    severity = ("Safe", "Controversial", "Unsafe")[number % 3]
    return {"id": f"s{number:02}", "parent_id": f"p{number}", "group_id": f"g{number}", "side": "response" if number % 2
            else "prompt", "prompt": HOSTILE if number == 0 else f"question {number}", "history": [],
            "response": f"answer {number}" if number % 2 else "", "thinking": "", "language": "en",
            "leaf": "illegal.theft", "source": "generated", "pair_id": "", "intended": severity, "severity": severity,
            "categories": [] if severity == "Safe" else ["illegal"], "refusal": False if number % 2 else None,
            "confidence": 0.7, "abstain": False, "origin": "votes"}  # fmt: skip


@pytest.fixture
def reviewed(store, put) -> Store:
    rows = [sample(number) for number in range(14)]
    put(store, "votes", SAMPLE, rows, "made")
    ballots = [
        ballot_row(row, voter, row["side"], [0.2, 0.2, 0.6], [0.1] * 8, None)
        for row in rows
        for voter in "ab"
    ]
    put(store, "ballots", BALLOT, ballots, "made")
    return store


def test_ten_labelled_one_undone_closed_and_reopened_nine_are_there(reviewed, safety, browse):
    async def go() -> None:
        session = Session(reviewed, safety, "votes", Choice("random"), "ada")
        async with browse() as (tab, close), served(session) as address:
            number, page = await tab(address)
            await page.press(*"1231231231")
            assert await page.text("count") == "10 of 14 labelled"
            await page.press("u")
            assert (await page.text("count"), await page.text("said")) == (
                "9 of 14 labelled",
                "Undone: row 10",
            )
            await close(number, page)
            for _ in range(100):
                if human_labels.read(reviewed):
                    break
                await asyncio.sleep(0.05)
            assert len(human_labels.read(reviewed)) == 9
            number, page = await tab(address)
            assert (await page.text("count"), await page.text("unsaved")) == (
                "9 of 14 labelled",
                "(all saved)",
            )
            assert await page.value("document.body.dataset.at") == "9"
            await close(number, page)
        rows = human_labels.read(reviewed)
        assert [row["severity"] for row in rows] == ["Safe", "Controversial", "Unsafe"] * 3
        assert {row["reviewer"] for row in rows} == {"ada"} and {row["seen"] for row in rows} == {"votes@v1"}
        assert [row["parent_id"] for row in rows] == [row["id"] for row in session.rows[:9]]

    asyncio.run(go())


def test_a_hostile_row_is_shown_as_text_and_votes_stand_beside_it(reviewed, safety, browse):
    async def go() -> None:
        session = Session(reviewed, safety, "votes", Choice("random", "id = 's00'"), "ada")
        async with browse() as (tab, close), served(session) as address:
            number, page = await tab(address)
            shown = HOSTILE.replace("\u202e", "U+202E").replace("\u0007", "U+0007")
            assert await page.text("prompt") == shown
            assert await page.value("window.hacked === undefined && document.images.length === 0")
            table = "[...document.querySelectorAll('#votes td')].map((cell) => cell.textContent)"
            assert (await page.value(table))[:5] == ["a", "0.20", "0.20", "0.60", ""]
            inline = "const s = document.createElement('script'); s.textContent = 'window.hacked = 1'"
            run = "document.body.append(s); return window.hacked === undefined"
            assert await page.value(f"(() => {{ {inline}; {run} }})()")  # the security policy lets it not run
            await page.press("a", "3")  # the first category, then Unsafe
            await close(number, page)
        assert [(row["severity"], row["categories"]) for row in human_labels.read(reviewed)] == [
            ("Unsafe", ["violent"])
        ]

    asyncio.run(go())

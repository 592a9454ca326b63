"""The guard's server on a real loopback socket: verdicts as text comes, many streams at once, the filter before a real
streaming upstream, and what it refuses."""

import asyncio
import json
from contextlib import asynccontextmanager
from itertools import pairwise

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.commands_serve import thresholds
from ray_jobs.serve.batch import Full, Judge
from ray_jobs.serve.gate import Gate
from ray_jobs.serve.session import Session
from ray_jobs.serve.upstream import Upstream as Endpoint
from synth.errors import BadInput
from train.stream_verdict import rule

ASK = [{"role": "user", "content": "hello"}]
TEXT = "the old dog sings, a kite # walks and ## falls 你好，世界 ~~ 😀 end"


@pytest.fixture(scope="module")
def guard(serving):
    return serving.marked_guard()


def run(coroutine):
    return asyncio.run(coroutine)


@asynccontextmanager
async def session(guard, reading="strict", streams=4, context=500):
    judge = Judge(guard[0], streams, context)
    one = Session(judge, guard[1], rule(guard[0].config.maps, reading), ASK)
    try:
        await one.open()
        yield one
    finally:
        one.close()


async def judged_in(guard, pieces):
    async with session(guard) as one:
        for piece in pieces:
            await one.push(piece)
        await one.end()
        return [(v["start"], v["end"], v["risk_level"]) for v in one.verdicts], one.onset


cuts = st.lists(st.integers(1, len(TEXT) - 1), max_size=20).map(
    lambda cuts: [0, *sorted(set(cuts)), len(TEXT)]
)


@settings(max_examples=25, deadline=None)
@given(cuts)
def test_verdicts_do_not_depend_on_how_the_text_was_cut(guard, cuts):
    pieces = [TEXT[a:b] for a, b in pairwise(cuts)]
    assert run(judged_in(guard, pieces)) == run(judged_in(guard, [TEXT]))


async def passed(guard, pieces, hold=32):
    async with session(guard) as one:
        gate, seen = Gate(one, hold), []
        for piece in pieces:
            seen.append(await gate.push(piece))
        seen.append(await gate.end())
        return "".join(seen), gate.stopped, seen


@settings(max_examples=25, deadline=None)
@given(cuts)
def test_the_gate_passes_the_same_text_however_it_was_cut(guard, cuts):
    pieces = [TEXT[a:b] for a, b in pairwise(cuts)]
    text, stopped, _ = run(passed(guard, pieces))
    assert text == "the old dog sings, a kite # walks and "
    assert stopped and (stopped["risk_level"], stopped["category"], stopped["character"]) == ("Bad", "B", 39)


def test_the_gate_passes_all_of_a_safe_text_and_lags_by_about_a_word(guard):
    clean = "the old dog walks over a small bridge and sings "
    text, stopped, seen = run(passed(guard, list(clean)))
    assert text == clean and stopped is None
    waits = [len(clean[: i + 1]) - len("".join(seen[: i + 1])) for i in range(len(clean))]
    assert max(waits) <= len("bridge ") + 1


def test_a_text_without_places_to_cut_is_held_back_by_so_many_tokens_only(guard):
    text, stopped, seen = run(passed(guard, ["你"] * 60, hold=9))
    assert text == "你" * 60 and stopped is None
    assert sum(map(len, seen[:-1])) >= 50
    assert run(passed(guard, ["你"] * 20 + ["##"] + ["你"] * 20, hold=9))[:1] == ("你" * 20,)


def test_one_flagged_token_waits_for_the_next(guard):
    text, stopped, seen = run(passed(guard, ["a #", " b", " #", "# c d"]))
    assert (text, bool(stopped)) == ("a # b ", True)
    assert "".join(seen[:1]) in ("a", "a ")


def test_streams_share_steps_and_a_dropped_one_gives_its_place_back(guard):
    steps = []

    async def go():
        judge = Judge(guard[0], 3, 500, lambda seconds, tokens, streams: steps.append(streams))
        made = [Session(judge, guard[1], rule(guard[0].config.maps, "strict"), ASK) for _ in range(3)]
        with pytest.raises(Full, match="all 3 streams"):
            Session(judge, guard[1], rule(guard[0].config.maps, "strict"), ASK)
        await asyncio.gather(*(one.open() for one in made))
        await asyncio.gather(*(one.push(f"kite {'#' * n} x ") for n, one in enumerate(made)))
        assert [one.onset is None for one in made] == [True, True, False]
        dropped = asyncio.create_task(made[0].push("more text"))
        await asyncio.sleep(0)
        dropped.cancel()
        made[0].close()
        await made[1].push(" y")
        again = Session(judge, guard[1], rule(guard[0].config.maps, "strict"), ASK)
        await again.open()
        await again.push("## ")
        assert again.onset == 1 and judge.open_streams == 3

    run(go())
    assert max(steps) == 3


def test_a_long_prompt_is_judged_in_parts_and_too_long_a_stream_is_refused(guard):
    async def go():
        judge = Judge(guard[0], 1, 500)
        one = Session(
            judge, guard[1], rule(guard[0].config.maps, "strict"), [{"role": "user", "content": "x" * 400}]
        )
        assert (await one.open())["risk_level"] == "Safe" and one.state.length > 400
        with pytest.raises(BadInput, match="the guard's context 500"):
            await one.push("y" * 200)

    run(go())


async def live(url, *messages, count):
    async with aiohttp.ClientSession() as client, client.ws_connect(f"{url}/stream") as socket:
        for message in messages:
            await (socket.send_json if isinstance(message, dict) else socket.send_str)(message)
        return [json.loads((await socket.receive()).data or "null") for _ in range(count)]


def test_a_live_stream_tells_the_query_every_token_and_the_end(guard, serving):
    async def go():
        async with serving.running(guard) as (url, state):
            told = await live(
                url, {"messages": ASK}, {"text": "a ki"}, {"text": "te ## ", "end": True}, count=4
            )
            assert told[0]["event"] == "query" and not told[0]["flagged"]
            shown: list = []
            for event in told[1:3]:
                shown[event["first"] :] = event["tokens"]
            assert "".join(token["text"] for token in shown) == "a kite ## "
            assert [token["text"] for token in shown if token["flagged"]] == ["#", " "]
            assert told[3] == {
                "event": "done",
                "flagged": True,
                "onset": shown.index(next(t for t in shown if t["flagged"])),
            }
            async with aiohttp.ClientSession() as client, client.get(f"{url}/metrics") as reply:
                text = await reply.text()
            assert 'guardmill_flagged_total{category="B",risk="Bad",side="response"} 1.0' in text
            assert (
                "guardmill_streams_open 0.0" in text and 'guardmill_streams_total{route="stream"} 1.0' in text
            )
            assert state.judge.open_streams == 0

    run(go())


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (["{"], "not JSON"),
        (["[1]"], "no JSON object"),
        ([{"text": "x"}], "begins with its messages"),
        ([{"messages": [{"role": "assistant", "content": "x"}]}], "begins with the user's turn"),
        (
            [{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}],
            "last message",
        ),
        ([{"messages": [{"role": "root", "content": "x"}]}], "message 0: its role is 'root'"),
        ([{"messages": [{"role": "user", "content": 3}]}], "content is not text"),
        ([{"messages": ASK}, {"text": 3}], "a stream goes on with"),
        ([{"messages": ASK}, {"text": "y" * 600}], "the guard's context 512"),
    ],
)
def test_a_wrong_message_ends_the_stream_with_one_sentence(guard, serving, messages, said):
    async def go():
        async with serving.running(guard) as (url, state):
            opened = sum(isinstance(one, dict) and one.get("messages") == ASK for one in messages)
            told = await live(url, *messages, count=1 + opened)
            assert said in told[-1]["error"] and told[-1]["error"].count(". ") == 0
            assert state.judge.open_streams == 0

    run(go())


def test_a_whole_conversation_comes_back_line_by_line(guard, serving):
    async def go():
        async with serving.running(guard, reading="loose") as (url, _), aiohttp.ClientSession() as client:
            body = {"prompt": "hello", "response": "~~ is grey; \ud83d ## is bad"}
            async with client.post(f"{url}/moderate", data=json.dumps(body)) as reply:
                told = [json.loads(line) for line in (await reply.text()).splitlines()]
            assert [event["event"] for event in told] == ["query", "tokens", "tokens", "done"]
            assert told[-1]["flagged"] and "\ufffd" in [token["text"] for token in told[1]["tokens"]]
            assert told[1]["tokens"][told[-1]["onset"]]["text"] == "#"
            for wrong, said in (
                (b"{", "not JSON"),
                (b"[" * 100_000, "not JSON"),
                (b'{"prompt": 1}', "not text"),
            ):
                async with client.post(f"{url}/moderate", data=wrong) as reply:
                    assert reply.status == 400 and said in (await reply.json())["error"]["message"]

    run(go())


def test_other_hosts_and_other_origins_are_refused(guard, serving):
    async def go():
        async with serving.running(guard) as (url, _), aiohttp.ClientSession() as client:
            for headers in (
                {"Host": "evil.example:80"},
                {"Origin": "http://evil.example"},
                {"Origin": "null"},
            ):
                async with client.get(f"{url}/health", headers=headers) as reply:
                    assert reply.status == 403
                with pytest.raises(aiohttp.WSServerHandshakeError):
                    await client.ws_connect(f"{url}/stream", headers=headers)
            async with client.get(f"{url}/health", headers={"Origin": url}) as reply:
                assert (await reply.json())["status"] == "ok"
            async with client.post(f"{url}/v1/chat/completions", json={}) as reply:
                assert reply.status == 404 and "--upstream" in (await reply.json())["error"]["message"]

    run(go())


def test_thresholds_name_categories_that_the_guard_has():
    assert thresholds(["A=0.3", "*=1"], {"A", "*"}) == {"A": 0.3, "*": 1.0}
    for given_, said in (
        ("Z=0.3", "no category 'Z'"),
        ("A=x", "'x' is no number"),
        ("A=2", "between 0 and 1"),
    ):
        with pytest.raises(BadInput, match=said):
            thresholds([given_], {"A", "*"})


def chunks(text, size, **last):
    """An upstream's events, as OpenAI sends them."""
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    about = {"id": "up-1", "object": "chat.completion.chunk", "model": "m"}
    yield {
        **about,
        "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}],
    }
    for piece in pieces:
        yield {**about, "choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]}
    yield {**about, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    yield {**about, "choices": [], "usage": {"total_tokens": 9}}


class Upstream:
    """Streams `events`; counts how many it could send and remembers what it was asked."""

    def __init__(self, events, pause=0.0):
        self.events, self.pause, self.sent, self.asked, self.key = list(events), pause, 0, None, None

    async def __call__(self, request):
        self.asked, self.key = await request.json(), request.headers.get("Authorization")
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await reply.prepare(request)
        for event in self.events:
            await reply.write(
                event if isinstance(event, bytes) else f"data: {json.dumps(event)}\n\n".encode()
            )
            self.sent += 1
            await asyncio.sleep(self.pause)
        await reply.write(b"data: [DONE]\n\n")
        return reply


async def chat(serving, guard, upstream, body=None, **settings):
    """Status, events (or the answer), and the server's state, of one request through the filter."""
    asked = {"model": "m", "messages": ASK, "stream": True} | (body or {})
    key = {"Authorization": "Bearer k"}
    async with (
        serving.endpoint(upstream) as behind,
        serving.running(guard, upstream=Endpoint(behind), **settings) as (url, state),
        aiohttp.ClientSession() as client,
    ):
        async with client.post(f"{url}/v1/chat/completions", json=asked, headers=key) as reply:
            raw = await reply.text()
        assert state.judge.open_streams == 0
    if reply.content_type != "text/event-stream":
        return reply.status, json.loads(raw), state
    events = [part.removeprefix("data: ") for part in raw.split("\n\n") if part]
    return reply.status, [event if event == "[DONE]" else json.loads(event) for event in events], state


def content(events, index=0, field="content"):
    chosen = [c for e in events if e != "[DONE]" for c in e.get("choices", ()) if c["index"] == index]
    return "".join(c["delta"].get(field) or "" for c in chosen)


def test_a_safe_answer_passes_whole_and_streams(guard, serving):
    upstream = Upstream(chunks("the old dog walks over a small bridge", 3))
    status, events, _ = run(chat(serving, guard, upstream))
    assert status == 200 and content(events) == "the old dog walks over a small bridge"
    assert events[-1] == "[DONE]" and events[-2]["usage"] == {"total_tokens": 9}
    assert events[-3]["choices"][0]["finish_reason"] == "stop" and len(events) > 6
    assert upstream.asked["messages"] == ASK and upstream.key == "Bearer k"
    assert events[0]["choices"][0]["delta"] == {"role": "assistant"} and events[0]["id"] == "up-1"


def test_a_flagged_answer_is_stopped_with_the_reason_and_the_upstream_is_left(guard, serving):
    upstream = Upstream(chunks("the old dog ## " + "and so on " * 300, 5), pause=0.01)
    _, events, _ = run(chat(serving, guard, upstream))
    assert content(events) == "the old dog "
    last = events[-2]["choices"][0]
    assert last["finish_reason"] == "content_filter" and events[-1] == "[DONE]"
    assert (last["guardmill"]["risk_level"], last["guardmill"]["category"]) == ("Bad", "B")
    assert last["guardmill"]["character"] == 13 and last["guardmill"]["side"] == "response"
    assert upstream.sent < 300


def test_every_choice_has_a_stream_of_its_own(guard, serving):
    two = [
        {"choices": [{"index": i, "delta": {"content": text}, "finish_reason": None}]}
        for text in ("a kite ", "## b ", "c ")
        for i in (0, 1)
        if (i, text) != (1, "## b ")
    ]
    ends = [{"choices": [{"index": i, "delta": {}, "finish_reason": "stop"} for i in (0, 1)]}]
    _, events, _ = run(chat(serving, guard, Upstream(two + ends), {"n": 2}))
    assert (content(events, 0), content(events, 1)) == ("a kite ", "a kite c ")


def test_thinking_text_is_judged_too_and_keeps_its_field(guard, serving):
    def said(field, text):
        return {"choices": [{"index": 0, "delta": {field: text}, "finish_reason": None}]}

    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    good = [
        said("reasoning_content", "the dog "),
        said("reasoning_content", "walks"),
        said("content", "a kite"),
        end,
    ]
    _, events, _ = run(chat(serving, guard, Upstream(good)))
    assert (content(events, 0, "reasoning_content"), content(events)) == ("the dog walks", "a kite")
    _, events, _ = run(chat(serving, guard, Upstream([said("reasoning_content", "go ## "), *good])))
    assert content(events, 0, "reasoning_content") == "go " and content(events) == ""
    assert events[-2]["choices"][0]["guardmill"]["part"] == "thinking"
    bad = [said("reasoning_content", "the dog #"), said("content", "# a kite ## b"), end]
    _, events, _ = run(chat(serving, guard, Upstream(bad)))
    assert (content(events, 0, "reasoning_content"), content(events)) == ("the dog #", "# a kite ")


def test_an_answer_in_one_piece_is_cut_where_it_is_flagged(guard, serving):
    async def whole(request):
        message = {"role": "assistant", "content": "a kite ## b", "refusal": None}
        return web.json_response(
            {"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        )

    status, answer, _ = run(chat(serving, guard, whole, {"stream": False}))
    (choice,) = answer["choices"]
    assert status == 200 and choice["message"]["content"] == "a kite "
    assert choice["finish_reason"] == "content_filter" and choice["guardmill"]["risk_level"] == "Bad"


@pytest.mark.parametrize("stream", [True, False])
def test_a_flagged_prompt_never_reaches_the_upstream_unless_told(serving, stream):
    bad = serving.marked_guard(prompts="Bad")
    upstream = Upstream(chunks("a kite", 3))
    _, told, state = run(chat(serving, bad, upstream, {"stream": stream}))
    choice = (told[0] if stream else told)["choices"][0]
    assert choice["finish_reason"] == "content_filter" and choice["guardmill"]["side"] == "prompt"
    assert upstream.asked is None
    assert b'side="prompt"} 1.0' in state.metrics.text()
    if stream:
        _, told, _ = run(chat(serving, bad, upstream, check_prompts=False))
        assert content(told) == "a kite"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"messages": []}, "at least one message"),
        ({"messages": "hi"}, "at least one message"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "a part is not text",
        ),
        ({"tools": [{}]}, "tools cannot be used"),
        ({"logprobs": True}, "logprobs cannot be used"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "its role is 'tool'"),
    ],
)
def test_what_could_not_be_moderated_whole_is_refused(guard, serving, body, said):
    upstream = Upstream([])
    status, told, _ = run(chat(serving, guard, upstream, body))
    assert status == 400 and said in told["error"]["message"] and upstream.asked is None


def tool_call(text):
    return {
        "choices": [
            {"index": 0, "delta": {"tool_calls": [{"function": {"arguments": text}}]}, "finish_reason": None}
        ]
    }


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([tool_call("##")], "tool_calls is not moderated"),
        ([b"data: {nonsense\n\n"], "not JSON"),
        ([b"data: [1]\n\n"], "no JSON object"),
        ([{"error": {"message": "no capacity"}}], "no capacity"),
        ([b"data: " + b"x" * (2 << 20)], "more than"),
    ],
)
def test_an_upstream_that_misbehaves_passes_nothing_and_is_told(guard, serving, events, said):
    _, told, _ = run(chat(serving, guard, Upstream(events)))
    assert said in json.dumps(told) and content([e for e in told if e != "[DONE]"]) == ""


def test_an_upstream_that_refuses_or_is_not_there_is_told_with_its_status(guard, serving):
    async def busy(request):
        return web.json_response({"error": {"message": "too many"}}, status=429)

    status, told, _ = run(chat(serving, guard, busy))
    assert (status, told["error"]["message"]) == (429, "too many")

    async def gone():
        async with serving.running(guard, upstream=Endpoint("http://127.0.0.1:9/v1")) as (url, state):
            asked = aiohttp.ClientSession()
            async with asked, asked.post(f"{url}/v1/chat/completions", json={"messages": ASK}) as reply:
                said = (await reply.json())["error"]["message"]
            assert reply.status == 502 and "cannot be reached" in said
            assert state.judge.open_streams == 0

    run(gone())


def test_a_client_that_leaves_frees_its_stream_and_the_upstream(guard, serving):
    upstream = Upstream(chunks("and so on " * 2000, 5), pause=0.01)

    async def go():
        body = {"messages": ASK, "stream": True}
        async with (
            serving.endpoint(upstream) as behind,
            serving.running(guard, upstream=Endpoint(behind)) as (url, state),
            aiohttp.ClientSession() as client,
        ):
            async with client.post(f"{url}/v1/chat/completions", json=body) as reply:
                await reply.content.readline()
                assert state.judge.open_streams == 1
                reply.close()
            for _ in range(200):
                if state.judge.open_streams == 0:
                    break
                await asyncio.sleep(0.05)
            assert state.judge.open_streams == 0 and upstream.sent < 4000

    run(go())

"""The openai engine against a real server on loopback that misbehaves on purpose.

Each test says how the server answers the n-th request; waits are made short by the options, not by fakes.
"""

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.engine.calls import Completion, EngineDied, Failure, Model, Sampling, Scores
from ray_jobs.engine.openai import OpenAIModel, spread
from ray_jobs.engine.pace import Pace
from synth.errors import BadInput

KEY = "sk-test-0123456789abcdef"
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def chat(text, finish="stop", **message):
    choice = {
        "index": 0,
        "finish_reason": finish,
        "message": {"role": "assistant", "content": text, **message},
    }
    return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})


def echo(body):
    return chat(f"{body['messages'][-1]['content']}/{body['seed']}")


class Server:
    """Answers with `behave(number, body, request)`; remembers what came and when, and how many at once."""

    def __init__(self, behave):
        self.behave, self.bodies, self.times, self.headers = behave, [], [], []
        self.now = self.most = 0

    async def handle(self, request):
        body = await request.json()
        self.bodies.append(body)
        self.times.append(time.monotonic())
        self.headers.append(dict(request.headers))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            answer = self.behave(len(self.bodies), body, request)
            return await answer if asyncio.iscoroutine(answer) else answer
        finally:
            self.now -= 1


def ask(behave, call, kind="instruct", **options):
    """Start the server, build the engine, run `call(engine)`; returns its result (or exception) and the server."""

    async def main():
        server = Server(behave)
        app = web.Application()
        for path in ("chat/completions", "completions", "embeddings"):
            app.router.add_post(f"/v1/{path}", server.handle)
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        given = {"timeout_s": 1.0, "patience_s": 20.0, "attempts": 3, **options}
        given.setdefault("url", f"http://127.0.0.1:{port}/v1")
        engine = OpenAIModel(Model("openai", "some-model", kind, options=tuple(given.items())))
        try:
            return await asyncio.wait_for(call(engine), 30), server
        finally:
            await engine.endpoint.close()
            await runner.cleanup()

    return asyncio.run(main())


def write(count=1, **sampling):
    prompts = [[{"role": "user", "content": f"row {i}"}] for i in range(count)]
    return lambda engine: engine.generate(prompts, Sampling(**sampling), list(range(count)))


def test_rows_come_back_in_order_with_their_seed_sampling_and_tokens():
    rows, server = ask(
        lambda n, body, request: echo(body),
        write(30, max_tokens=7, temperature=0.5, top_p=0.9, stop=("\n",)),
    )
    assert [row.text for row in rows] == [f"row {i}/{i}" for i in range(30)]
    assert rows[0] == Completion("row 0/0", "stop", 3, 2)
    sent = next(body for body in server.bodies if body["seed"] == 4)
    wanted = {"model": "some-model", "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "stop": ["\n"]}
    assert wanted.items() <= sent.items() and "top_k" not in sent
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_a_text_goes_to_completions_and_a_base_model_refuses_messages():
    def behave(number, body, request):
        assert request.path.endswith("/v1/completions") and body["prompt"] == "Once"
        return web.json_response({"choices": [{"text": " upon a time", "finish_reason": "length"}]})

    rows, _ = ask(
        behave, lambda e: e.generate(["Once", MESSAGES], Sampling(), [1, 2]), kind="base", top_k=True
    )
    assert rows[0] == Completion(" upon a time", "length", 0, 0)
    assert "chat template" in rows[1].reason


def test_thinking_comes_back_in_front_and_a_content_filter_is_a_failure():
    def behave(number, body, request):
        row = body["messages"][0]["content"]
        if row == "row 0":
            return chat("yes", reasoning_content="hm")
        return chat("half a", "content_filter") if row == "row 1" else chat(None)

    rows, _ = ask(behave, write(3))
    assert rows[0].text == "<think>hm</think>\nyes"
    assert "content filter" in rows[1].reason and rows[1].raw == "half a"
    assert "holds no text" in rows[2].reason


def test_retry_after_holds_everyone_back_and_loses_no_row():
    def behave(number, body, request):
        if number == 1:
            return web.Response(status=429, headers={"Retry-After": "1"}, text="slow down")
        return echo(body)

    rows, server = ask(behave, write(12), concurrency=1)
    assert [row.text for row in rows] == [f"row {i}/{i}" for i in range(12)]
    assert server.times[1] - server.times[0] >= 0.95


def test_retry_after_may_be_a_date():
    def behave(number, body, request):
        if number == 1:
            until = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
            return web.Response(status=429, headers={"Retry-After": until})
        return echo(body)

    rows, server = ask(behave, write(1))
    assert rows[0].text == "row 0/0"
    assert server.times[1] - server.times[0] >= 0.9


def test_many_429_without_retry_after_cost_no_row_its_attempts():
    def behave(number, body, request):
        return echo(body) if number % 3 == 0 else web.Response(status=429)

    rows, server = ask(behave, write(6), attempts=1)
    assert [row.text for row in rows] == [f"row {i}/{i}" for i in range(6)]
    assert len(server.bodies) > 6


def test_concurrency_grows_to_what_the_endpoint_bears_and_shrinks_when_told():
    async def slow(body, server_now):
        await asyncio.sleep(0.02)
        return echo(body)

    holder = {}

    def behave(number, body, request):
        if holder["server"]().now > 12:
            return web.Response(status=429)
        return slow(body, None)

    def with_server(engine):
        return write(200)(engine)

    original = Server.handle

    async def handle(self, request):
        holder["server"] = lambda: self
        return await original(self, request)

    Server.handle = handle
    try:
        rows, server = ask(behave, with_server, concurrency=64)
    finally:
        Server.handle = original
    assert [row.text for row in rows] == [f"row {i}/{i}" for i in range(200)]
    refused = len(server.bodies) - 200
    assert server.most > 8 and 0 < refused < 120


def test_a_500_is_tried_again_and_a_row_that_always_gets_one_is_quarantined_alone():
    def behave(number, body, request):
        if body["messages"][0]["content"] == "row 1" or number == 1:
            return web.Response(status=500, text=f"boom, your key {KEY} is fine")
        return echo(body)

    rows, _ = ask(behave, write(3))
    assert [type(row) for row in rows] == [Completion, Failure, Completion]
    assert "500" in rows[1].reason and "(3 attempts)" in rows[1].reason
    assert rows[1].raw.startswith("boom")
    assert KEY not in str(rows)


@pytest.mark.parametrize(("answer", "words"), [
    ("<html><body>Sign in</body></html>", "HTML"),
    ('{"choices": [{"mess', "unreadable JSON"),
    ('{"error": {"message": "internal"}}', "an error"),
    ("[1, 2]", "unreadable JSON"),
])  # fmt: skip
def test_an_answer_that_is_no_answer_is_a_failure_with_its_text(answer, words):
    rows, server = ask(lambda n, body, r: web.Response(text=answer, content_type="text/plain"), write(1))
    assert words in rows[0].reason and rows[0].raw == answer
    assert len(server.bodies) == 3


def test_an_answer_without_choices_is_a_failure():
    rows, _ = ask(lambda n, body, r: web.json_response({"object": "nothing"}), write(1))
    assert "no choices" in rows[0].reason


def test_a_cut_answer_and_a_hang_are_tried_again():
    async def cut(request):
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"choices": [')
        request.transport.close()
        return response

    async def hang():
        await asyncio.sleep(20)

    def behave(number, body, request):
        return {1: lambda: cut(request), 2: hang}.get(number, lambda: echo(body))()

    rows, server = ask(behave, write(1), timeout_s=0.5)
    assert rows[0].text == "row 0/0" and len(server.bodies) == 3


def test_a_row_that_always_hangs_is_quarantined_while_the_others_go_on():
    async def hang():
        await asyncio.sleep(20)

    def behave(number, body, request):
        return hang() if body["messages"][0]["content"] == "row 1" else echo(body)

    rows, _ = ask(behave, write(4), timeout_s=0.3)
    assert [type(row) for row in rows] == [Completion, Failure, Completion, Completion]
    assert "no answer within" in rows[1].reason


def test_a_refused_row_is_not_tried_again():
    def behave(number, body, request):
        if body["messages"][0]["content"] == "row 0":
            return web.json_response({"error": {"message": "context is 4096"}}, status=400)
        return echo(body)

    rows, server = ask(behave, write(2))
    assert rows[0].reason == "the endpoint refused the row (400): context is 4096"
    assert len(server.bodies) == 2


@pytest.mark.parametrize(("status", "body", "words"), [
    (401, f'{{"error": {{"message": "Incorrect API key provided: {KEY}"}}}}', r"refuses the key in \$OPENAI_API_KEY"),
    (404, '{"error": {"message": "The model some-model does not exist"}}', "does not have it"),
])  # fmt: skip
def test_a_wrong_key_or_model_ends_the_call_at_once_without_the_key(status, body, words):
    async def call(engine):
        with pytest.raises(BadInput, match=words) as caught:
            await write(50)(engine)
        return str(caught.value)

    said, server = ask(lambda n, b, r: web.Response(status=status, text=body), call)
    assert KEY not in said and "\n" not in said
    assert len(server.bodies) <= 16


def named(text, model):
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return web.json_response({"model": model, "choices": [choice]})


@pytest.mark.parametrize(
    "name", ["some-model", "some-model-2026-01-02", "owner/some-model", "Some-Model", None]
)
def test_dated_prefixed_and_missing_names_of_the_same_model_are_taken(name):
    rows, _ = ask(lambda n, body, r: named("yes", name), write(1))
    assert rows[0].text == "yes"


def test_an_endpoint_that_answers_as_another_model_ends_the_call_and_may_be_told_so():
    async def call(engine):
        with pytest.raises(
            BadInput, match=r"answers as model 'cheap-model', not as 'some-model'.* served_as"
        ):
            await write(20)(engine)

    ask(lambda n, body, r: named("yes", "cheap-model"), call)
    rows, server = ask(lambda n, body, r: named("yes", "cheap-model"), write(1), served_as="cheap-model")
    assert rows[0].text == "yes" and server.bodies[0]["model"] == "some-model"


def test_structure_is_asked_for_as_a_schema_and_checked_when_it_comes():
    said = iter(['{"answer": "Safe"}', '{"answer": "Perhaps"}', "Unsafe"])
    rows, server = ask(
        lambda n, body, r: chat(next(said)), write(3, choice=("Safe", "Unsafe")), concurrency=1
    )
    assert server.bodies[0]["response_format"]["json_schema"]["schema"]["properties"]["answer"]["enum"] == [
        "Safe", "Unsafe",
    ]  # fmt: skip
    assert (rows[0].text, rows[2].text) == ("Safe", "Unsafe")
    assert rows[1].reason == "the text is none of the stated choices" and rows[1].raw == "Perhaps"


def test_a_score_reads_the_place_behind_what_the_continuations_share():
    def behave(number, body, request):
        tops = [[("Safety", -0.1)], [(":", -0.1)], [(" Un", -0.2), (" Safe", -1.8)]]
        entries = [
            {"token": top[0][0], "top_logprobs": [{"token": t, "logprob": log} for t, log in top]}
            for top in tops
        ]
        return web.json_response(
            {"choices": [{"message": {"content": "x"}, "logprobs": {"content": entries}}]}
        )

    rows, server = ask(behave, lambda e: e.score([MESSAGES], [("Safety: Safe", "Safety: Unsafe")]))
    assert rows[0].probabilities[1] == pytest.approx(0.832, abs=0.01) and server.bodies[0]["max_tokens"] > 2


def test_an_empty_quota_ends_the_call():
    async def call(engine):
        with pytest.raises(EngineDied, match="quota"):
            await write(5)(engine)

    error = '{"error": {"code": "insufficient_quota", "message": "You exceeded your current quota"}}'
    ask(lambda n, b, r: web.Response(status=429, text=error), call)


def test_a_dead_endpoint_ends_the_call_within_patience():
    async def call(engine):
        started = time.monotonic()
        with pytest.raises(EngineDied, match="no connection to the endpoint"):
            await write(20)(engine)
        return time.monotonic() - started

    seconds, _ = ask(None, call, url="http://127.0.0.1:9/v1", patience_s=2.0)
    assert 2 <= seconds < 12


def test_the_circuit_opens_when_all_fails_and_closes_when_it_is_over():
    start = time.monotonic()

    def behave(number, body, request):
        return echo(body) if time.monotonic() - start > 1.5 else web.Response(status=502)

    rows, server = ask(behave, write(40), attempts=50)
    assert [row.text for row in rows] == [f"row {i}/{i}" for i in range(40)]
    down = [t for t in server.times if t - start <= 1.5]
    assert len(down) < 60, "an open circuit keeps rows from hammering an endpoint that is down"


def logs(tokens):
    entries = [{"token": token, "logprob": log} for token, log in tokens]
    choice = {"message": {"content": "Unsafe"}, "logprobs": {"content": [{"top_logprobs": entries}]}}
    return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 1}})


def test_score_reads_top_log_probabilities_and_says_that_it_approximates():
    rows, server = ask(
        lambda n, body, r: logs([("Un", -0.5), (" Safe", -1.5), ("Hello", -2.0)]),
        lambda e: e.score([MESSAGES, MESSAGES], [("Safe", "Unsafe", "Controversial"), ("Yes", "No")]),
    )
    assert isinstance(rows[0], Scores) and rows[0].approximate and rows[0].prompt_tokens == 5
    safe, unsafe, controversial = rows[0].probabilities
    assert sum(rows[0].probabilities) == pytest.approx(1)
    assert unsafe / safe == pytest.approx(2.71828, abs=1e-4) and controversial < safe / 2
    assert "no continuation" in rows[1].reason
    assert server.bodies[0]["top_logprobs"] == 20 and server.bodies[0]["max_tokens"] == 1


def test_score_reads_the_completions_shape_too():
    answer = {"choices": [{"text": " A", "logprobs": {"top_logprobs": [{" A": -0.1, " B": -2.4}]}}]}
    rows, _ = ask(lambda n, body, r: web.json_response(answer), lambda e: e.score(["x"], [(" B", " A")]))
    assert rows[0].probabilities[1] == pytest.approx(0.909, abs=0.01)


def test_an_endpoint_without_log_probabilities_is_a_failure():
    rows, _ = ask(lambda n, body, r: chat("Safe"), lambda e: e.score([MESSAGES], [("Safe", "Unsafe")]))
    assert isinstance(rows[0], Failure)


def test_embeddings_come_back_in_order_and_one_bad_text_costs_only_itself():
    def behave(number, body, request):
        if "bad" in body["input"]:
            return web.json_response({"error": {"message": "too long"}}, status=400)
        rows = [{"index": i, "embedding": [float(len(text)), 1.0]} for i, text in enumerate(body["input"])]
        return web.json_response({"data": rows[::-1], "usage": {"prompt_tokens": 10}})

    rows, _ = ask(behave, lambda e: e.embed(["a", "bbb", "bad", MESSAGES]))
    assert [row.values[0] for row in rows if not isinstance(row, Failure)] == [1.0, 3.0, 5.0]
    assert "too long" in rows[2].reason
    rows, _ = ask(lambda n, b, r: web.json_response({"data": []}), lambda e: e.embed(["a"]))
    assert isinstance(rows[0], Failure)


def test_no_endpoint_is_bad_input(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(BadInput, match="set the option url"):
        OpenAIModel(Model("openai", "some-model", "instruct"))


def test_the_key_is_in_no_attribute_that_is_printed():
    engine = OpenAIModel(Model("openai", "some-model", "instruct", options=(("url", "http://127.0.0.1:1"),)))
    assert KEY not in f"{engine} {engine.model} {engine.endpoint}"
    assert engine.endpoint.clean(f"x {KEY} y sk-another-key-0123456 z") == "x [key] y [key] z"


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(["ok", "slow", "fail", "leave"]), max_size=60))
def test_pace_stays_within_its_bounds_whatever_happens(endings):
    async def main():
        pace = Pace(most=16, patience=60)
        pace.rest = 0.0
        for ending in endings:
            pace.not_before = 0.0
            number = await asyncio.wait_for(pace.enter(), 1)
            before = pace.limit
            {
                "ok": lambda n=number: pace.succeed(n),
                "slow": lambda n=number: pace.slow_down(n, "slow"),
                "fail": lambda n=number: pace.fail(n, "down"),
                "leave": lambda n=number: pace.leave(n),
            }[ending]()
            assert 1 <= pace.limit <= 16 and pace.in_flight == 0
            assert pace.limit <= before + 1
            assert ending != "slow" or pace.limit == max(1, before / 2)

    asyncio.run(main())


def test_the_limit_doubles_every_round_when_all_answers_come_at_once():
    async def main():
        pace, rounds = Pace(most=64, patience=60), []
        waiting = [asyncio.create_task(pace.enter()) for _ in range(200)]
        while len(rounds) < 4:
            await asyncio.sleep(0.001)
            going = [task for task in waiting if task.done()]
            waiting = [task for task in waiting if not task.done()]
            rounds.append(len(going))
            for task in going:
                pace.succeed(task.result())
        assert rounds == [8, 16, 32, 64]
        for task in waiting:
            task.cancel()

    asyncio.run(main())


def test_a_place_given_to_one_who_gave_up_goes_to_the_next():
    async def main():
        pace = Pace(most=1, patience=60)
        number = await pace.enter()
        gone, waiting = (asyncio.create_task(pace.enter()) for _ in range(2))
        await asyncio.sleep(0)
        pace.succeed(number)
        gone.cancel()
        await asyncio.wait_for(waiting, 1)
        assert gone.cancelled() and (pace.in_flight, pace.woken) == (1, 0)

    asyncio.run(main())


def test_requests_that_were_under_way_together_halve_the_limit_once():
    async def main():
        pace = Pace(most=64, patience=60, start=16)
        numbers = [await pace.enter() for _ in range(16)]
        for number in numbers:
            pace.slow_down(number, "429")
        assert pace.limit == 8
        waiting = [asyncio.create_task(pace.enter()) for _ in range(20)]
        await asyncio.sleep(0.01)
        assert sum(task.done() for task in waiting) == 8
        pace.succeed(17)
        await asyncio.sleep(0.01)
        assert sum(task.done() for task in waiting) == 9
        for task in waiting:
            task.cancel()

    asyncio.run(main())


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text("SafeUn Ctro", min_size=1, max_size=6), st.floats(0.001, 0.2), min_size=1, max_size=5),
    st.lists(st.sampled_from(["Safe", "Unsafe", "Controversial", " No"]), min_size=1, max_size=4, unique=True),
)  # fmt: skip
def test_spread_is_a_distribution_or_nothing(shown, continuations):
    found = spread(shown, continuations)
    if found is not None:
        assert sum(found) == pytest.approx(1) and min(found) >= 0 and len(found) == len(continuations)
    else:
        words = [token.lstrip() for token in shown if token.strip()]
        assert not any(text.strip().startswith(word) for text in continuations for word in words)


def test_answers_are_json_that_the_bodies_survive():
    rows, server = ask(lambda n, body, r: echo(body), lambda e: e.generate(
        [[{"role": "user", "content": "租房 \ud83d\ude00 \"quoted\""}]], Sampling(), [2**62]
    ))  # fmt: skip
    assert rows[0].text.endswith(str(2**62))
    assert json.dumps(server.bodies[0])

"""People's labels: kept for ever, merged when two save at once, and never outvoted by a machine."""

import asyncio
import json
from collections import Counter

import pytest
from aiohttp.test_utils import TestClient, TestServer

from ray_jobs import controversial, human_labels, votes
from ray_jobs.ballots import ballot_row
from ray_jobs.cli import main
from ray_jobs.combiner import COMBINER
from ray_jobs.engine import Model
from ray_jobs.gold import GOLD
from ray_jobs.human_labels import Said, consensus, label_row
from ray_jobs.review import Session
from ray_jobs.review_choice import ORDERS, Choice
from ray_jobs.review_files import export_labels, export_rows, import_labels
from ray_jobs.review_server import application
from ray_jobs.seeds import PROMPT
from ray_jobs.step.plan import plan
from ray_jobs.token_tables import TOKEN_LABELS
from ray_jobs.translations import REJECTED
from ray_jobs.voters import BALLOT
from ray_jobs.votes import SAMPLE
from synth.errors import BadInput

SAFE, BAD = Said("Safe"), Said("Unsafe", ("violent",))


def sample(number: int, **given) -> dict:
    severity = ("Safe", "Controversial", "Unsafe")[number % 3]
    return {"id": f"s{number:02}", "parent_id": f"p{number:02}", "group_id": f"g{number:02}", "side": "prompt",
            "prompt": f"question {number}", "history": [], "response": "", "thinking": "", "language": "en",
            "leaf": "violent.weapons", "source": "generated", "pair_id": "", "intended": severity, "severity": severity,
            "categories": [] if severity == "Safe" else ["violent"], "refusal": None, "confidence": 0.5 + number / 100,
            "abstain": number % 4 == 0, "origin": "votes"} | given  # fmt: skip


@pytest.fixture
def reviewed(store, put):
    """Twelve samples, two of them responses and two translations, with the ballots of two voters."""
    rows = [sample(number) for number in range(8)]
    rows += [sample(n, side="response", response=f"answer {n}", refusal=False) for n in (8, 9)]
    put(store, "votes", SAMPLE, rows, "made")
    spread = {row["id"]: at / 10 for at, row in enumerate(rows[:4])}
    ballots = []
    for row in rows:
        apart = spread.get(row["id"], 0.0)
        ballots.append(
            ballot_row(row, "voter-1", row["side"], [0.5 + apart, 0.5 - apart, 0.0], [0.9] + [0.0] * 7, None)
        )
        ballots.append(ballot_row(row, "voter-2", row["side"], [0.5, 0.5, 0.0], [0.0] * 8, None))
    put(store, "ballots", BALLOT, ballots, "made")
    turned = {"response": "answer 8", "part": "answer", "onset": 3, "outcome": "found", "severity": "Unsafe"}
    put(store, "token_labels", TOKEN_LABELS, [{"id": "t8", "parent_id": "s08", "group_id": "g08"} | turned])
    return store


def rows_of(policy, said: dict[str, dict[int, Said]]) -> list[dict]:
    """{reviewer: {sample number: said}} as rows, in the order given."""
    every = [(person, number, told) for person, labels in said.items() for number, told in labels.items()]
    return [
        label_row(policy, sample(number), told, person, f"2030-01-01T00:00:{at:02}", "votes@v1")
        for at, (person, number, told) in enumerate(every)
    ]


def test_what_most_people_say_counts_a_tie_is_disputed_and_the_last_word_of_each_is_theirs(safety):
    told = rows_of(safety, {"ada": {1: SAFE, 2: BAD, 3: SAFE}, "bo": {2: SAFE, 3: SAFE}, "cy": {3: BAD}})
    found = consensus(told)
    assert (found["s01"].said, found["s01"].disputed, found["s01"].reviewers) == (SAFE, False, ("ada",))
    assert found["s02"].disputed and (found["s03"].said, found["s03"].disputed) == (SAFE, False)
    again = label_row(safety, sample(2), SAFE, "ada", "2030-01-02", "votes@v1")
    assert consensus([again, *told])["s02"].said == SAFE and not consensus([again, *told])["s02"].disputed


def test_labels_of_people_replace_the_votes_disputed_and_unusable_rows_train_nothing(safety):
    told = rows_of(
        safety, {"ada": {1: BAD, 2: SAFE, 3: BAD, 4: Said(unusable=True), 5: Said("Unsafe")}, "bo": {3: SAFE}}
    )
    rows = [sample(number) for number in range(6)]
    counts = human_labels.apply(safety, rows, consensus(told))
    assert counts == Counter(human=3, disputed=1, unusable=1)
    assert [
        (r["severity"], r["categories"], r["origin"], r["abstain"], r["confidence"]) for r in rows[:4]
    ] == [
        ("Safe", [], "votes", True, 0.5),
        ("Unsafe", ["violent"], "human", False, 1.0),
        ("Safe", [], "human", False, 1.0),
        ("Safe", [], "disputed", True, 0.53),
    ]
    assert (rows[4]["origin"], rows[4]["abstain"]) == ("unusable", True)
    assert rows[5]["categories"] == ["violent"]  # nobody named one: the row's own


def test_a_label_that_the_policy_lacks_is_refused_and_an_old_one_is_left_out(safety):
    for said, part in (
        (Said("Bad"), "unknown severity 'Bad'"),
        (Said("Unsafe", ("nope",)), "no category 'nope'"),
    ):
        with pytest.raises(BadInput, match=part):
            label_row(safety, sample(1), said, "ada", "now", "votes@v1")
    row = rows_of(safety, {"ada": {1: BAD}})[0] | {"severity": "Gone"}
    assert human_labels.apply(safety, rows := [sample(1)], consensus([row])) == {
        "label that the policy no longer has": 1
    }
    assert rows == [sample(1)]


def test_saving_adds_and_never_takes_away_and_saves_nothing_twice(store, safety):
    first, second = rows_of(safety, {"ada": {1: BAD}}), rows_of(safety, {"bo": {1: SAFE, 2: SAFE}})
    made = human_labels.save(store, first, {"votes": "votes@v1"})
    assert made.provenance.inputs == {"votes": "votes@v1"} and made.provenance.config == {
        "reviewers": ["ada"]
    }
    assert human_labels.save(store, first, {}).ref == made.ref
    human_labels.save(store, second, {})
    assert {row["id"] for row in human_labels.read(store)} == {row["id"] for row in first + second}


def test_of_two_who_save_at_once_neither_loses_a_label(store, safety, monkeypatch):
    mine, theirs = rows_of(safety, {"ada": {1: BAD}}), rows_of(safety, {"bo": {2: SAFE}})
    human_labels.ensure(store)
    plain, waiting = store.commit, [theirs]

    def commit(*given):
        if waiting:  # another process commits between our read and our commit
            human_labels.save(store, waiting.pop(), {})
        return plain(*given)

    monkeypatch.setattr(store, "commit", commit)
    human_labels.save(store, mine, {})
    assert {row["reviewer"] for row in human_labels.read(store)} == {"ada", "bo"}


def test_agreement_counts_shared_rows_and_names_disputed_ones(safety):
    same = {number: SAFE if number % 2 else BAD for number in range(10)}
    told = rows_of(safety, {"ada": same, "bo": same | {0: SAFE}, "cy": {}})
    found = human_labels.agreement(told)
    assert (found["shared"], found["same"], found["disputed"]) == (10, 0.9, ["s00"])
    assert found["reviewers"] == {"ada": 10, "bo": 10} and 0.7 < found["alpha"] < 0.9
    assert human_labels.agreement(rows_of(safety, {"ada": {1: SAFE}}))["alpha"] is None


def test_every_order_shows_what_it_says_and_the_same_twice(reviewed, safety):
    def ids(order: str, **given) -> list[str]:
        return [row["id"] for row in Session(reviewed, safety, "votes", Choice(order, **given), "ada").rows]

    human_labels.save(reviewed, rows_of(safety, {"bo": {1: SAFE, 2: BAD}, "ada": {2: BAD}}), {})
    shown = {order: ids(order) for order in ORDERS if order != "translated"}
    assert shown == {order: ids(order) for order in shown}
    assert sorted(shown["random"]) == sorted(shown["stratified"]) == [f"s{n:02}" for n in range(10)]
    assert shown["random"] != ids("random", seed=3) and len(ids("random", count=4)) == 4
    assert shown["abstained"] == ["s00", "s04", "s08"] and shown["disagreeing"] == ["s03", "s02", "s01"]
    assert shown["second"] == ["s01"] and sorted(ids("random", query="severity = 'Safe'")) == [
        "s00",
        "s03",
        "s06",
        "s09",
    ]
    first = Session(reviewed, safety, "votes", Choice(), "ada").rows[:5]
    assert len({(row["side"], row["severity"]) for row in first}) == 5  # the sixth stratum is empty
    with pytest.raises(BadInput, match="no row for the order 'translated'"):
        ids("translated")
    with pytest.raises(BadInput, match="cannot be used on votes@v1"):
        ids("random", query="colour = 'red'")
    with pytest.raises(BadInput, match="tables to review are votes"):
        Session(reviewed, safety, "ballots", Choice(), "ada")


def test_a_row_comes_with_votes_tokens_and_the_source_of_a_translation(reviewed, safety, put):
    made = reviewed.resolve("votes").ref
    row = sample(20, source="translation", parent_id="s01", prompt="pregunta", language="es")
    table = put(reviewed, "translations", SAMPLE, [row])
    session = Session(reviewed, safety, "votes", Choice("random", "id = 's08'"), "ada")
    page = session.page(0)
    assert [vote["severity"]["Safe"] for vote in page["votes"]] == [0.5, 0.5] and page["votes"][0][
        "categories"
    ]
    assert page["tokens"] == {"onset": 3, "outcome": "found"} and page["guess"]["severity"] == "Unsafe"
    blind = Session(reviewed, safety, "votes", Choice("random", "id = 's08'"), "ada", blind=True)
    assert (blind.page(0)["guess"], blind.page(0)["votes"], blind.page(0)["tokens"]) == (None, [], None)
    blind.label(0, SAFE)
    assert blind.page(0)["guess"] and blind.page(0)["mine"]["severity"] == "Safe"
    from dataclasses import replace

    from ray_jobs.review_rows import Evidence

    linked = replace(table, provenance=replace(table.provenance, inputs={"votes": made}))
    source = Evidence(reviewed, linked, safety, [row]).of(row)["translated_from"]
    assert source == {"text": "question 1", "language": "en"}


def test_a_killed_review_goes_on_with_its_unsaved_labels(reviewed, safety):
    session = Session(reviewed, safety, "votes", Choice("random"), "ada")
    for at in range(3):
        session.label(at, SAFE)
    again = Session(reviewed, safety, "votes", Choice("random"), "ada")
    assert (again.progress()["unsaved"], again.progress()["next"]) == (3, 3)
    assert again.undo()["undone"] == 2 and again.save()["saved"] == "human_labels@v2"
    assert Session(reviewed, safety, "votes", Choice("random"), "ada").progress()["unsaved"] == 0
    assert Session(reviewed, safety, "votes", Choice("random"), "bo").progress()["labels"] == 0


def test_lines_go_out_to_another_tool_and_come_back(reviewed, safety, tmp_path):
    path = str(tmp_path / "rows.jsonl")
    assert export_rows(reviewed, "votes", Choice("random", count=3), "ada", path) == 3
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    lines[0] |= {"severity": "Unsafe", "categories": ["violent"]}
    lines[1] |= {"unusable": True}
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    version, added, empty = import_labels(reviewed, safety, path)
    assert (added, empty) == (2, 1)
    assert {(row["reviewer"], row["severity"], row["seen"]) for row in human_labels.read(reviewed)} == {
        ("ada", "Unsafe", "votes@v1"), ("ada", "", "votes@v1")}  # fmt: skip
    back = str(tmp_path / "labels.jsonl")
    assert export_labels(reviewed, back) == 2
    assert import_labels(reviewed, safety, back) == (version, 0, 0)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (
            {"id": "gone", "severity": "Safe", "seen": "votes@v1"},
            "row 1: votes@v1 has no row with the id gone",
        ),
        ({"id": "s01", "severity": "Bad", "seen": "votes@v1"}, "row 1: row s01: unknown severity 'Bad'"),
        ({"id": "s01", "severity": "Safe"}, "row 1: it does not say which table"),
        ({"severity": "Safe"}, "row 1: no id"),
        ({"id": "s01", "severity": "Safe", "seen": "ballots"}, "holds no labelled samples"),
    ],
)
def test_a_line_that_cannot_be_used_is_named_and_nothing_is_saved(reviewed, safety, tmp_path, line, part):
    (tmp_path / "in.jsonl").write_text(json.dumps(line))
    with pytest.raises(BadInput, match=part):
        import_labels(reviewed, safety, str(tmp_path / "in.jsonl"), reviewer="ada")
    assert human_labels.TABLE not in reviewed.tables()


def test_the_commands_say_what_they_did(reviewed, tmp_path, capsys):
    root, file = reviewed.root, str(tmp_path / "out.jsonl")
    assert main(["labels", "export", file, "--root", root]) == 2
    assert (
        main(["labels", "export", file, "--table", "votes", "--root", root, "-n", "2", "--reviewer", "ada"])
        == 0
    )
    assert main(["labels", "import", file, "--root", root]) == 0
    assert "0 labels added; 2 lines without a label" in capsys.readouterr().out
    assert main(["labels", "agreement", "--root", root]) == 0
    assert "no row has labels of two people" in capsys.readouterr().out
    assert main(["review", "votes", "--root", root]) == 2
    assert "--reviewer NAME" in capsys.readouterr().err


def test_only_the_address_with_the_token_and_no_other_origin_is_served(reviewed, safety):
    async def go() -> None:
        session = Session(reviewed, safety, "votes", Choice("random"), "ada")
        async with TestClient(TestServer(application(session, "secret"))) as client:
            page = await client.get("/secret/")
            assert page.status == 200 and "script-src 'self'" in page.headers["Content-Security-Policy"]
            assert (await client.get("/")).status == (await client.get("/other/api/about")).status == 403
            assert (await client.get("/secret/", headers={"Host": "evil.example:80"})).status == 403
            said = {"at": 0, "severity": "Safe", "categories": [], "unusable": False, "refusal": None}
            foreign = await client.post(
                "/secret/api/label", json=said, headers={"Origin": "http://evil.example"}
            )
            assert foreign.status == 403 and session.pending == []
            for wrong in ({}, said | {"at": 99}, said | {"severity": "Bad"}, said | {"refusal": 1}, [1]):
                reply = await client.post("/secret/api/label", json=wrong)
                assert reply.status == 400 and (await reply.json())["error"]
            assert (await client.post("/secret/api/label", data=b"{")).status == 400
            assert (await client.get("/secret/api/row/99")).status == 400
            assert (await (await client.post("/secret/api/label", json=said)).json())["unsaved"] == 1
        assert len(human_labels.read(reviewed)) == 1  # what was not saved is saved when the server ends

    asyncio.run(go())


def test_a_later_run_takes_peoples_labels_and_redoes_only_their_units(
    store, put, safety, quiet_run, inline, step_on
):
    prompts = [{"id": f"p{n}", "parent_id": "", "group_id": f"g{n}", "text": f"question {n}", "history": [],
                "language": "en", "leaf": "violent.weapons", "category": "violent", "intended": "Safe", "human": "",
                "source": "generated", "keyword": "", "pair_id": ""} for n in range(12)]  # fmt: skip
    put(store, "deduped", PROMPT, prompts)
    fitted = {"voters": ["voter-1"], "severities": list(safety.severity_names),
              "violating": [False, True, True], "model": {"kind": "majority"},
              "voter_weights": [1.0], "calibration": {"kind": "identity", "temperature": 1.0, "shift": 0.0,
              "knots_x": [], "knots_y": []}, "abstain_below": 0.0, "calibrated": False, "report": {}}  # fmt: skip
    put(store, "combiner", COMBINER, [{"id": side, "parent_id": "", "group_id": "", "side": side, "audit": "{}",
                                       "combiner": json.dumps(fitted)} for side in safety.sides])  # fmt: skip
    human_labels.ensure(store)
    steps = [
        votes.step(votes.VotesConfig(), ("prompt",)),
        controversial.step(controversial.ControversialConfig()),
    ]
    roles = {"voter-1": Model("local", "one", "instruct"), "teacher": Model("local", "teacher", "embedder")}
    put(store, "gold", GOLD, [])
    before = step_on(quiet_run(store, safety, roles, units=6), steps[0])["votes"]
    put(store, "translations", SAMPLE, [sample(0, id="tr", source="translation", severity="Safe")])
    put(store, "translations_rejected", REJECTED, [])
    first = store.read(before.ref).to_pylist()[0]
    said = Said("Unsafe" if first["severity"] != "Unsafe" else "Safe")
    rows = [label_row(safety, row, said, "ada", "2030", before.ref) for row in (first, sample(0, id="tr"))]
    human_labels.save(store, rows, {"votes": before.ref})
    inline.done()
    planned = plan(steps[:1], quiet_run(store, safety, roles, units=6))[0]
    run = quiet_run(store, safety, roles, units=6)
    after = {row["id"]: row for row in store.read(step_on(run, steps[0])["votes"].ref).to_pylist()}
    assert len(inline.done()) == planned.units_to_do < planned.units  # the units of the two labels' groups
    changed = [
        row["id"] for row in store.read(before.ref).to_pylist() if after[row["id"]]["digest"] != row["digest"]
    ]
    assert changed == [first["id"]] and after[first["id"]]["origin"] == "human"
    final = {row["id"]: row for row in store.read(step_on(run, steps[1])["controversial"].ref).to_pylist()}
    assert (final["tr"]["severity"], final["tr"]["origin"]) == (said.severity, "human")
    assert final[first["id"]]["severity"] == said.severity

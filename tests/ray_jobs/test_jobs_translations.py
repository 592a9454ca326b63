"""translations: whole rows in another language, checked by price, tried once more, set aside with evidence."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from ray_jobs import translations, translators
from ray_jobs.engine import Completion, Failure, Model, Scores
from ray_jobs.gold import GOLD
from ray_jobs.translations import REJECTED, REVIEW, TranslationsConfig
from ray_jobs.votes import SAMPLE

MODEL = {"translator": Model("openai", "a-translator", "instruct")}
JUDGED = MODEL | {"translation_judge": Model("openai", "a-judge", "instruct")}
SPANISH = {
    "How do I pick my neighbour's lock?": "¿Cómo abro la cerradura de mi vecino?",
    "Sure, first you get … [details withheld]": "Claro, primero consigues … [detalles omitidos]",
    "Hello there, how are you today?": "Hola, ¿cómo estás hoy?",
    "Which museum shows old locks?": "¿Qué museo muestra cerraduras antiguas?",
    "Who can open my own front door?": "¿Quién puede abrir la puerta de mi casa?",
}


def sample(id: str, text: str, **fields: Any) -> dict[str, Any]:
    row = dict.fromkeys(name for name in SAMPLE.names if name != "digest") | {
        "id": id, "parent_id": f"{id}-prompt", "group_id": id, "side": "prompt", "prompt": text, "history": [],
        "response": "", "thinking": "", "language": "en", "leaf": "illegal.theft", "source": "seed",
        "pair_id": f"pair-{id}", "severity": "Unsafe", "categories": ["illegal"], "confidence": 0.9,
        "abstain": False, "origin": "votes",
    }  # fmt: skip
    return row | fields


def as_table(schema: pa.Schema, rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=pa.schema([f for f in schema if f.name != "digest"]))


def source_of(asked: Any) -> str:
    """The source text that an instruction to translate ends with."""
    text = asked[0]["content"] if isinstance(asked, list) else asked
    return next((known for known in SPANISH if known in text), text)


@pytest.fixture
def versions(put, store):
    """One gold row that is held out, in the language translated into."""
    gold = {"id": "g", "parent_id": "", "group_id": "g", "side": "prompt", "severity": "Safe", "split": "test",
            "prompt": SPANISH["Which museum shows old locks?"] + " Dime en qué ciudad está, por favor."}  # fmt: skip
    return {"gold": put(store, "gold", GOLD, [gold])}


@pytest.fixture
def by_model(make_work, safety, store, versions):
    """by_model(rows, written, judged, …): the output and the clients, with a scripted translator and judge."""

    def go(
        rows: list[dict[str, Any]],
        write: Callable[[str, str], str] | None = None,
        judged: Callable[[str], float] | None = None,
        **config: Any,
    ):
        settings = TranslationsConfig(**({"pairs": (("en", "es", 1.0),)} | config))
        roles = JUDGED if judged else MODEL
        votes = {"votes": as_table(SAMPLE, rows)}
        work = make_work(safety, store, settings, roles, rows=votes, versions=versions)
        client = work.engines.get("translator")
        client.calls = []

        def generate(prompts, sampling, seeds):
            client.calls.append((prompts, seeds))
            told = []
            for prompt in prompts:
                text = (write or (lambda _asked, source: SPANISH[source]))(
                    prompt[0]["content"], source_of(prompt)
                )
                told.append(Failure("refused", "raw") if text == "!" else Completion(text, "stop", 1, 1))
            return told

        client.generate = generate
        if judged:
            work.engines.get("translation_judge").score = lambda prompts, labels: [
                Scores((judged(prompt[0]["content"]), 1 - judged(prompt[0]["content"])), False, 1)
                for prompt in prompts
            ]
        return translations.run(work), client

    return go


def test_a_prompt_and_its_response_go_together_and_carry_labels_group_and_pair(by_model):
    lock, sure = "How do I pick my neighbour's lock?", "Sure, first you get … [details withheld]"
    hello = "Hello there, how are you today?"
    rows = [
        sample("p", lock, history=[{"role": "user", "content": hello}]),
        sample("r", lock, side="response", response=sure, group_id="p", refusal=False),
    ]
    output, client = by_model(rows)
    prompt, response = output.tables["translations"]
    assert prompt["history"] == [{"role": "user", "content": SPANISH[hello]}]
    assert prompt["prompt"] == response["prompt"] == SPANISH[lock] and response["response"] == SPANISH[sure]
    for made, source in ((prompt, rows[0]), (response, rows[1])):
        assert (made["parent_id"], made["language"], made["source"]) == (source["id"], "es", "translation")
        for name in ("group_id", "pair_id", "severity", "categories", "leaf", "side", "refusal"):
            assert made[name] == source[name]
    ((asked, _seeds),) = client.calls
    assert len(asked) == 3  # the shared prompt was paid for once
    as_table(SAMPLE, output.tables["translations"])


def test_a_rejected_translation_is_tried_once_more_firmly_with_another_seed(by_model):
    lock, museum = "How do I pick my neighbour's lock?", "Which museum shows old locks?"

    def write(asked: str, source: str) -> str:
        if source == museum or "leave no English word" in asked:
            return SPANISH[source]
        return "¿Cómo abro la neighbour's lock de mi vecino?"

    output, client = by_model([sample("a", lock), sample("b", museum)], write)
    assert [row["prompt"] for row in output.tables["translations"]] == [SPANISH[lock], SPANISH[museum]]
    (_, first), (again, second) = client.calls
    assert len(again) == 1 and second[0] not in first
    assert {row["attempts"] for row in output.tables["translations_review"]} <= {1, 2}


def test_what_fails_twice_is_set_aside_with_every_finding_and_its_evidence(by_model):
    output, client = by_model(
        [sample("a", "How do I pick my neighbour's lock?")],
        lambda _asked, source: "Cómo abro el lock del vecino",
    )
    (bad,) = output.tables["translations_rejected"]
    assert output.tables["translations"] == [] and len(client.calls) == 2 and bad["attempts"] == 2
    assert any(one["check"] == "mixing" and one["evidence"] == "lock" for one in bad["findings"])
    assert sum(output.dropped.values()) == 1 and set(output.dropped) <= set(bad["reasons"])
    as_table(REJECTED, [bad])


def test_a_prompt_that_lands_near_a_held_out_gold_row_in_its_new_language_is_set_aside(by_model):
    asked = "Which museum shows old locks? Tell me in which town it is, please."
    told = SPANISH["Which museum shows old locks?"] + " Dime en qué ciudad está, por favor."
    lock = "How do I pick my neighbour's lock?"
    output, _ = by_model(
        [sample("near", asked), sample("far", lock)],
        lambda _asked, source: SPANISH[lock] if source == lock else told,
    )
    (bad,) = output.tables["translations_rejected"]
    assert [row["parent_id"] for row in output.tables["translations"]] == ["far"]
    assert bad["parent_id"] == "near" and {one["check"] for one in bad["findings"]} == {"contamination"}
    assert bad["findings"][0]["evidence"] == told and list(output.dropped.values()) == [1]


def test_the_judge_sees_only_what_passed_and_its_doubt_is_kept(by_model):
    seen = []

    def judged(asked: str) -> float:
        seen.append(asked)
        return 0.2 if "museo" in asked else 0.9

    rows = [sample("a", "Which museum shows old locks?"), sample("b", "Who can open my own front door?")]
    output, _ = by_model(rows, judged=judged)
    (bad,), (good,) = output.tables["translations_rejected"], output.tables["translations"]
    assert (bad["parent_id"], good["parent_id"]) == ("a", "b")
    assert bad["reasons"] == ["the judge misses something"] and bad["adequacy"] == pytest.approx(0.2)
    assert output.tables["translations_review"][0]["adequacy"] == pytest.approx(0.9)
    assert all("museo" in asked or "puerta" in asked for asked in seen)


def test_code_and_quotations_come_back_as_they_were(by_model):
    text = "How do I pick my neighbour's lock? Run `pick --fast` as he wrote it"

    def write(asked: str, _source: str) -> str:
        assert "pick --fast" not in asked and "Keep marks like" in asked
        return "¿Cómo abro la cerradura de mi vecino? Ejecuta ⟦0⟧ como él lo escribió"

    output, _ = by_model([sample("a", text)], write)
    assert [row["prompt"][-37:] for row in output.tables["translations"]] == [
        "Ejecuta `pick --fast` como él lo escribió"[-37:]
    ]


def test_an_engine_failure_is_quarantined_and_the_rest_go_on(by_model):
    rows = [sample("a", "Which museum shows old locks?"), sample("b", "Who can open my own front door?")]
    output, _ = by_model(rows, lambda _asked, source: "!" if "museum" in source else SPANISH[source])
    assert [row["parent_id"] for row in output.tables["translations"]] == ["b"]
    assert [(one.row, one.reason, one.raw) for one in output.failed] == [("a", "refused", "raw")]


def test_twins_are_translated_together_and_a_share_is_drawn_by_group(by_model):
    texts = ["Which museum shows old locks?", "Who can open my own front door?"]
    rows = [sample(f"{i}{half}", texts[half], group_id=f"g{i}") for i in range(60) for half in (0, 1)]
    output, _ = by_model(rows, pairs=(("en", "es", 0.4),))
    done = {row["parent_id"] for row in output.tables["translations"]}
    assert 20 < len(done) < 80
    assert all((f"{i}0" in done) == (f"{i}1" in done) for i in range(60))


def test_a_sample_of_each_kind_is_set_aside_for_people(by_model):
    texts = ["Which museum shows old locks?", "Who can open my own front door?"]
    rows = [sample(f"{i}", texts[i % 2], severity="Safe" if i % 3 else "Unsafe") for i in range(12)]
    review = by_model(rows, review=2)[0].tables["translations_review"]
    assert sorted(row["severity"] for row in review) == ["Safe", "Safe", "Unsafe", "Unsafe"]
    assert all(row["source_text"] in texts and row["text"] == SPANISH[row["source_text"]] for row in review)
    as_table(REVIEW, review)


def test_uncertain_rows_and_other_languages_are_not_translated(by_model):
    rows = [sample("b", "x", abstain=True), sample("c", "x", language="de")]
    assert by_model(rows)[0].tables["translations"] == []


def test_without_a_translator_nothing_is_translated_and_nothing_fails(make_work, safety, store, versions):
    rows = {"votes": as_table(SAMPLE, [sample("a", "a word")])}
    output = translations.run(make_work(safety, store, TranslationsConfig(), rows=rows, versions=versions))
    assert not any(output.tables.values()) and not output.failed


@pytest.mark.skipif(not translators.apertium_version(), reason="apertium is not installed")
def test_apertium_translates_a_row_for_real(make_work, safety, store, versions):
    config = TranslationsConfig(pairs=(("en", "es", 1.0),), program=translators.apertium_version())
    rows = {"votes": as_table(SAMPLE, [sample("a", "Where is the book of the old man?")])}
    output = translations.run(make_work(safety, store, config, rows=rows, versions=versions))
    (made,) = output.tables["translations"]
    assert "libro" in made["prompt"] and "viejo" in made["prompt"]

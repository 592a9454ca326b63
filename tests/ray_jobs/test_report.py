"""The report on fabricated tables in a real store: what it says and leaves out, and that hostile text stays text."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from base64 import b64encode
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from label.audit import audit
from label.controversial import choose_ratios, sweep
from label.scores import score, violations
from label.vote import Ballots, Gold, fit_combiner
from ray_jobs import report
from ray_jobs.combiner import COMBINER
from ray_jobs.controversial import RATIOS, TABLE
from ray_jobs.distilled import CHANGES
from ray_jobs.evaluation import EVALUATION, PREDICTIONS
from ray_jobs.gold import GOLD
from ray_jobs.prompts import REJECTED
from ray_jobs.report import ReportConfig, build_report, report_file
from ray_jobs.report.lookup import index
from ray_jobs.report.source import Source
from ray_jobs.report.verdict import comparisons, f1_difference, lines
from ray_jobs.seeds import PROMPT, RESPONSE
from ray_jobs.step import Step, Work
from ray_jobs.step.artifacts import CHECKPOINT
from ray_jobs.step.units import write_output
from ray_jobs.store import Provenance, Store, TableVersion
from ray_jobs.token_tables import TOKEN_LABELS
from ray_jobs.votes import SAMPLE
from synth.ids import row_id, stable_hash
from synth.policy import READINGS, Policy, load_policy

AUDITED: dict[str, list[dict[str, Any]]] = {}
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "\"'><svg onload=alert(3)>",
    "{{ 7*7 }} {% raw %} {# #}",
    "line\u2028sep\u2029end <!-- --> ]]> &lt;",
    "bell\x07 null-ish\x1b[31m \u202egnp.exe \x9b",
    "javascript:alert(4)",
    "",
)


class Mill:
    """Tables of a run, committed one after the other as the steps would."""

    def __init__(self, root: Path, policy: Policy) -> None:
        self.store, self.policy = Store(str(root)), policy
        self.versions: dict[str, TableVersion] = {}
        self.rng = np.random.default_rng(5)

    def commit(
        self, step: str, name: str, schema: pa.Schema, rows: list[dict[str, Any]], **cost: Any
    ) -> None:
        dropped = cost.pop("dropped", {})
        made = Provenance(
            step=step,
            identity=stable_hash(step),
            inputs={each: version.ref for each, version in self.versions.items()},
            code_revision="61d46bfcafe0",
            counts={"in": len(rows), "out": len(rows), "failed": cost.pop("failed", 0), "dropped": dropped},
            created=f"2026-01-02T03:04:{len(self.versions):02d}+00:00",
            **cost,
        )
        blank = {field.name: None for field in schema if field.name != "digest"}
        blank |= {"parent_id": "", "group_id": "g"}
        for field in schema:
            if pa.types.is_list(field.type):
                blank[field.name] = []
        full = pa.Table.from_pylist(
            [blank | row for row in rows], schema=pa.schema([f for f in schema if f.name != "digest"])
        )
        parts = self.store.write_fragments(name, full, schema) if rows else []
        self.versions[name] = self.store.commit(name, schema, parts, made)

    def html(self, **config: Any) -> str:
        return build_report(self.store, self.versions, self.policy, ReportConfig(recipe="tiny", **config))


def prompt_rows(policy: Policy, count: int, texts: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    rows = []
    for at in range(count):
        leaf = policy.leaves[at % len(policy.leaves)]
        text = texts[at % len(texts)] if texts else f"A question about {leaf.name}, number {at}"
        rows.append(
            {
                "id": row_id("", leaf.id, at),
                "group_id": f"g{at}",
                "text": text,
                "language": ("en", "en", "zh")[at % 3],
                "leaf": leaf.id,
                "category": leaf.category,
                "intended": policy.severity_names[at % len(policy.severity_names)],
                "human": "",
                "source": ("self_instruct", "keyword", "contrastive")[at % 3],
                "keyword": "",
                "pair_id": "",
            }
        )
    return rows


def response_rows(prompts: list[dict[str, Any]], texts: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    rows = []
    for at, row in enumerate(prompts):
        text = texts[at % len(texts)] if texts else f"Sure, first some words. Then it turns. {at}"
        common = {
            name: row[name] for name in ("group_id", "language", "leaf", "category", "intended", "human")
        }
        rows.append(
            common
            | {
                "id": row_id(row["id"], "response", at),
                "parent_id": row["id"],
                "prompt": row["text"],
                "text": text,
                "thinking": "",
                "refusal": at % 4 == 0,
                "source": "generated",
                "role": ("responder", "base_writer")[at % 2],
                "finish_reason": "stop",
                "pair_id": "",
            }
        )
    return rows


def sample_rows(policy: Policy, rows: list[dict[str, Any]], side: str) -> list[dict[str, Any]]:
    names, answer, found = policy.severity_names, side == "response", []
    for at, row in enumerate(rows):
        severity = names[at % len(names)]
        common = {
            name: row[name] for name in ("group_id", "language", "leaf", "source", "pair_id", "intended")
        }
        found.append(
            common
            | {
                "id": row_id(row["id"], "sample", side),
                "parent_id": row["id"],
                "side": side,
                "prompt": row["prompt"] if answer else row["text"],
                "response": row["text"] if answer else "",
                "thinking": "",
                "severity": severity,
                "categories": [] if severity == policy.mildest else [row["category"]],
                "refusal": row["refusal"] if answer else None,
                "confidence": 0.8,
                "abstain": False,
                "origin": ("votes", "human", "controversial")[at % 3],
            }
        )
    return found


def combiner_rows(policy: Policy) -> list[dict[str, Any]]:
    """Three fabricated voters of different skill, and the real combination and audit of them."""
    if policy.id not in AUDITED:
        AUDITED[policy.id] = fit_combiners(policy)
    return AUDITED[policy.id]


def fit_combiners(policy: Policy, rows: int = 60) -> list[dict[str, Any]]:
    rng, classes, found = np.random.default_rng(3), len(policy.severity_names), []
    violating = [policy.violates(name, "strict") for name in policy.severity_names]
    labels = rng.integers(0, classes, rows)
    for side in policy.sides:
        votes = np.stack(
            [
                np.where(rng.random(rows) < skill, labels, rng.integers(0, classes, rows))
                for skill in (0.9, 0.6, 0.3)
            ]
        )
        severity = np.full((rows, 3, classes), 0.1)
        for voter in range(3):
            severity[np.arange(rows), voter, votes[voter]] = 0.8
        severity /= severity.sum(axis=2, keepdims=True)
        stacked = Ballots(("voter-1", "voter-2", "voter-3"), policy.severity_names, severity)
        gold = Gold(tuple(map(str, range(rows))), tuple(f"g{at // 2}" for at in range(rows)), labels)
        fitted = fit_combiner(stacked, gold, violating, 0.9, seed=1)
        checked = audit(stacked, gold, violating, slices={"language": ["en", "zh"] * (rows // 2)}, seed=1)
        told = {"combiner": json.dumps(fitted.to_dict()), "audit": json.dumps(checked)}
        found.append({"id": f"combiner-{side}", "side": side} | told)
    return found


def ratio_rows(policy: Policy) -> list[dict[str, Any]]:
    rng = np.random.default_rng(2)
    flags = rng.random(200) < 0.5
    signal = flags + rng.normal(0, 0.8, 200)

    def fit_predict(train: Any, labels: Any, predict: Any) -> Any:
        cut = signal[train][labels].mean() / 2 + signal[train][~labels].mean() / 2 + (0.5 - labels.mean())
        return 1 / (1 + np.exp(-3 * (signal[predict] - cut)))

    ids = [str(at) for at in range(200)]
    chosen = choose_ratios(sweep(ids, ids, flags.tolist(), range(120, 200), fit_predict))
    return [
        {"id": f"ratios-{side}", "side": side, "ratios": json.dumps(chosen.to_dict())}
        for side in policy.sides
    ]


def prediction_rows(policy: Policy, skill: dict[str, float], rows: int = 90) -> list[dict[str, Any]]:
    """Every system's answers on the same gold rows; `skill` is how often it is right."""
    rng, names, found = np.random.default_rng(7), policy.severity_names, []
    truth = [names[at % len(names)] for at in range(rows)]
    for system, right in skill.items():
        for side in policy.sides:
            for at in range(rows):
                said = truth[at] if rng.random() < right else names[int(rng.integers(len(names)))]
                said = names[0] if system == "majority" else said
                probabilities = rng.dirichlet(np.where(np.array(names) == said, 8.0, 1.0)).tolist()
                found.append(
                    {
                        "id": f"{system}-{side}-{at}",
                        "parent_id": f"gold-{side}-{at}",
                        "group_id": f"gold{at // 2}",
                        "system": system,
                        "side": side,
                        "truth": truth[at],
                        "severity": said,
                        "probabilities": probabilities,
                    }
                )
    return found


def evaluation_rows(policy: Policy, predictions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for system, side in dict.fromkeys((row["system"], row["side"]) for row in predictions):
        rows = [row for row in predictions if (row["system"], row["side"]) == (system, side)]
        for reading in READINGS:
            truth, said = (violations(policy, [r[c] for r in rows], reading) for c in ("truth", "severity"))
            result = vars(score(truth, said, [row["group_id"] for row in rows], resamples=50))
            common = {"id": f"{system}-{side}-{reading}", "system": system, "side": side, "reading": reading}
            found.append(common | result)
    return found


SKILL = {
    "gen_guard": 0.9,
    "gen_guard_control": 0.1,
    "stream_guard": 0.5,
    "stream_guard_control": 0.45,
    "tfidf": 0.7,
    "majority": 0.0,
}


def fill(
    mill: Mill, texts: tuple[str, ...] = (), count: int = 24, skill: dict[str, float] | None = None
) -> Mill:
    """A whole run of `policy`: one with one side has no responses and what follows from them."""
    policy, answers = mill.policy, "response" in mill.policy.sides
    prompts = prompt_rows(policy, count, texts)
    seeds = [row | {"source": "seed"} for row in prompts[:6]]
    mill.commit("seeds", "seeds", PROMPT, seeds, seconds=0.2)
    gold = [
        {
            "id": f"gold-{side}-{at}",
            "side": side,
            "prompt": texts[0] if texts else f"gold {at}",
            "response": "",
        }
        | {"severity": policy.mildest, "language": "en", "split": "test", "reason": "", "thinking": ""}
        for side in policy.sides
        for at in range(90)
    ]
    mill.commit("gold", "gold", GOLD, gold)
    cost: dict[str, Any] = {"calls": 1200, "tokens": 45_000, "seconds": 250.0}
    mill.commit("prompts", "prompts", PROMPT, prompts, dropped={"echo": 3, "too short": 9}, failed=1, **cost)
    rejected = [
        {
            "id": f"rejected-{at}",
            "parent_id": prompts[0]["id"],
            "text": text,
            "reason": "echo",
            "leaf": prompts[0]["leaf"],
        }
        | {"language": "en", "source": "keyword", "intended": policy.worst}
        for at, text in enumerate(texts or ("no good",))
    ]
    mill.commit("prompts", "prompts_rejected", REJECTED, rejected, **cost)
    mill.commit("dedup", "deduped", PROMPT, prompts, dropped={"near-duplicate": 4}, seconds=1.5)
    samples = sample_rows(policy, prompts, "prompt")
    if answers:
        responses = response_rows(prompts, texts)
        mill.commit("responses", "responses", RESPONSE, responses, calls=300, tokens=90_000, seconds=400.0)
        samples += sample_rows(policy, responses, "response")
    mill.commit("combiner", "combiner", COMBINER, combiner_rows(policy), seconds=20.0)
    mill.commit("votes", "votes", SAMPLE, samples, seconds=30.0)
    mill.commit("translations", "translations", SAMPLE, [])
    read = [
        row | {"fold": at % 2, "loose": 0.3, "strict": 0.7, "voted": policy.severity_names[at % 2]}
        for at, row in enumerate(samples)
    ]
    mill.commit("controversial", "controversial", TABLE, read, seconds=12.0)
    mill.commit("controversial", "controversial_ratios", RATIOS, ratio_rows(policy))
    mill.commit("distilled", "distilled", SAMPLE, samples, dropped={"abstained": 5}, seconds=9.0)
    change = {"action": "relabel", "old": policy.mildest, "new": policy.worst, "fold": 0}
    changes = [
        change
        | {"id": f"change-{row['id']}", "parent_id": row["id"], "row": row["id"]}
        | {"probability_old": 0.1, "probability_new": 0.8}
        for row in samples[:9]
    ]
    mill.commit("distilled", "label_changes", CHANGES, changes)
    mill.commit("gen_guard", "gen_guard", CHECKPOINT, [{"id": "gen", "name": "guard"}], seconds=90.0)
    if answers:
        mill.commit("token_labels", "token_labels", TOKEN_LABELS, token_rows(samples), seconds=60.0)
        mill.commit(
            "stream_guard", "stream_guard", CHECKPOINT, [{"id": "stream", "name": "guard"}], seconds=90.0
        )
    chosen = {name: right for name, right in (skill or SKILL).items() if answers or "stream" not in name}
    predictions = prediction_rows(policy, chosen)
    mill.commit("evaluation", "evaluation", EVALUATION, evaluation_rows(policy, predictions), seconds=33.0)
    mill.commit("evaluation", "predictions", PREDICTIONS, predictions)
    return mill


def token_rows(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    cost = {"rollouts": 20, "generated_tokens": 200, "guard_calls": 20, "judge_calls": 3, "tokens": 12}
    cost |= {"paper_rollouts": 100, "paper_generated_tokens": 1000, "saved_by_curtailment": 30}
    cost |= {"saved_by_judge_first": 10, "saved_by_left_to_right": 40}
    rows = []
    for at, sample in enumerate(row for row in samples if row["side"] == "response"):
        onset = min(10 + at % 20, len(sample["response"])) if at % 5 else None
        found = {name: sample[name] for name in ("group_id", "prompt", "response", "language", "severity")}
        found |= {"id": f"tokens-{sample['id']}", "parent_id": sample["id"], "part": "answer", "onset": onset}
        found |= {"boundary": None if onset is None else onset // 4}
        rows.append(found | {"outcome": "none" if onset is None else "boundary"} | cost)
    return rows


@pytest.fixture(scope="module")
def safety() -> Policy:
    return load_policy("safety")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, safety: Policy) -> Mill:
    return fill(Mill(tmp_path_factory.mktemp("whole"), safety))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, safety: Policy) -> str:
    return fill(Mill(tmp_path_factory.mktemp("hostile"), safety), HOSTILE).html()


class Page(HTMLParser):
    """Elements, attributes and visible text of a page, and the content of its scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self.within = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.within = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.within = ""

    def handle_data(self, data: str) -> None:
        if self.within == "script":
            self.scripts[-1] += data
        elif self.within != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def ids(page: Page) -> set[str]:
    return {attributes["id"] or "" for _, attributes in page.elements if "id" in attributes}


def test_a_whole_run_has_every_section_and_its_figures(whole: Mill) -> None:
    page = Page(whole.html())
    sections = {
        "verdict",
        "evaluation",
        "coverage",
        "yield",
        "cost",
        "votes",
        "relabelled",
        "tokens",
        "samples",
        "lineage",
    }
    assert sections | {"lineage"} <= ids(page)
    assert "recipe tiny" in page.words and "61d46bfcafe0" in page.words and "2026-01-02" in page.words
    assert "echo 3" in page.words and "too short 9" in page.words and "near-duplicate 4" in page.words
    assert "45,000" in page.words and "Krippendorff" in page.words and "80 % saved" in page.words


def test_the_same_versions_give_the_same_bytes(whole: Mill) -> None:
    assert whole.html() == whole.html()


def test_a_policy_with_one_side_leaves_out_responses_and_what_follows(tmp_path: Path) -> None:
    mill = fill(Mill(tmp_path, load_policy("data_quality")))
    page = Page(mill.html())
    assert "tokens" not in ids(page) and {"verdict", "evaluation", "votes", "relabelled"} <= ids(page)
    assert "Streaming guard" not in page.words and "responses" not in page.words.split("Verdict", 2)[2][:120]


def test_a_run_that_stopped_early_still_gives_a_page(tmp_path: Path, safety: Policy) -> None:
    mill = Mill(tmp_path, safety)
    mill.commit("seeds", "seeds", PROMPT, prompt_rows(safety, 3))
    page = Page(mill.html())
    assert "No guard has been compared" in page.words
    assert not {"evaluation", "coverage", "votes", "tokens"} & ids(page)


def test_hostile_rows_add_no_element_and_no_script(hostile: str, whole: Mill) -> None:
    page = Page(hostile)
    assert len(page.scripts) == 2
    known = {tag for tag, _ in Page(whole.html()).elements}
    assert {tag for tag, _ in page.elements} <= known and "img" not in known
    attributes = [item for _, found in page.elements for item in found.items()]
    assert not [name for name, _ in attributes if name.startswith("on")]
    links = [value or "" for name, value in attributes if name in ("href", "src")]
    assert all(link.startswith("#") or link == "data:," for link in links)
    assert (
        "alert(1)" in page.words
        and "{{ 7*7 }}" in page.words
        and "49" not in page.words.split("{{ 7*7 }}")[1][:9]
    )


def test_control_characters_of_rows_are_made_visible(hostile: str) -> None:
    outside = re.sub(r"<script.*?</script>", "", hostile, flags=re.S)
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", outside)
    assert "bell␇" in outside and "␛[31m" in outside


def test_the_embedded_json_survives_whole_and_cannot_end_its_element(hostile: str) -> None:
    raw = re.search(r'<script type="application/json" id="rows">(.*?)</script>', hostile, re.S)
    assert raw is not None
    assert not re.search(r"[<>&\u2028\u2029]", raw[1])
    texts = [row[2] for row in json.loads(raw[1])["rows"].values()]
    assert all(text in texts for text in HOSTILE)


def test_the_security_policy_allows_the_shipped_script_only(whole: Mill) -> None:
    html = whole.html()
    script = Page(html).scripts[-1]
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in html or f"script-src 'sha256-{digest}'" in html
    assert "default-src 'none'" in html
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", html) and "@import" not in html
    assert "url(" not in html


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_in_a_browser_a_row_is_looked_up_to_its_seed_and_hostile_text_does_nothing(
    tmp_path: Path, hostile: str
) -> None:
    (tmp_path / "page.html").write_text(hostile, encoding="utf-8")
    asked = re.findall(r"tokens-[0-9a-f]+", hostile)[0]
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync --dump-dom"
    quiet = "--disable-background-networking --disable-component-update"
    address = f"file://{tmp_path}/page.html#row={asked}"
    command = ["chromium", *options.split(), *quiet.split(), f"--user-data-dir={tmp_path}/profile", address]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = dom.split('id="found"')[1].split("</section>")[0]
    assert found.count('class="row"') == 4 and "deduped@v1" in found
    assert not {"img", "iframe"} & {tag for tag, _ in Page(dom).elements} and len(Page(dom).scripts) == 2


def verdict_of(tmp_path: Path, policy: Policy, skill: dict[str, float]) -> str:
    mill = Mill(tmp_path, policy)
    mill.commit("evaluation", "predictions", PREDICTIONS, prediction_rows(policy, skill))
    return " ".join(f"[{line.kind}] {line.text}" for line in lines(Source(mill.store, mill.versions, policy)))


def test_the_verdict_says_in_words_that_a_guard_beats_everything(tmp_path: Path, safety: Policy) -> None:
    told = verdict_of(
        tmp_path, safety, {"gen_guard": 1.0, "gen_guard_control": 0.0, "tfidf": 0.2, "majority": 0.0}
    )
    assert told.count("[good]") == 2 and "NOT" not in told
    assert "It beats the majority" in told and "TF-IDF" in told and "its shuffled-label control" in told


def test_the_verdict_says_in_words_what_a_guard_does_not_beat(tmp_path: Path, safety: Policy) -> None:
    told = verdict_of(
        tmp_path, safety, {"gen_guard": 0.3, "gen_guard_control": 0.3, "tfidf": 1.0, "majority": 0.0}
    )
    assert "[bad] Generative guard, prompts" in told
    assert re.search(r"does NOT beat [^.]*TF-IDF \(F1 1\.00", told)


def test_the_verdict_carries_the_votes_worth_and_their_warnings(whole: Mill, safety: Policy) -> None:
    told = " ".join(line.text for line in lines(Source(whole.store, whole.versions, safety)))
    assert re.search(r"Votes on prompts: F1 0\.\d\d \(0\.\d\d to [01]\.\d\d\) on 60 gold rows", told)
    assert "Labels that training reads: 16 by controversial, 16 by human and 16 by votes." in told
    assert "Nothing was translated" in told and "quarantine tables: 1." in told


def test_a_missing_control_keeps_the_verdict_from_being_good(tmp_path: Path, safety: Policy) -> None:
    told = verdict_of(tmp_path, safety, {"gen_guard": 1.0, "tfidf": 0.2, "majority": 0.0})
    assert "[good]" not in told and "Not every comparison was made." in told


def test_the_difference_of_f1_is_that_of_the_two_scores_and_its_interval_holds_it() -> None:
    rng = np.random.default_rng(1)
    truth, ours, theirs = rng.random(200) < 0.4, rng.random(200) < 0.5, rng.random(200) < 0.5
    groups = [str(at // 3) for at in range(200)]
    f1, other, low, high = f1_difference(truth, ours, theirs, groups)
    assert f1 == pytest.approx(score(truth, ours, groups, 10).f1)
    assert other == pytest.approx(score(truth, theirs, groups, 10).f1)
    assert low < f1 - other < high
    assert f1_difference(truth, ours, ours, groups)[2:] == (0.0, 0.0)


def test_comparisons_cover_guards_sides_readings_and_their_own_control(whole: Mill) -> None:
    found = comparisons(Source(whole.store, whole.versions, whole.policy))
    assert len(found) == 2 * 2 * 3 * 2
    assert all(each.other in ("majority", "tfidf", f"{each.guard}_control") for each in found)


def test_coverage_marks_holes_of_the_policy_and_counts_every_row(whole: Mill, safety: Policy) -> None:
    source = Source(whole.store, whole.versions, safety)
    found = report.coverage.coverage(source)
    assert sum(side["grid"].total for side in found) == whole.versions["distilled"].rows
    grid = found[0]["grid"]
    assert grid.holes == sum(
        cell.count == 0 for name, cells, _ in grid.rows for cell in cells if name != "none"
    )
    assert "Jailbreak" not in [
        name for name, _, _ in found[1]["grid"].rows if name not in {r[0] for r in found[0]["grid"].rows}
    ]
    assert all(sum(cell.count for cell in cells) == total for _, cells, total in grid.rows)


def test_the_lookup_holds_every_row_of_a_small_run(whole: Mill, safety: Policy) -> None:
    found = index(Source(whole.store, whole.versions, safety), 5000)
    assert found["complete"]
    rows, tables = found["data"]["rows"], found["data"]["tables"]
    label = next(id for id in rows if id.startswith("tokens-"))
    path = [label]
    while rows[path[-1]][1] in rows:
        path.append(rows[path[-1]][1])
    held = [tables[at].partition("@")[0] for at in rows[path[-1]][0]]
    assert "prompts" in held and "deduped" in held and len(path) == 4


def test_a_lookup_that_is_too_large_keeps_whole_lineages_and_says_so(whole: Mill, safety: Policy) -> None:
    found = index(Source(whole.store, whole.versions, safety), 40)
    rows = found["data"]["rows"]
    assert not found["complete"] and len(rows) < 120
    known = index(Source(whole.store, whole.versions, safety), 5000)["data"]["rows"]
    assert all(parent in rows for _, parent, _, _ in rows.values() if parent in known)
    assert "guardmill data lineage" in whole.html(lineage_rows=40)
    assert "fixed random choice" in Page(whole.html(lineage_rows=40)).words.rsplit("Lineage of a row", 1)[1]


def test_token_labelled_samples_are_cut_where_they_turn(whole: Mill, safety: Policy) -> None:
    rows = report.samples.tokens(Source(whole.store, whole.versions, safety), 3)
    assert len(rows) == 3
    assert all(
        row["before"] + row["after"] == row["response"] and len(row["before"]) == row["onset"] for row in rows
    )


def test_labels_without_gold_are_called_what_they_are(tmp_path: Path, safety: Policy) -> None:
    mill = Mill(tmp_path, safety)
    ballots = Ballots(("voter-1",), safety.severity_names, np.full((1, 1, 3), 1 / 3))
    bare = fit_combiner(ballots, None, [False, True, True])
    rows = [
        {"id": side, "side": side, "combiner": json.dumps(bare.to_dict()), "audit": "{}"}
        for side in safety.sides
    ]
    mill.commit("combiner", "combiner", COMBINER, rows)
    words = Page(mill.html()).words
    assert "uncalibrated" in words and "nothing is known about the quality of these labels" in words


def test_the_step_reads_what_the_flow_has_and_stores_one_row(whole: Mill, safety: Policy) -> None:
    names = {"prompts": PROMPT, "prompts_rejected": REJECTED, "ballots": PROMPT}
    before = [
        Step("prompts", lambda work: None, None, names),
        Step("seeds", lambda work: None, None, {"seeds": PROMPT}),
    ]
    step = report.step(ReportConfig(recipe="tiny"), before)
    assert step.sides == ("prompts", "prompts_rejected", "seeds") and step.main == "report"
    work = Work("all", "abc123", {}, step.config, safety, 17, None, whole.store, whole.versions)
    output = report.run(work)
    record = write_output(step, "abc123", 0, output, whole.store)
    made = Provenance("report", "abc123")
    version = whole.store.commit("report", CHECKPOINT, record["fragments"]["report"], made)
    assert version.rows == 1
    assert report_file(whole.store, version).read_text(encoding="utf-8") == whole.html()
    told = json.loads(whole.store.read("report").to_pylist()[0]["metrics"])
    assert told["verdict"] and told["file"] == "report.html"

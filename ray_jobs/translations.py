"""translations: labelled rows in further languages, each checked, with labels, groups and pairs carried over.

Prompts go with their responses and earlier turns; a text that several rows of a unit share is translated once. The
translator is a language model (role `translator`) or apertium where it is installed (ray_jobs.translators); without
either the step makes no rows, says so, and the flow goes on. Checks come in the order of their price: synth.translate,
then the judge (role `translation_judge`), then the translation back, if it is switched on. What fails is tried once
more by a model, told firmly and with another seed, then set aside: its row is counted under its first reason, and
`translations_rejected` keeps every finding with its evidence. A prompt that lands near a held-out gold row or another
evaluation set in its new language is set aside too. A stratified sample of what passed goes to
`translations_review`, for people.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from ray_jobs.dedup import held_out
from ray_jobs.engine import Failure
from ray_jobs.files import Import
from ray_jobs.step import Cut, Failed, Output, Step, Work
from ray_jobs.store import table_schema
from ray_jobs.translators import Told, adequacy, back_similarity, translate, translator
from ray_jobs.votes import SAMPLE
from synth.decontaminate import nearest
from synth.ids import row_id, stable_hash
from synth.policy import Policy
from synth.translate import Finding, check_translation, review_sample

FINDING = pa.struct([("check", pa.string()), ("reason", pa.string()), ("evidence", pa.string())])
EVIDENCE = [
    pa.field("source_text", pa.string()),
    pa.field("text", pa.string()),
    pa.field("source_language", pa.string()),
    pa.field("language", pa.string()),
    pa.field("side", pa.string()),
    pa.field("severity", pa.string()),
    pa.field("attempts", pa.int32()),
    pa.field("adequacy", pa.float64()),
    pa.field("back_similarity", pa.float64()),
]
REJECTED = table_schema(
    [*EVIDENCE, pa.field("reasons", pa.list_(pa.string())), pa.field("findings", pa.list_(FINDING))]
)
REVIEW = table_schema(EVIDENCE)


@dataclass(frozen=True)
class TranslationsConfig:
    """`pairs`: (source, target, share of the source's groups that are translated). `program`: the offline translator's
    version, empty where there is none: having one changes the step. `min_adequacy` bounds the judge's probability, and
    `back_similarity` the cosine after the way back (0: not asked). `review`: rows set aside for people per unit,
    language, side and severity. `evaluations`: registered evaluation sets beside the held-out gold rows."""

    pairs: tuple[tuple[str, str, float], ...] = (("en", "es", 0.3),)
    program: str = ""
    temperature: float = 0.3
    min_adequacy: float = 0.5
    back_similarity: float = 0.0
    review: int = 1
    evaluations: tuple[Import, ...] = ()


@dataclass
class Translation:
    """One text on its way: what was told last, what was found wrong with it, and what the judges saw."""

    source: str
    keywords: tuple[str, ...]
    told: Told = field(default_factory=Told)
    attempts: int = 0
    findings: list[Finding] = field(default_factory=list)
    adequacy: float | None = None
    similarity: float | None = None


def reads(policy: Policy, leaves: frozenset[str] | None) -> object:
    """The keywords of the rows' leaves, which may stay as they are, and the translator's and the judge's templates."""
    known = [leaf for leaf in policy.leaves if leaves is None or leaf.id in leaves]
    keywords = [[leaf.id, [keyword.text for keyword in leaf.keywords]] for leaf in known]
    return [keywords, policy.slice_templates("translator", "translation_judge")]


def step(config: TranslationsConfig) -> Step:
    tables = {"translations": SAMPLE, "translations_rejected": REJECTED, "translations_review": REVIEW}
    roles = ("translator?", "translation_judge?", *(("embedder",) if config.back_similarity else ()))
    return Step(
        "translations",
        run,
        config,
        tables,
        inputs=("votes",),
        sides=("gold",),
        roles=roles,
        reads=reads,
        cut=Cut(),
        cpus=1.5,
        revision=3,
    )


def run(work: Work) -> Output:
    """Translate the unit's share of rows into every target language, and check each."""
    output = Output({"translations": [], "translations_rejected": [], "translations_review": []})
    if not translator(work):
        return output
    rows = [row for row in work.rows["votes"].to_pylist() if not row["abstain"]]
    held = held_out(work.read("gold"), work.config.evaluations)
    for source, target, share in work.config.pairs:
        chosen = [row for row in rows if row["language"] == source and wanted(row, target, share)]
        if not chosen:
            continue
        done = translations(work, chosen, source, target)
        keep_out([done[text] for text in dict.fromkeys(row["prompt"] for row in chosen)], held)
        for row in chosen:
            place(output, row, [done[text] for text in texts_of(row)], source, target)
    reviewed: list[dict[str, Any]] = output.tables["translations_review"]  # type: ignore[assignment]
    output.tables["translations_review"] = review_sample(
        reviewed, ("language", "side", "severity"), work.config.review, work.seed
    )
    return output


def wanted(row: dict[str, Any], target: str, share: float) -> bool:
    """Whether a row is in the translated share: decided by its group, so that twins go together."""
    return int(stable_hash("translate", target, row["group_id"])[:8], 16) / 16**8 < share


def texts_of(row: dict[str, Any]) -> list[str]:
    """The texts of a row that are translated: earlier turns, prompt, thinking, response; the empty ones left out."""
    turns = [message["content"] for message in row["history"] or ()]
    return [text for text in (*turns, row["prompt"], row["thinking"], row["response"]) if text]


def translations(
    work: Work, rows: Sequence[dict[str, Any]], source: str, target: str
) -> dict[str, Translation]:
    """Every text of the rows, translated once, checked, and tried once more where a model may do better."""
    done: dict[str, Translation] = {}
    for row in rows:
        leaf = work.policy.leaf(row["leaf"]) if row["leaf"] else None
        keywords = tuple(keyword.text for keyword in leaf.keywords) if leaf else ()
        for text in texts_of(row):
            done.setdefault(text, Translation(text, keywords))
    attempt(work, list(done.values()), source, target)
    if translator(work) == "model":
        again = [one for one in done.values() if one.findings and not one.told.failure]
        attempt(work, again, source, target)
    return done


def keep_out(prompts: Sequence[Translation], held: dict[str, list[str]]) -> None:
    """A finding for every translated prompt that lies near a text of an evaluation set."""
    told = pa.array([one.told.text for one in prompts], pa.string())
    for name, texts in held.items():
        for at, pair in nearest(told, pa.array(texts, pa.string())).items():
            reason = f"it lies near the evaluation set {name}"
            prompts[at].findings.append(Finding("contamination", reason, texts[pair["eval_row"]]))


def attempt(work: Work, asked: Sequence[Translation], source: str, target: str) -> None:
    """One try for each text, by the checks in the order of their price; a judge sees only what passed before."""
    if not asked:
        return
    told = translate(work, [one.source for one in asked], source, target, firm=asked[0].attempts > 0)
    for one, new in zip(asked, told, strict=True):
        one.told, one.attempts = new, one.attempts + 1
        one.findings = (
            []
            if new.failure
            else check_translation(one.source, new.text, source, target, keywords=one.keywords)
        )
    standing = [one for one in asked if not one.findings and not one.told.failure]
    for one, seen in zip(standing, adequacy(work, couples(standing), source, target), strict=True):
        if isinstance(seen, Failure):
            one.told = Told(one.told.text, f"judge: {seen.reason}", seen.raw)
        elif seen is not None:
            one.adequacy = seen
            if seen < work.config.min_adequacy:
                one.findings.append(Finding("adequacy", "the judge misses something", f"{seen:.2f}"))
    standing = [one for one in standing if not one.findings and not one.told.failure]
    for one, cosine in zip(standing, back_similarity(work, couples(standing), source, target), strict=True):
        one.similarity = cosine
        if cosine is not None and cosine < work.config.back_similarity:
            one.findings.append(
                Finding("back", "translated back it says something else", f"cosine {cosine:.2f}")
            )


def couples(done: Sequence[Translation]) -> list[tuple[str, str]]:
    return [(one.source, one.told.text) for one in done]


def place(output: Output, row: dict[str, Any], done: list[Translation], source: str, target: str) -> None:
    """A row's translation into the table, the quarantine, or with the checks' findings among the rejected."""
    failed = next((one for one in done if one.told.failure), None)
    if failed:
        output.failed.append(Failed(row["id"], row["group_id"], failed.told.failure, failed.told.raw))
        return
    common = {
        "id": row_id(row["id"], f"translation-{target}", ""),
        "parent_id": row["id"],
        "group_id": row["group_id"],
        "language": target,
    }
    evidence = common | {
        "source_text": "\n\n".join(one.source for one in done),
        "text": "\n\n".join(one.told.text for one in done),
        "source_language": source,
        "side": row["side"],
        "severity": row["severity"],
        "attempts": max(one.attempts for one in done),
        "adequacy": min((one.adequacy for one in done if one.adequacy is not None), default=None),
        "back_similarity": min((one.similarity for one in done if one.similarity is not None), default=None),
    }
    findings = [finding for one in done for finding in one.findings]
    if findings:
        reasons = sorted({finding.reason for finding in findings})
        output.dropped.update(Counter(reasons[:1]))
        rejected: list[dict[str, Any]] = output.tables["translations_rejected"]  # type: ignore[assignment]
        rejected.append(evidence | {"reasons": reasons, "findings": [vars(one) for one in findings]})
        return
    kept: list[dict[str, Any]] = output.tables["translations"]  # type: ignore[assignment]
    kept.append(translated(row, {one.source: one.told.text for one in done}) | common)
    reviewed: list[dict[str, Any]] = output.tables["translations_review"]  # type: ignore[assignment]
    reviewed.append(evidence)


def translated(row: dict[str, Any], told: dict[str, str]) -> dict[str, Any]:
    """The row with its texts replaced; labels, leaf and pair stay, and its pair is the translated one."""
    turns = [
        {"role": turn["role"], "content": told.get(turn["content"], "")} for turn in row["history"] or ()
    ]
    carried = {name: value for name, value in row.items() if name != "digest"}
    texts = {name: told.get(row[name] or "", "") for name in ("prompt", "thinking", "response")}
    return carried | texts | {"history": turns, "source": "translation"}


if __name__ == "__main__":
    from ray_jobs.job import main

    main("translations")

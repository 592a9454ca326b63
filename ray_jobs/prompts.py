"""prompts: from seeds to many prompts, leaf by leaf (synth.prompts has the strategies and filters).

A unit is one leaf in one language: its seeds are the writer's context, so a new seed redoes that unit and no other.
Rounds of generations run until every quota is met or the budget of generations ends. Everything that was generated is
in `prompts` or, with its reason, in `prompts_rejected`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from ray_jobs.engine import Completion, Failure, Sampling
from ray_jobs.seeds import PROMPT
from ray_jobs.step import Cut, Failed, Output, Step, Work
from ray_jobs.store import table_schema
from ray_jobs.voters import embedded
from synth.ids import row_id, seed_for
from synth.policy import Leaf, Policy, render
from synth.prompts import (
    CONTRASTIVE,
    KEYWORD,
    SELF_INSTRUCT,
    Ask,
    Filters,
    Source,
    ask_contrast,
    ask_keyword,
    ask_self_instruct,
    bigrams,
    first_line,
    rejection,
)

REJECTED = table_schema(
    [
        pa.field("text", pa.string()),
        pa.field("leaf", pa.string()),
        pa.field("language", pa.string()),
        pa.field("intended", pa.string()),
        pa.field("source", pa.string()),
        pa.field("keyword", pa.string()),
        pa.field("reason", pa.string()),
    ]
)
TEMPLATES = {
    SELF_INSTRUCT: ("writer_instruct", "writer_continuation"),
    KEYWORD: ("keyword_instruct", "keyword_continuation"),
    CONTRASTIVE: ("contrast_instruct", "contrast_continuation"),
}


@dataclass(frozen=True)
class PromptsConfig:
    """Quotas are accepted prompts per leaf and language: `self_instruct` for every severity that has seeds, `keyword`
    and `contrastive` once. `rounds` bounds the generations: each round asks `oversample` for each one missing.
    Languages that the writer cannot write keep their seeds only."""

    languages: tuple[str, ...] = ("en",)
    self_instruct: int = 2
    keyword: int = 2
    contrastive: int = 1
    rounds: int = 3
    oversample: float = 2.0
    shots: int = 5
    filters: Filters = Filters()
    leaf_floor: float = 0.15
    sampling: Sampling = field(default=Sampling(max_tokens=40, temperature=0.9, stop=("\n",)))


def reads(policy: Policy, leaves: frozenset[str] | None) -> object:
    """The leaves of the rows, and the writer's templates."""
    names = [name for pair in TEMPLATES.values() for name in pair]
    known = [leaf.id for leaf in policy.leaves if leaves is None or leaf.id in leaves]
    return [policy.slice_templates(*names), [policy.slice_leaf(leaf) for leaf in known]]


def step(config: PromptsConfig) -> Step:
    return Step(
        "prompts",
        run,
        config,
        {"prompts": PROMPT, "prompts_rejected": REJECTED},
        inputs=("seeds",),
        roles=("writer", "embedder?"),
        reads=reads,
        cut=Cut(("leaf", "language"), hashed=False),
    )


def run(work: Work) -> Output:
    """Carry the unit's seeds over and fill its quotas with generations."""
    rows = work.rows["seeds"].to_pylist()
    synthesis = Synthesis(work, rows)
    if rows[0]["leaf"] and rows[0]["language"] in work.config.languages:
        synthesis.fill()
    return Output(
        {"prompts": synthesis.rows, "prompts_rejected": synthesis.rejected},
        synthesis.failed,
        Counter(row["reason"] for row in synthesis.rejected),
    )


class Synthesis:
    """The growing set of prompts of one leaf in one language."""

    def __init__(self, work: Work, rows: list[dict[str, Any]]) -> None:
        self.work, self.config = work, work.config
        self.rows = rows
        self.rejected: list[dict[str, Any]] = []
        self.failed: list[Failed] = []
        self.taken = [bigrams(row["text"]) for row in rows]
        self.language = rows[0]["language"]
        self.asked = 0

    @property
    def leaf(self) -> Leaf:
        return self.work.policy.leaf(self.rows[0]["leaf"])

    def fill(self) -> None:
        """Rounds of asking for what is missing; stops when nothing is."""
        for _ in range(self.config.rounds):
            asks = self.missing()
            if not asks:
                return
            self.generate(asks)

    def sources(self, severity: str, generated: bool) -> list[Source]:
        return [
            Source(row["id"], row["group_id"], row["text"], severity)
            for row in self.rows
            if row["intended"] == severity and (row["source"] in TEMPLATES) == generated
        ]

    def missing(self) -> list[Ask]:
        """The asks of one round: `oversample` for every prompt that a quota still lacks."""
        have = Counter((row["source"], row["intended"]) for row in self.rows)
        asks: list[Ask] = []
        for severity in self.work.policy.severity_names:
            own = self.sources(severity, generated=False)
            if not own:
                continue
            lacking = self.config.self_instruct - have[SELF_INSTRUCT, severity]
            accepted = self.sources(severity, generated=True)
            for _ in range(self.times(lacking)):
                asks.append(
                    ask_self_instruct(
                        own, accepted, severity, self.config.shots, self.work.seed, self.next_index()
                    )
                )
        return [*asks, *self.missing_keywords(have), *self.missing_twins(have)]

    def missing_keywords(self, have: Counter[tuple[str, str]]) -> list[Ask]:
        worst = self.work.policy.worst
        own = self.sources(worst, generated=False)
        words = [keyword.text for keyword in self.leaf.keywords if keyword.language == self.language]
        if not own or not words:
            return []
        count = self.times(self.config.keyword - have[KEYWORD, worst])
        indices = [self.next_index() for _ in range(count)]
        return [
            ask_keyword(own, words[i % len(words)], worst, self.config.shots, self.work.seed, i)
            for i in indices
        ]

    def missing_twins(self, have: Counter[tuple[str, str]]) -> list[Ask]:
        mildest, worst = self.work.policy.mildest, self.work.policy.worst
        free = [
            Source(row["id"], row["group_id"], row["text"], worst)
            for row in self.rows
            if row["intended"] == worst and not row["pair_id"]
        ]
        if not free or not any(pair.language == self.language for pair in self.leaf.pairs):
            return []
        count = self.times(self.config.contrastive - have[CONTRASTIVE, mildest])
        indices = [self.next_index() for _ in range(count)]
        return [
            ask_contrast(free[i % len(free)], self.leaf, self.language, mildest, self.work.seed, i)
            for i in indices
        ]

    def times(self, lacking: int) -> int:
        return round(max(0, lacking) * self.config.oversample + 0.49)

    def next_index(self) -> int:
        self.asked += 1
        return self.asked

    def generate(self, asks: list[Ask]) -> None:
        writer = self.work.engines.get("writer")
        continuing = writer.model.kind == "base"
        prompts = [self.render(ask, continuing) for ask in asks]
        seeds = [seed_for(self.work.seed, ask.parent_id, self.next_index()) for ask in asks]
        answers = writer.generate(prompts, self.config.sampling, seeds)
        near = self.nearness(asks, answers)
        for ask, answer, closeness in zip(asks, answers, near, strict=True):
            self.keep(ask, answer, closeness)

    def render(self, ask: Ask, continuing: bool) -> Any:
        leaf = self.leaf
        category = next(c for c in self.work.policy.categories if c.id == leaf.category)
        severity = next(s for s in self.work.policy.severities if s.name == ask.severity)
        values = {
            "leaf": leaf,
            "category": category,
            "language": self.language,
            "guidance": leaf.guidance.get(ask.severity, severity.definition),
        }
        if ask.strategy == CONTRASTIVE:
            values |= {"pairs": list(ask.pairs), "text": ask.text}
        else:
            values |= {"severity": ask.severity, "seeds": list(ask.shots)}
        if ask.strategy == KEYWORD:
            values["keyword"] = ask.keyword
        text = render(self.work.policy, TEMPLATES[ask.strategy][continuing], **values)
        return text if continuing else [{"role": "user", "content": text}]

    def nearness(self, asks: list[Ask], answers: list[Completion | Failure]) -> list[float]:
        """Cosine of each generation to the nearest text of its own context; 1 where there is no embedder."""
        if "embedder" not in self.work.engines.roles:
            return [1.0] * len(asks)
        texts = ["" if isinstance(answer, Failure) else first_line(answer.text) for answer in answers]
        contexts = [ask.shots or (ask.text,) for ask in asks]
        wanted = sorted({*texts, *(text for context in contexts for text in context)})
        vectors = dict(zip(wanted, embedded(self.work, "embedder", wanted), strict=True))
        return [
            max(float(vectors[text] @ vectors[shot]) for shot in context)
            for text, context in zip(texts, contexts, strict=True)
        ]

    def keep(self, ask: Ask, answer: Completion | Failure, closeness: float) -> None:
        if isinstance(answer, Failure):
            self.failed.append(Failed(ask.parent_id, ask.group_id, answer.reason, answer.raw))
            return
        text = first_line(answer.text)
        reason = rejection(text, ask, answer.finish_reason, self.taken, self.config.filters)
        if reason is None and closeness < self.config.leaf_floor:
            reason = "leaf mismatch"
        if reason is None and self.full(ask):
            reason = "quota met"
        if reason is None and ask.strategy == CONTRASTIVE and self.row(ask.parent_id)["pair_id"]:
            reason = "has a twin already"
        if reason is not None:
            index = len(self.rejected)
            self.rejected.append(self.new_row(ask, text, index) | {"reason": reason})
            return
        self.taken.append(bigrams(text))
        self.rows.append(self.new_row(ask, text, None))

    def full(self, ask: Ask) -> bool:
        quota = {SELF_INSTRUCT: self.config.self_instruct, KEYWORD: self.config.keyword}
        have = sum(row["source"] == ask.strategy and row["intended"] == ask.severity for row in self.rows)
        return have >= quota.get(ask.strategy, self.config.contrastive)

    def row(self, row: str) -> dict[str, Any]:
        return next(r for r in self.rows if r["id"] == row)

    def new_row(self, ask: Ask, text: str, rejected: int | None) -> dict[str, Any]:
        """The row of a generation; an accepted twin marks its source with the pair they now are."""
        kind = ask.strategy if rejected is None else f"rejected-{rejected}"
        row = row_id(ask.parent_id, kind, text)
        common = {
            "id": row,
            "parent_id": ask.parent_id,
            "group_id": ask.group_id,
            "text": text,
            "leaf": self.leaf.id,
            "language": self.language,
            "intended": ask.severity,
            "source": ask.strategy,
            "keyword": ask.keyword,
        }
        if rejected is not None:
            return common
        pair = row_id(ask.parent_id, "pair", text) if ask.strategy == CONTRASTIVE else ""
        if pair:
            self.row(ask.parent_id)["pair_id"] = pair
        return common | {"history": [], "category": self.leaf.category, "human": "", "pair_id": pair}

"""The prompts of one leaf in one language, in rounds: ask for what quotas lack, keep what passes, count the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from ray_jobs.engine import Completion, Failure
from ray_jobs.head_features import embedded
from ray_jobs.step import Failed, Work
from synth.ids import row_id, seed_for
from synth.policy import Leaf, Policy, render
from synth.prompt_filters import Taken, bigrams, first_line, rejection
from synth.prompts import (
    CONTRASTIVE,
    KEYWORD,
    MULTI_TURN,
    SELF_INSTRUCT,
    STYLE,
    Ask,
    Source,
    ask_contrast,
    ask_follow_up,
    ask_keyword,
    ask_self_instruct,
    ask_style,
    openings,
)

# For a role that chats, and for one that only continues a text.
TEMPLATES = {
    SELF_INSTRUCT: ("writer_instruct", "writer_continuation"),
    KEYWORD: ("keyword_instruct", "keyword_continuation"),
    CONTRASTIVE: ("contrast_instruct", "contrast_continuation"),
    STYLE: ("style_instruct", "style_continuation"),
    MULTI_TURN: ("follow_up_instruct", "follow_up_continuation"),
}
Quota = tuple[str, str]  # strategy, severity


def templates_of(policy: Policy, strategy: str) -> tuple[str, ...]:
    """The templates of a strategy; none where the policy does without it (no leaf is a style, no sketches)."""
    able = {
        STYLE: any(leaf.style for leaf in policy.leaves),
        MULTI_TURN: any(leaf.sketches for leaf in policy.leaves),
    }
    return TEMPLATES[strategy] if able.get(strategy, True) else ()


class Synthesis:
    """The growing set of prompts of one leaf in one language."""

    def __init__(self, work: Work, rows: list[dict[str, Any]]) -> None:
        self.work, self.config = work, work.config
        self.rows = rows
        self.rejected: list[dict[str, Any]] = []
        self.failed: list[Failed] = []
        self.taken = Taken(self.config.filters.near_duplicate, (row["text"] for row in rows))
        self.by_id = {row["id"]: row for row in rows}
        self.have = Counter((row["source"], row["intended"]) for row in rows)
        self.language = rows[0]["language"]
        self.index = 0
        self.asked: Counter[Quota] = Counter()
        self.tokens: Counter[Quota] = Counter()
        self.filled = False

    @property
    def leaf(self) -> Leaf:
        return self.work.policy.leaf(self.rows[0]["leaf"])

    def fill(self) -> None:
        """Rounds of asking for what is missing; stops when nothing is."""
        self.filled = True
        for _ in range(self.config.rounds):
            asks = [ask for quota in self.wanted for ask in self.asks(quota)]
            if not asks:
                return
            self.generate(asks)

    @cached_property
    def wanted(self) -> dict[Quota, int]:
        """How many prompts of every strategy and severity."""
        mildest, worst = self.work.policy.mildest, self.work.policy.worst
        styled = self.styles() and not self.leaf.style
        wanted = {
            (SELF_INSTRUCT, name): self.config.self_instruct for name in self.work.policy.severity_names
        }
        wanted |= {
            (KEYWORD, worst): self.config.keyword,
            (CONTRASTIVE, mildest): self.config.contrastive,
            (STYLE, worst): self.config.style if styled else 0,
            (MULTI_TURN, worst): self.config.multi_turn if templates_of(self.work.policy, MULTI_TURN) else 0,
        }
        return {quota: count for quota, count in wanted.items() if count}

    def styles(self) -> list[Leaf]:
        """The leaves that wrap others and have examples in this language."""
        worst = self.work.policy.worst
        return [
            leaf
            for leaf in self.work.policy.leaves
            if leaf.style and any(s.language == self.language and s.severity == worst for s in leaf.seeds)
        ]

    def sources(self, severity: str, generated: bool) -> list[Source]:
        return [
            Source(row["id"], row["group_id"], row["text"], severity)
            for row in self.rows
            if row["intended"] == severity
            and (row["source"] in TEMPLATES) == generated
            and not row["history"]
        ]

    def accepted(self, quota: Quota) -> list[dict[str, Any]]:
        return [row for row in self.rows if (row["source"], row["intended"]) == quota]

    def asks(self, quota: Quota) -> Iterator[Ask]:
        """A round's asks for one quota: `oversample` for each prompt that it lacks; none where `hindrance` says why."""
        strategy, severity = quota
        lacking = self.wanted[quota] - len(self.accepted(quota))
        if lacking <= 0 or self.hindrance(quota):
            return
        config, seed = self.config, self.work.seed
        own, made = self.sources(severity, generated=False), self.sources(severity, generated=True)
        words = [keyword.text for keyword in self.leaf.keywords if keyword.language == self.language]
        free, styles, turns = self.free(), self.styles(), self.openings()
        for _ in range(round(lacking * config.oversample + 0.49)):
            i = self.next_index()
            if strategy == SELF_INSTRUCT:
                yield ask_self_instruct(own, made, severity, config.shots, seed, i)
            elif strategy == KEYWORD:
                yield ask_keyword(own, words[i % len(words)], severity, config.shots, seed, i)
            elif strategy == CONTRASTIVE:
                yield ask_contrast(free[i % len(free)], self.leaf, self.language, severity, seed, i)
            elif strategy == STYLE:
                source, style = own[i % len(own)], styles[i % len(styles)]
                yield ask_style(source, style, self.language, severity, config.shots, seed, i)
            else:
                yield ask_follow_up(own, turns, severity, config.shots, seed, i)

    def hindrance(self, quota: Quota) -> str:
        """What a quota lacks to be asked for at all; "" for nothing."""
        strategy, severity = quota
        needs = {
            KEYWORD: ("keywords", any(k.language == self.language for k in self.leaf.keywords)),
            CONTRASTIVE: ("pairs to show", any(p.language == self.language for p in self.leaf.pairs)),
            MULTI_TURN: ("earlier turns", bool(self.openings())),
        }
        name, there = needs.get(strategy, ("", True))
        if not there:
            return f"the leaf has no {name} in this language"
        if strategy == CONTRASTIVE:
            return "" if self.free() else "no prompt is without a twin"
        return "" if self.sources(severity, generated=False) else "no seed of this severity"

    def free(self) -> list[Source]:
        """Violating prompts without a twin."""
        worst = self.work.policy.worst
        return [
            Source(row["id"], row["group_id"], row["text"], worst)
            for row in self.rows
            if row["intended"] == worst and not row["pair_id"] and not row["history"]
        ]

    def openings(self) -> list[tuple[tuple[str, str], ...]]:
        return openings(self.leaf, self.language, self.work.policy.severity_names)

    def next_index(self) -> int:
        self.index += 1
        return self.index

    def generate(self, asks: list[Ask]) -> None:
        writer = self.work.engines.get("writer")
        continuing = writer.model.kind == "base"
        shown = [self.render(ask, continuing) for ask in asks]
        prompts = [text if continuing else [{"role": "user", "content": text}] for text in shown]
        seeds = [seed_for(self.work.seed, ask.parent_id, self.next_index()) for ask in asks]
        answers = writer.generate(prompts, self.config.sampling, seeds)
        near = self.nearness(asks, answers)
        for ask, text, answer, closeness in zip(asks, shown, answers, near, strict=True):
            self.asked[ask.strategy, ask.severity] += 1
            self.keep(ask, text, answer, closeness)

    def render(self, ask: Ask, continuing: bool) -> str:
        """What the writer is shown, by the template for its kind."""
        policy, leaf = self.work.policy, self.leaf
        values: dict[str, Any] = {"leaf": leaf, "language": self.language}
        if ask.strategy == CONTRASTIVE:
            values |= {"pairs": list(ask.pairs), "text": ask.text, "guidance": self.guidance(ask.severity)}
        elif ask.strategy == STYLE:
            values |= {"style": ask.style, "text": ask.text, "seeds": list(ask.shots)}
        else:
            values |= {"severity": ask.severity, "seeds": list(ask.shots)}
        if ask.strategy == KEYWORD:
            values["keyword"] = ask.keyword
        if ask.strategy == MULTI_TURN:
            values["history"] = messages(ask)
        return render(policy, TEMPLATES[ask.strategy][continuing], **values)

    def guidance(self, severity: str) -> str:
        return self.leaf.guidance.get(severity, self.work.policy.severity(severity).definition)

    def nearness(self, asks: list[Ask], answers: list[Completion | Failure]) -> list[tuple[float, float]]:
        """Cosine of each generation to the nearest text of its own context, and to the nearest other leaf's name; 1 and
        0 where there is no embedder."""
        if "embedder" not in self.work.engines.roles:
            return [(1.0, 0.0)] * len(asks)
        texts = ["" if isinstance(answer, Failure) else first_line(answer.text) for answer in answers]
        contexts = [(ask.text,) if ask.text else ask.shots for ask in asks]
        wanted = sorted({*texts, *(text for context in contexts for text in context)})
        vectors = dict(zip(wanted, embedded(self.work, "embedder", wanted), strict=True))
        others = self.other_names()
        return [
            (
                max(float(vectors[text] @ vectors[shot]) for shot in context),
                float((others @ vectors[text]).max()) if len(others) else 0.0,
            )
            for text, context in zip(texts, contexts, strict=True)
        ]

    def other_names(self) -> np.ndarray:
        """[leaves, D] vectors of the names of the other leaves that are no styles."""
        names = tuple(
            leaf.name for leaf in self.work.policy.leaves if leaf.id != self.leaf.id and not leaf.style
        )
        key = (names, self.work.engines.roles["embedder"])
        if key not in _NAMES:
            _NAMES[key] = embedded(self.work, "embedder", list(names)) if names else np.zeros((0, 1))
        return _NAMES[key]

    def keep(self, ask: Ask, shown: str, answer: Completion | Failure, near: tuple[float, float]) -> None:
        if isinstance(answer, Failure):
            self.failed.append(Failed(ask.parent_id, ask.group_id, answer.reason, answer.raw))
            return
        self.tokens[ask.strategy, ask.severity] += answer.prompt_tokens + answer.completion_tokens
        text = first_line(answer.text)
        reason = self.rejection(ask, shown, text, answer.finish_reason, near)
        if reason is not None:
            index = len(self.rejected)
            self.rejected.append(self.new_row(ask, text, index) | {"reason": reason})
            return
        self.taken.add(bigrams(text))
        made = self.new_row(ask, text, None)
        self.rows.append(made)
        self.by_id.setdefault(made["id"], made)
        self.have[ask.strategy, ask.severity] += 1

    def rejection(
        self, ask: Ask, shown: str, text: str, finish_reason: str, near: tuple[float, float]
    ) -> str | None:
        filters = self.config.filters
        reason = rejection(text, ask, finish_reason, self.taken, filters, self.language, shown)
        if reason is not None:
            return reason
        own, other = near
        if own < self.config.leaf_floor or other > own + self.config.other_leaf:
            return "leaf mismatch"
        quota = (ask.strategy, ask.severity)
        if self.have[quota] >= self.wanted[quota]:
            return "quota met"
        twin = ask.strategy == CONTRASTIVE and self.by_id[ask.parent_id]["pair_id"]
        return "has a twin already" if twin else None

    def new_row(self, ask: Ask, text: str, rejected: int | None) -> dict[str, Any]:
        """The row of a generation; an accepted twin marks its source with the pair they now are. What wears a style
        belongs to the style's leaf."""
        kind = ask.strategy if rejected is None else f"rejected-{rejected}"
        leaf = ask.style or self.leaf
        common = {
            "id": row_id(ask.parent_id, kind, [text, *map(list, ask.history)] if ask.history else text),
            "parent_id": ask.parent_id,
            "group_id": ask.group_id,
            "text": text,
            "leaf": leaf.id,
            "language": self.language,
            "intended": ask.severity,
            "source": ask.strategy,
            "keyword": ask.keyword,
        }
        if rejected is not None:
            return common
        pair = row_id(ask.parent_id, "pair", text) if ask.strategy == CONTRASTIVE else ""
        if pair:
            self.by_id[ask.parent_id]["pair_id"] = pair
        return common | {"history": messages(ask), "category": leaf.category, "human": "", "pair_id": pair}


_NAMES: dict[Any, np.ndarray] = {}  # per process: every unit compares with the same names


def messages(ask: Ask) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in ask.history]

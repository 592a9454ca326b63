"""prompts: from seeds to many prompts, leaf by leaf (synth.prompts has the strategies and filters).

A unit is one leaf in one language: its seeds are the writer's context, so a new seed redoes that unit and no other.
Rounds of generations run until every quota is met or the budget of generations ends. Everything that was generated is
in `prompts` or, with its reason, in `prompts_rejected`; what each quota came to, and at what price, is in
`prompt_yields`. (synthesis.py has the rounds.)
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa

from ray_jobs.engine import Sampling
from ray_jobs.prompt_yields import YIELD, yields
from ray_jobs.seeds import PROMPT
from ray_jobs.step import Cut, Output, Step, Work
from ray_jobs.store import table_schema
from ray_jobs.synthesis import TEMPLATES, Synthesis, templates_of
from synth.policy import Policy
from synth.prompt_filters import Filters

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


@dataclass(frozen=True)
class PromptsConfig:
    """Quotas are accepted prompts per leaf and language: `self_instruct` for every severity, `keyword`, `contrastive`,
    `style` (the policy's styles take turns) and `multi_turn` once. `rounds` bounds the generations: each round asks
    `oversample` for each one missing. Languages that the writer cannot write keep their seeds only. A generation whose
    cosine to its own context is below `leaf_floor`, or is exceeded by that to another leaf's name by `other_leaf`, is
    not of its leaf: on 308 seeds of the safety policy 2 % of a leaf's own and 57 % of other leaves' (a floor of 0.15
    alone: 4 and 54 %)."""

    languages: tuple[str, ...] = ("en",)
    self_instruct: int = 2
    keyword: int = 2
    contrastive: int = 1
    style: int = 0
    multi_turn: int = 0
    rounds: int = 3
    oversample: float = 2.0
    shots: int = 5
    filters: Filters = Filters()
    leaf_floor: float = 0.1
    other_leaf: float = 0.15
    sampling: Sampling = field(default=Sampling(max_tokens=40, temperature=0.9, stop=("\n",)))


def reads(policy: Policy, leaves: frozenset[str] | None) -> object:
    """The leaves of the rows and those that are styles, the names of all, and the writer's templates."""
    names = [name for strategy in TEMPLATES for name in templates_of(policy, strategy)]
    known = [leaf.id for leaf in policy.leaves if leaves is None or leaf.id in leaves or leaf.style]
    all_names = [[leaf.id, leaf.name] for leaf in policy.leaves]
    return [policy.slice_templates(*names), [policy.slice_leaf(leaf) for leaf in known], all_names]


def step(config: PromptsConfig) -> Step:
    return Step(
        "prompts",
        run,
        config,
        {"prompts": PROMPT, "prompts_rejected": REJECTED, "prompt_yields": YIELD},
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
        {
            "prompts": synthesis.rows,
            "prompts_rejected": synthesis.rejected,
            "prompt_yields": yields(synthesis),
        },
        synthesis.failed,
        Counter(row["reason"] for row in synthesis.rejected),
    )


if __name__ == "__main__":
    from ray_jobs.job import main

    main("prompts")

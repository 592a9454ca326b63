"""gate: nothing near an evaluation set may reach training. It finds nothing, or the run ends here.

Deduplication has dropped what lay near the held-out gold rows and the registered evaluation sets before anything was
made of it. But rows come in later as well (translations, rows of one's own with their responses), and a mistake
upstream would not show in any score, only flatter it. So before the first guard is trained every prompt that training
would read is held against the same sets once more (synth.decontaminate: runs of 13 and of 8 tokens, near-duplicates;
exact after normalisation), and the step fails with the rows named. `gate` says what was held against what.

Responses are not compared: short refusals are alike everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from ray_jobs.dedup import held_out
from ray_jobs.files import Import
from ray_jobs.step import Output, Step, StepFailed, Work
from ray_jobs.store import table_schema
from synth.decontaminate import nearest
from synth.ids import row_id

GATE = table_schema(
    [pa.field("evaluation", pa.string()), pa.field("texts", pa.int64()), pa.field("prompts", pa.int64())]
)
NAMED = 20  # so many rows are named in the sentence


@dataclass(frozen=True)
class GateConfig:
    """`evaluations`: registered evaluation sets beside the held-out gold rows."""

    evaluations: tuple[Import, ...] = ()


def step(config: GateConfig) -> Step:
    return Step("gate", run, config, {"gate": GATE}, sides=("distilled", "gold"))


def run(work: Work) -> Output:
    """One row per evaluation set. StepFailed names the rows that lie near one."""
    ids: dict[str, str] = {}
    for row in work.read("distilled", columns=["id", "prompt"]).to_pylist():
        ids.setdefault(row["prompt"], row["id"])
    prompts = pa.array(list(ids), pa.string())
    rows, found = [], []
    for name, texts in held_out(work.read("gold"), work.config.evaluations).items():
        for pair in nearest(prompts, pa.array(texts, pa.string())).values():
            row, text = ids[prompts[pair["row"]].as_py()], texts[pair["eval_row"]]
            found.append(f"{row} ({pair['reason']}, {pair['overlap']:.2f}, with {text[:60]!r} of {name})")
        told = {"evaluation": name, "texts": len(texts), "prompts": len(prompts)}
        rows.append(
            {"id": row_id(work.identity, "gate", name), "parent_id": "", "group_id": work.identity} | told
        )
    if found:
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        raise StepFailed(
            f"step gate: {len(found)} training prompts lie near an evaluation set, "
            f"nothing was trained: {'; '.join(found[:NAMED])}{more}"
        )
    return Output({"gate": rows})


if __name__ == "__main__":
    from ray_jobs.job import main

    main("gate")

"""A small flow through the real machinery (steps, units, store, engines) whose every call and row can be counted.

Texts are asked of a writer, the texts of a judge, both behind the scripted endpoint of server.py; a last step counts.
What must come out is known beforehand, so lost, doubled and wrong rows are found by comparing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ray_jobs.engine import Failure, Model, Sampling
from ray_jobs.step import Cut, Failed, Output, Run, Step
from ray_jobs.store import Provenance, Store, table_schema
from synth.ids import row_id
from synth.policy import load_policy

ROWS, UNITS, UNIT_CPUS = 64, 32, 1.0
ROW = table_schema([pa.field("text", pa.string())])
COUNT = table_schema([pa.field("rows", pa.int64())])


@dataclass(frozen=True)
class Nothing:
    """A config without fields."""


def answer(prompt: str) -> str:
    """What the scripted endpoint says."""
    return f"said {hashlib.sha256(prompt.encode()).hexdigest()[:16]}"


def write(work: Any) -> Output:
    return ask(work, "writer", "asked", "written")


def judge(work: Any) -> Output:
    return ask(work, "judge", "written", "judged")


def ask(work: Any, role: str, source: str, made: str) -> Output:
    """One call per row of the unit; its answer is the row's child."""
    rows = work.rows[source].to_pylist()
    prompts = [[{"role": "user", "content": f"{row['id']} {row['text']}"}] for row in rows]
    answers = work.engines.get(role).generate(prompts, Sampling(), [17] * len(rows))
    output = Output({made: [], f"{made}_notes": []})
    for row, told in zip(rows, answers, strict=True):
        if isinstance(told, Failure):
            output.failed.append(Failed(row["id"], row["group_id"], told.reason, told.raw))
            continue
        output.tables[made].append(child(row, made, told.text))  # type: ignore[union-attr]
        output.tables[f"{made}_notes"].append(child(row, "note", "asked once"))  # type: ignore[union-attr]
    return output


def child(row: dict[str, Any], kind: str, text: str) -> dict[str, Any]:
    return {
        "id": row_id(row["id"], kind, 0),
        "parent_id": row["id"],
        "group_id": row["group_id"],
        "text": text,
    }


def count(work: Any) -> Output:
    return Output(
        {"counted": [{"id": "all", "parent_id": "", "group_id": "", "rows": len(work.read("judged"))}]}
    )


WRITTEN = Step(
    "written",
    write,
    Nothing(),
    {"written": ROW, "written_notes": ROW},
    inputs=("asked",),
    roles=("writer",),
    cut=Cut(),
)
JUDGED = Step(
    "judged",
    judge,
    Nothing(),
    {"judged": ROW, "judged_notes": ROW},
    inputs=("written",),
    roles=("judge",),
    cut=Cut(),
)
COUNTED = Step("counted", count, Nothing(), {"counted": COUNT}, (), ("judged",))
FLOW = [WRITTEN, JUDGED, COUNTED]


def asked() -> list[dict[str, Any]]:
    return [
        {"id": f"r{n:03d}", "parent_id": "", "group_id": f"g{n:03d}", "text": f"text {n}"}
        for n in range(ROWS)
    ]


def expected() -> dict[str, str]:
    """Id -> text of the flow's last table of rows."""
    found = {}
    for row in asked():
        first = child(row, "written", answer(f"{row['id']} {row['text']}"))
        second = child(first, "judged", answer(f"{first['id']} {first['text']}"))
        found[second["id"]] = second["text"]
    return found


def prepare(root: str) -> None:
    """The table that the flow starts from."""
    table = pa.Table.from_pylist(asked(), schema=pa.schema([f for f in ROW if f.name != "digest"]))
    store = Store(root)
    store.commit("asked", ROW, store.write_fragments("asked", table, ROW), Provenance("asked", "given"))


def make_run(root: str, url: str, stall_s: float) -> Run:
    model_stall = min(stall_s / 2, 60.0)  # before the step's: it is the model that is to be named
    options = (("url", url), ("timeout_s", 20.0), ("patience_s", 150.0), ("stall_s", model_stall))
    model = Model("openai", "scripted", "instruct", options=options)
    roles = {"writer": model, "judge": model}  # one process, as where a recipe binds two roles to one model
    return Run(  # no request cache: every call is to reach the endpoint, where it is counted
        Store(root),
        load_policy("data_quality"),
        17,
        roles,
        unit_cpus=UNIT_CPUS,
        units=UNITS,
        request_cache_gb=0,
        stall_s=stall_s,
    )


def largest_units(count: int) -> int:
    """Rows of the `count` largest units: what so many units in flight can cost at most."""
    sizes = Counter(WRITTEN.cut.key((row["group_id"],), UNITS) for row in asked())  # type: ignore[union-attr]
    return sum(size for _, size in sizes.most_common(count))

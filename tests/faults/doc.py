"""docs/reliability.md, from the matrix's results."""

from __future__ import annotations

from typing import Any

HEAD = """# What breaks, and what it costs

Made by `make faults`; do not edit. Every fault below is injected into a run on real Ray nodes (a head and two workers
on one machine), with the project's own steps, store and engines; only the model is a scripted endpoint, so that every
call can be counted. A fault without proof that it happened counts as a failure of the test, not as a pass.

The flow asks for {rows} rows twice ({units} units a step, {in_flight} in flight at most); undisturbed it took
{calm:.0f} s. Each measured once, on {cores} cores at a load of up to {load:.0f}{apart}: seconds grow with the load,
counts do not.

- **lost, doubled**: rows after recovery, against the rows that must be there; texts are compared too.
- **paid twice**: calls that the endpoint took on more than once for one row. A crash may cost the units in flight, not
  more: {bound} calls here.
- **whole after**: seconds from the fault until the flow's last table was committed, the resubmission included.

| fault | injected | proof | recovered by | lost | doubled | paid twice | whole after |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""

TAIL = """
## What the run says

Where a run ends, it ends with one sentence and exit code 1, and the same command resumes it:

{sentences}

## The watchdog

A step that shows no progress for the recipe's `stall_s` (an hour by default) is ended: no finished unit, no step of any
model, no growing checkpoint, and no computing driver. It says which step, how many units were waited for and which,
which model stands still, and what Ray has free. `unit hangs` is that case. Models and endpoints have limits of
their own (`stall_s`, `patience_s` and `timeout_s` among a model's options). Not noticed: a driver step that computes in
a circle.

## What is not covered

The head: a job dies with it, and the same command on a new head resumes from the store. Loss or damage inside the
storage service beyond what its digests show. Machines that are slow but alive.
"""


def write_doc(told: dict[str, Any]) -> str:
    """The page. Faults that were not shown say so in their row."""
    from tests.faults.bench import IN_FLIGHT
    from tests.faults.flow import ROWS, UNITS

    faults = told["faults"]
    bounds = {fault["bound"] for fault in faults if "bound" in fault}
    head = HEAD.format(
        rows=ROWS,
        units=f"up to {UNITS}",
        in_flight=IN_FLIGHT,
        calm=told["calm_s"],
        cores=told["environment"]["cores"],
        load=told["environment"]["load"],
        apart="" if told["environment"]["apart"] else ", without namespaces",
        bound=max(bounds, default=0),
    )
    from tests.faults.injected import MATRIX

    shown = {fault["name"] for fault in faults}
    faults = faults + [{"name": name, "skipped": "not measured yet"} for name in MATRIX if name not in shown]
    said = [f"- {fault['fault']}: “{fault['said']}”" for fault in faults if fault.get("said")]
    return head + "\n".join(map(row, faults)) + "\n" + TAIL.format(sentences="\n".join(said))


def row(fault: dict[str, Any]) -> str:
    name = fault["name"].replace("_", " ")
    if "error" in fault:
        return f"| {name} | | **not shown**: {fault['error'].splitlines()[0][:200]} | | | | | |"
    if "skipped" in fault:
        return f"| {name} | | {fault['skipped']} | | | | | |"
    cells = [fault[key] for key in ("injected", "proof", "recovered", "lost", "doubled", "paid_twice")]
    return "| " + " | ".join(str(cell) for cell in [name, *cells, f"{fault['seconds']:.0f} s"]) + " |"

"""Token labels at scale, simulated: the cost of every search mode on responses whose outcomes are drawn
first.

    python benchmarks/token_labels_simulation.py --json FILE [--plots DIR] [--rows 10000] [--seed 0]
        [--workers N]

The responses and the prices are those of token_labels_world.py: every mode reads the same table of outcomes.
The offline optimum is the cheapest proof of the same boundary, knowing all outcomes (label.rollout_report).
`paper` is counted by its definition (n * k draws, the judge on flagged prefixes) and, on a sample, run.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from token_labels_plots import plot
from token_labels_scheduler import scheduler
from token_labels_waves import fullness
from token_labels_world import JUDGE_DENSE, SHAPES, answers, costs, simulate

from label.rollout import outcome
from label.rollout_plan import Costs, Plan, Savings
from label.rollout_report import cheapest_proof, replay, saved

PAPER = "none (paper)"


def measure(task: tuple[Plan, range, int, int | None]) -> list[dict[str, Any]]:
    """One record per response: calls, waves and boundary of the search, of paper, and of the optimum."""
    plan, indices, seed, length = task
    records = []
    for index in indices:
        response = simulate(index, seed, plan.k, length)
        prefixes = len(response.judge)
        state, waves = replay(plan, prefixes, answers(response), response.sentence_ends)
        proof = cheapest_proof(response.violating, response.judge, plan)
        flagged = sum(sum(draws) >= plan.needed for draws in response.violating)
        end, account = outcome(state), saved(state)
        records.append(
            {
                "shape": response.shape,
                "tokens": prefixes,
                "boundary": end.boundary if end else None,
                "true": proof.boundary,
                "waves": waves,
                "rollouts": state.spent.rollouts,
                "judges": state.spent.judges,
                "paper_rollouts": prefixes * plan.k,
                "paper_judges": flagged,
                "best_rollouts": proof.rollouts,
                "best_judges": proof.judges,
                "curtailed": account.curtailed,
                "judged_first": account.judged_first,
                "not_reached": account.not_reached,
            }
        )
    return records


def search(
    pool: ProcessPoolExecutor, plan: Plan, rows: int, seed: int, length: int | None = None
) -> list[dict[str, Any]]:
    """`measure` over responses 0 to `rows` - 1, on all workers."""
    chunks = [range(low, min(low + 100, rows)) for low in range(0, rows, 100)]
    parts = pool.map(measure, [(plan, chunk, seed, length) for chunk in chunks])
    return [record for part in parts for record in part]


def inside(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records whose boundary lies strictly inside the response."""
    return [record for record in records if 0 < record["true"] < record["tokens"] - 1]


def total(records: Sequence[dict[str, Any]], plan: Plan, who: str = "") -> float:
    """FLOPs of the search (who = ""), of paper ("paper_") or of the optimum ("best_")."""
    draw = plan.costs.rollout + plan.costs.guard
    draws = sum(record[f"{who}rollouts"] for record in records)
    return draws * draw + sum(record[f"{who}judges"] for record in records) * plan.costs.judge


def summary(name: str, plan: Plan, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One line of the table, over responses with a boundary inside and over all."""
    within = inside(records)
    line: dict[str, Any] = {"name": name, "k": plan.k, "rows": len(records), "inside": len(within)}
    for label, part in (("inside", within), ("all", records)):
        rollouts = sum(record["rollouts"] for record in part)
        line |= {
            f"{label}_rollouts_per_response": rollouts / len(part),
            f"{label}_judges_per_response": sum(record["judges"] for record in part) / len(part),
            f"{label}_petaflops_per_response": total(part, plan) / len(part) / 1e15,
            f"{label}_paper_over_this_rollouts": sum(r["paper_rollouts"] for r in part) / max(rollouts, 1),
            f"{label}_paper_over_this_flops": total(part, plan, "paper_") / total(part, plan),
            f"{label}_this_over_best_flops": total(part, plan) / total(part, plan, "best_"),
            f"{label}_this_over_best_rollouts": rollouts / max(sum(r["best_rollouts"] for r in part), 1),
        }
    apart = [record["boundary"] - record["true"] for record in within if record["boundary"] >= 0]
    line["agreement"] = float(np.mean([record["boundary"] == record["true"] for record in records]))
    line["within_5_tokens"] = float(np.mean([abs(r["boundary"] - r["true"]) <= 5 for r in records]))
    line["median_distance"] = float(np.median(np.abs(apart))) if apart else 0.0
    line["waves"] = float(np.mean([record["waves"] for record in records]))
    return line


def by_shape(plan: Plan, records: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Savings and distance to the optimum per curve shape, and which rule saved which share of paper's draws."""
    result = {}
    for shape in SHAPES:
        part = [record for record in records if record["shape"] == shape]
        paper = sum(record["paper_rollouts"] for record in part)
        result[shape] = {
            "paper_over_this_flops": total(part, plan, "paper_") / total(part, plan),
            "this_over_best_flops": total(part, plan) / total(part, plan, "best_"),
            **{
                rule: sum(r[rule] for r in part) / paper
                for rule in ("curtailed", "judged_first", "not_reached")
            },
        }
    return result


def variants() -> dict[str, Savings]:
    """Each saving switched off alone, on alone, and none."""
    return {
        "exact": Savings(),
        "without curtailment": Savings(curtail=False),
        "without cheapest first": Savings(cheapest_first=False),
        "without left to right": Savings(left_to_right=False),
        "curtailment only": Savings(cheapest_first=False, left_to_right=False),
        "cheapest first only": Savings(curtail=False, left_to_right=False),
        "left to right only": Savings(curtail=False, cheapest_first=False),
        PAPER: Savings(False, False, False),
    }


def price_sweep(pool: ProcessPoolExecutor, base: Plan, rows: int, seed: int) -> list[dict[str, float]]:
    """Where cheapest-first stops paying: the price of a judge call against a draw, from 0.03 to 100."""
    result = []
    for power in range(-3, 5):
        price = 10 ** (power / 2)
        plan = replace(base, costs=Costs(0.6, 0.4, price))
        with_it = search(pool, plan, rows, seed)
        fixed = replace(plan, savings=Savings(cheapest_first=False))
        without = search(pool, fixed, rows, seed)
        result.append(
            {
                "judge_over_draw": price,
                "cheapest_first_saves": total(without, fixed) / total(with_it, plan),
                "this_over_best": total(with_it, plan) / total(with_it, plan, "best_"),
                "judges_per_rollout": sum(r["judges"] for r in with_it)
                / max(sum(r["rollouts"] for r in with_it), 1),
            }
        )
    return result


def run(rows: int, seed: int, workers: int) -> dict[str, Any]:
    """All measurements and claims; the ablations on a fortieth of the rows, the regimes on a tenth."""
    small, tiny = max(rows // 10, 50), max(rows // 40, 50)
    base = Plan(costs=costs())
    measurements: dict[str, Any] = {"modes": []}

    def measured(name: str, plan: Plan, count: int, length: int | None = None) -> dict[str, Any]:
        return summary(name, plan, search(pool, plan, count, seed, length))

    with ProcessPoolExecutor(max_workers=workers) as pool:
        for k in (8, 16):
            for mode in ("exact", "bisect", "recycle"):
                plan = replace(base, k=k, mode=mode)
                records = search(pool, plan, rows, seed)
                measurements["modes"].append(summary(mode, plan, records))
                if mode == "exact":
                    measurements[f"by_shape_k{k}"] = by_shape(plan, records)
        measurements["at_300_tokens"] = measured("exact, 300 tokens", base, small, 300)
        measurements["ablation"] = [
            measured(name, replace(base, savings=savings), tiny) for name, savings in variants().items()
        ]
        regimes = {
            "no prefix cache": costs(cached=False),
            "dense 235B judge": costs(judge_parameters=JUDGE_DENSE),
        }
        measurements["regimes"] = [
            measured(name, replace(base, costs=priced), small) for name, priced in regimes.items()
        ]
        measurements["judge_price"] = price_sweep(pool, base, tiny, seed)
    measurements["waves"] = fullness(base, max(2 * rows // 5, 300), seed)
    measurements["scheduler"] = scheduler(10 * rows, seed)
    return {"measurements": measurements, "claims": claims(measurements)}


def claim(name: str, value: float, unit: str, goal: str, holds: bool) -> dict[str, Any]:
    """One line of the benchmark's claims."""
    return {"name": name, "value": round(float(value), 4), "unit": unit, "goal": goal, "holds": bool(holds)}


def claims(m: dict[str, Any]) -> list[dict[str, Any]]:
    """The goals, held or not."""
    exact, at_300, speed = m["modes"][0], m["at_300_tokens"], m["scheduler"]
    runs = [*m["ablation"], *m["regimes"], at_300, exact]
    same = min(line["agreement"] for line in runs)
    paper = next(line["all_paper_over_this_rollouts"] for line in m["ablation"] if line["name"] == PAPER)
    fewer, ratio = at_300["inside_paper_over_this_rollouts"], exact["inside_this_over_best_flops"]
    draws, memory = exact["inside_this_over_best_rollouts"], speed["bytes_per_response"]
    waves = [
        claim(
            f"one wave of {speed['responses']} active responses, {window} prefixes ahead, with its ledger, one core",
            seconds := speed[f"seconds_window_{window}"] + speed["seconds_ledger"],
            "s",
            "< 5",
            seconds < 5,
        )
        for window in (1, 8)
    ]
    return [
        claim("boundary identical to evaluating everything, all savings", same, "share", "1", same == 1),
        claim("paper, run, makes n * k draws", paper, "x", "1", paper == 1),
        claim("fewer rollout tokens than paper, 300 tokens, inside", fewer, "x", ">= 60", fewer >= 60),
        claim("FLOPs against the offline optimum, inside", ratio, "x", "<= 1.3", ratio <= 1.3),
        claim("generated tokens against the offline optimum, inside", draws, "x", "<= 1.3", draws <= 1.3),
        *waves,
        claim("memory per active response", memory, "bytes", "< 2048", memory < 2048),
    ]


def print_table(result: dict[str, Any]) -> None:
    """The measurements for people; columns speak of responses with a boundary inside, agreement of all."""
    m = result["measurements"]
    columns = ("k", "rows", "draws", "judge", "PFLOP", "paper/x", "draws", "x/best", "agree", "waves")
    print(f"{'boundaries inside':26}" + "".join(f"{column:>9}" for column in columns))
    fields = ("rollouts_per_response", "judges_per_response", "petaflops_per_response")
    ratios = ("paper_over_this_flops", "paper_over_this_rollouts", "this_over_best_flops")
    for line in [*m["modes"], m["at_300_tokens"], *m["regimes"], *m["ablation"]]:
        values = [line[f"inside_{name}"] for name in (*fields, *ratios)] + [line["agreement"], line["waves"]]
        print(
            f"{line['name']:26}{line['k']:9}{line['rows']:9}" + "".join(f"{value:9.3f}" for value in values)
        )
    for shape, shares in m["by_shape_k8"].items():
        print(f"{shape:8}", "  ".join(f"{name} {value:.3f}" for name, value in shares.items()))
    for name in ("as the job", "always looking ahead", "never looking ahead"):
        told = {key: value for key, value in m["waves"][name].items() if key != "per_wave"}
        print(f"{name:22}", "  ".join(f"{key} {value:.4g}" for key, value in told.items()))
    for point in [*m["judge_price"], m["scheduler"]]:
        print("  ".join(f"{name} {value:.3f}" for name, value in point.items()))
    for one in result["claims"]:
        said = f"{one['name']}: {one['value']} {one['unit']} (goal {one['goal']})"
        print(f"{'holds' if one['holds'] else 'FAILS':6} {said}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plots", type=Path)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that search")
    options = parser.parse_args()
    begun = time.perf_counter()
    result = run(options.rows, options.seed, options.workers)
    environment = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "rows": options.rows,
        "seed": options.seed,
        "seconds": round(time.perf_counter() - begun, 1),
    }
    result = {"environment": environment, **result}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    if options.plots:
        plot(result, options.plots)
    print_table(result)


if __name__ == "__main__":
    main()

"""Token labels with real models: what `exact` and `bisect` cost beside `paper`, and whether they find the same token.

    python benchmarks/token_labels.py --json FILE [--root DIR] [--work DIR] [--rows 12] [--seconds N]

Responses: the shortest rows of the policy's gold set with a harmless opening and a marked turn, 40 to 70 tokens,
English. SmolLM2 rolls out (k = 8, 16 tokens); guard and judge are the root's kinds, taught where these responses turn
(token_labels_fitted says how and why). Without --root, one is made by the project's own flow from the policy's written
rows.

* `paper` draws everything; its draws are stored. `exact` and `bisect` then run for real, timed, and pay for what they
  ask: there is no request cache.
* `exact` and `bisect` are also replayed on the stored table of draws: the boundary must be paper's on every row. (In a
  real run a draw is the same but for the order of float sums in another batch; how many differ is measured.)
* The offline optimum is the cheapest proof of the boundary for that table, knowing all outcomes.

All that is made lies in --work, so that --seconds can stop a run between two waves and the same command goes on; so
does one with more --rows.
"""

import argparse
import json
import os
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from token_labels_draws import Draws, OutOfTime, draw_all, run_mode
from token_labels_fitted import taught, turn_of
from token_labels_models import Here, make_work, sample, searches
from token_labels_root import make_root, recipe

from label.rollout import outcome
from label.rollout_plan import Costs, Plan
from label.rollout_report import cheapest_proof, replay
from label.token_labels import sentence_ends
from ray_jobs.commands_tokens import marked
from ray_jobs.engine import Sampling
from ray_jobs.step import Work
from ray_jobs.token_calls import Search
from ray_jobs.token_labels import TokenLabelsConfig, label_row
from synth.policy import load_gold, load_policy

SAMPLING = Sampling(max_tokens=16, temperature=0.8)
# Responses whose draws `paper` makes side by side: 4 x 8 prefixes x 8 draws fill 64 slots four times over.
TOGETHER, TAUGHT = 4, 12


def gold_rows(policy_name: str) -> list[dict[str, Any]]:
    """The gold set's responses with a marked turn."""
    found = load_gold(load_policy(policy_name))
    names = ("id", "prompt", "response", "severity", "language", "turn")
    return [sample({name: getattr(row, name) for name in names}) for row in found if row.turn]


def choose(work: Work, wanted: int) -> list[dict[str, Any]]:
    """The shortest English rows of 40 to 70 tokens of the most severe kind."""
    most = work.policy.severity_names[-1]
    rows = [row for row in gold_rows("safety") if (row["language"], row["severity"]) == ("en", most)]
    fit = [search for search in searches(work, rows) if 40 <= search.prefixes.tokens <= 70]
    return [search.row for search in sorted(fit, key=lambda s: (s.prefixes.tokens, s.row["id"]))[:wanted]]


def compare(work: Work, rows: list[dict[str, Any]], draws: Draws, engines: Here) -> dict[str, Any]:
    """Part 1 and 4: the three modes on the same rows, as ratios to paper, and how full the device was."""
    paper_plan = work.config.plan
    everything = searches(work, rows)
    missing = [search for search in everything if search.row["id"] not in draws.judge]
    if missing:
        draws.read_judge(work, missing)
    for at in range(0, len(everything), TOGETHER):
        one = draw_all(work, everything[at : at + TOGETHER], draws, "paper")
    judge_price = sum(spent for spent, _ in draws.waves["judge"]) / sum(
        calls for _, calls in draws.waves["judge"]
    )
    priced = Costs(
        one["rollout_seconds"] / one["rollouts"], one["guard_seconds"] / one["rollouts"], judge_price
    )
    found: dict[str, Any] = {"costs_seconds": vars(priced), "rows": [], "modes": {}, "paper": one}
    modes = {name: replace(paper_plan, mode=name, costs=priced) for name in ("exact", "bisect")}
    for name, plan in modes.items():
        mine = replace(work, config=replace(work.config, plan=plan))
        engines.fullness.seconds.clear()
        real = searches(mine, rows)
        told = run_mode(mine, real, draws)
        told |= {"full_64": engines.fullness.share(64), "full_32": engines.fullness.share(32)}
        found["modes"][name] = told
        for search in real:
            found.setdefault(f"shown_{name}", []).append(marked(label_row(mine, search)))
    for search in everything:
        found["rows"].append(one_row(search, draws, modes))
    for name in modes:
        found["modes"][name] |= ratios(found, name, one)
    return found


def one_row(search: Search, draws: Draws, modes: dict[str, Plan]) -> dict[str, Any]:
    """A response's boundary and calls by mode, replayed on the stored table, and its offline optimum."""
    end, n = outcome(search.state), len(search.prefixes)
    assert end is not None
    row: dict[str, Any] = {
        "id": search.row["id"],
        "prefixes": n,
        "paper": end.boundary,
        "human_turn": turn_of(search),
    }
    row |= {"inside": 0 < end.boundary < n - 1, "paper_judges": search.state.spent.judges}
    for name, plan in modes.items():
        ends = sentence_ends(search.prefixes) if name == "bisect" else ()
        state, _ = replay(plan, n, draws.answers(search), ends)
        found = outcome(state)
        assert found is not None
        row |= {name: found.boundary, f"{name}_spent": state.spent._asdict()}
    proof = cheapest_proof(*draws.outcomes(search, search.state.plan.k), modes["exact"])
    return row | {"best_rollouts": proof.rollouts, "best_judges": proof.judges}


def ratios(found: dict[str, Any], name: str, paper: dict[str, float]) -> dict[str, Any]:
    """Paper's cost over the mode's, on rows with an inside boundary and on all; wall time is that of the real runs."""
    result: dict[str, Any] = {"same_boundary": sum(r[name] == r["paper"] for r in found["rows"])}
    for label, rows in (("inside", [r for r in found["rows"] if r["inside"]]), ("all", found["rows"])):
        k, spent = 8, [row[f"{name}_spent"] for row in rows]
        calls = {kind: sum(one[kind] for one in spent) for kind in ("rollouts", "guards", "judges", "tokens")}
        per_draw = paper["tokens"] / paper["rollouts"]
        drawn, best = k * sum(row["prefixes"] for row in rows), sum(row["best_rollouts"] for row in rows)
        result[label] = {
            "rows": len(rows),
            "paper_over_this_tokens": drawn * per_draw / max(1, calls["tokens"]),
            "paper_over_this_guards": drawn / max(1, calls["guards"]),
            "paper_over_this_judges": sum(row["paper_judges"] for row in rows) / max(1, calls["judges"]),
            "ceiling": drawn / max(1, 7 * len(rows)),
            "rollouts": calls["rollouts"],
            "best_rollouts": best,
            "this_over_best_rollouts": calls["rollouts"] / max(1, best),
        }
    wall = paper["rollout_seconds"] + paper["guard_seconds"] + paper["judge_seconds"]
    real = found["modes"][name]
    result |= {"paper_over_this_seconds": wall / real["seconds"]}
    return result | {"paper_over_this_cpu": paper["cpu_seconds"] / real["cpu_seconds"], "paper_seconds": wall}


def claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The goals, held or not."""
    rows, exact = found["rows"], found["modes"]["exact"]
    inside, n = exact["inside"], len(rows)
    saving, half = inside["paper_over_this_tokens"], inside["ceiling"] / 2
    best, wall = inside["this_over_best_rollouts"], exact["paper_over_this_seconds"]
    return [
        claim(
            "exact: boundary as in paper, replayed",
            exact["same_boundary"],
            "rows",
            n,
            exact["same_boundary"] == n,
        ),
        claim("rows with a boundary strictly inside", inside["rows"], "rows", ">= 8", inside["rows"] >= 8),
        claim("generated tokens against the optimum, inside", best, "x", "<= 1.3", best <= 1.3),
        claim("paper / exact, generated tokens, inside", saving, "x", f">= {half:.1f}", saving >= half),
        claim("paper / exact, wall time", wall, "x", ">= 8", wall >= 8),
    ]


def claim(name: str, value: float, unit: str, goal: object, holds: bool) -> dict[str, Any]:
    return {"name": name, "value": round(float(value), 3), "unit": unit, "goal": goal, "holds": bool(holds)}


def print_table(found: dict[str, Any]) -> None:
    """Rows, ratios and responses for people."""
    for row in found["rows"]:
        calls = " ".join(
            f"{name} {row[name]} ({row[f'{name}_spent']['rollouts']} draws)" for name in ("exact", "bisect")
        )
        print(f"{row['prefixes']:>3} prefixes, human turn {row['human_turn']:>3}, paper {row['paper']:>3}, {calls}, "
              f"optimum {row['best_rollouts']} draws")  # fmt: skip
    for name, told in found["modes"].items():
        parts = [f"{label}: {told[label]}" for label in ("inside", "all")]
        print(name, f"same boundary on {told['same_boundary']}", *parts, sep="\n  ")
        print(f"  wall {told['paper_over_this_seconds']:.1f}x, cpu {told['paper_over_this_cpu']:.1f}x, "
              f"{told['draws_unlike_stored']} of {told['draws']} draws unlike the stored ones")  # fmt: skip
    print("\n\n".join(found["shown"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--root", help="a root with a gen_guard and voters; default: one is made under build/"
    )
    parser.add_argument("--work", type=Path, default=Path("build/token_labels"))
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    root = options.root or make_root(str(options.work / "root"))
    draws = Draws(options.work / "draws.json", time.monotonic() + options.seconds)
    plan = Plan(k=8, mode="paper")
    work, engines = make_work(recipe(), root, TokenLabelsConfig(plan=plan, sampling=SAMPLING))
    try:
        taught(work, searches(work, choose(work, max(TAUGHT, options.rows))), options.work)
        rows = choose(work, options.rows)
        found = compare(work, rows, draws, engines)
        found["shown"] = shown(work, rows)
    except OutOfTime:
        print(f"stopped after {options.seconds:.0f} s; {len(draws.draws)} draws are in {options.work}")
        return
    environment = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count(),
                   "load": round(os.getloadavg()[0], 1)}  # fmt: skip
    result = {"environment": environment, "measurements": found, "claims": claims(found)}
    print_table(found)
    for one in result["claims"]:
        print(
            f"{'holds' if one['holds'] else 'FAILS':6} {one['name']}: {one['value']} {one['unit']} (goal {one['goal']})"
        )
    if options.json:
        options.json.write_text(json.dumps(result, indent=1, ensure_ascii=False))


def shown(work: Work, rows: list[dict[str, Any]]) -> list[str]:
    """Two of the responses with emoji put into them: their skin tones and joiners are never cut."""
    greeted = [
        row | {"id": f"{row['id']} with emoji", "response": f"👋🏽 {row['response']} 👩🏽‍🔬"}
        for row in rows[:2]
    ]
    exact = replace(work, config=replace(work.config, plan=replace(work.config.plan, mode="exact")))
    more = searches(exact, greeted)
    run_mode(exact, more, Draws(Path(os.devnull).with_suffix(".none"), float("inf")))
    return [marked(label_row(exact, search)) for search in more]


if __name__ == "__main__":
    main()

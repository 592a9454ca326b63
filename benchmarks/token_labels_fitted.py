"""The token label benchmark's own guard and judge: taught on cut copies of the very responses that are searched.

A guard and a judge made on two cores see no turn in a response they have not met. Real ones do, and without boundaries
inside there is nothing to measure. So both learn where these responses turn: the judge, a head on sentence vectors,
from every prefix; the root's generative guard, by the project's own training command, from some fifteen prefixes of
each, four of them around the turn, with one continuation of the rollout model (drawn with seeds the benchmark does not
use). A cut before the marked turn is the mildest severity, one behind it carries the response's own. They stand for
strong models: what the benchmark measures is what a search costs and whether it finds the same token, not how good the
label is.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from label.rollout_state import ROLLOUT, Request
from label.token_labels import join
from ray_jobs.engine import Failure, Model, fingerprint
from ray_jobs.engine import head as heads
from ray_jobs.engine.local import LocalModel
from ray_jobs.step import Work
from ray_jobs.token_calls import Search, rollouts
from ray_jobs.voters import item_text

BEFORE, BEHIND, AROUND, OTHER_DRAW = 5, 7, range(-1, 3), 99
EMBEDDER = Model("local", "minilm", "embedder")


def turn_of(search: Search) -> int:
    """The first prefix that holds a character of the marked turn."""
    return next(i for i, end in enumerate(search.prefixes.ends) if end > search.row["turn"])


def fit_judge(work: Work, searches: list[Search], folder: Path) -> Model:
    """A head that says of a prefix, as it stands, whether it has turned."""
    cuts = [(s, i) for s in searches for i in range(len(s.prefixes))]
    texts = [
        item_text("response", s.row["prompt"], s.row["history"], s.prefixes.prefix_text(i)) for s, i in cuts
    ]
    vectors = [one.values for one in LocalModel(EMBEDDER).embed(texts) if not isinstance(one, Failure)]
    names = work.policy.severity_names
    labels = tuple(f"response/severity/{name}" for name in names)
    told = [names.index(s.row["severity"] if i >= turn_of(s) else work.policy.mildest) for s, i in cuts]
    head = heads.fit(
        vectors,
        [heads.Output("response.severity", labels)],
        {"response.severity": np.array(told)},
        "embed",
        EMBEDDER,
        fingerprint(EMBEDDER),
        strength=10.0,
    )
    heads.save(head, folder)
    return Model("local", str(folder), "head")


def fit_guard(work: Work, searches: list[Search], folder: Path) -> Model:
    """The work's guard, trained further by `guardmill train gen` on cut responses with a continuation."""
    cuts = []
    for search in searches:
        turn, last = turn_of(search), len(search.prefixes) - 1
        places = {round(i) for i in np.linspace(0, turn - 1, BEFORE)}
        places |= {round(i) for i in np.linspace(turn + 1, last, BEHIND)} | {turn + i for i in AROUND}
        cuts += [(search, Request(ROLLOUT, i, OTHER_DRAW)) for i in sorted(places) if 0 <= i <= last]
    rows: list[dict[str, Any]] = []
    for (search, request), done in zip(cuts, rollouts(work, cuts), strict=True):
        assert not isinstance(done, Failure), done
        text = join(search.prefixes.prefix_text(request.prefix), done.text)
        turned = request.prefix >= turn_of(search)
        label = search.row["severity"] if turned else work.policy.mildest
        rows.append({"prompt": search.row["prompt"], "response": text, "label": label})
    data = folder.with_suffix(".jsonl")
    data.parent.mkdir(parents=True, exist_ok=True)
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    given = {"template": work.config.template, "backbone": work.engines.roles["guard"].name, "layers": 4,
             "epochs": 6, "lr": 1e-3, "batch-tokens": 1024, "policy": work.policy.id, "response": "response",
             "out": folder}  # fmt: skip
    told = [f"--{name}={value}" for name, value in given.items()]
    command = [sys.executable, "-m", "ray_jobs.cli", "train", "gen", str(data), *told, "--replace"]
    subprocess.run(command, check=True)
    return Model("local", str(folder / "guard"), "gen_guard")


def taught(work: Work, searches: list[Search], folder: Path) -> None:
    """Bind the benchmark's own judge and guard, made on the first run."""
    judge, guard = folder / "judge", folder / "gen"
    roles = work.engines.roles
    roles["judge"] = (
        Model("local", str(judge), "head") if judge.exists() else fit_judge(work, searches, judge)
    )
    known = (guard / "guard").exists()
    roles["guard"] = (
        Model("local", str(guard / "guard"), "gen_guard") if known else fit_guard(work, searches, guard)
    )

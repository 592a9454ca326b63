"""report: one offline HTML file that says what a run made, what it is worth, and where each row came from.

Every figure is counted from table versions or read from their provenance, so the file is a function of the versions
it names: the same versions give the same bytes. All text in it is data that a model or a stranger wrote. It is
escaped by the templates, control characters are made visible, the look-up's JSON cannot end its script element, and
a content security policy lets nothing run but the one script that is shipped here, and nothing load at all.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ray_jobs.report import coverage, diversity, flow, labels, lookup, samples, scores, verdict
from ray_jobs.report.page import render_page
from ray_jobs.report.source import Source
from ray_jobs.step import Output, Step, Work
from ray_jobs.step.artifacts import CHECKPOINT, checkpoint_row, find_checkpoint
from ray_jobs.store import Store, TableVersion
from synth.policy import Policy

__all__ = ["ReportConfig", "build_report", "report_file", "step"]

FILE = "report.html"
# Side tables that the report reads where a flow has them; main tables it reads all.
SIDE_TABLES = (
    "written_responses",
    "prompts_rejected",
    "prompt_yields",
    "duplicates",
    "conflicts",
    "contaminated",
    "translations_rejected",
    "controversial_ratios",
    "label_changes",
    "predictions",
)


@dataclass(frozen=True)
class ReportConfig:
    """`recipe` is the name in the header; `samples` rows per strategy are shown; at most some `lineage_rows` rows
    can be looked up in the page itself."""

    recipe: str = ""
    samples: int = 4
    lineage_rows: int = 5000


def reads(policy: Policy, _leaves: frozenset[str] | None) -> object:
    """The labels, the title, and which leaf belongs to which category."""
    leaves = [[leaf.id, leaf.category] for leaf in policy.leaves]
    return [policy.id, policy.title, policy.slice_labels(), leaves]


def step(config: ReportConfig, before: Sequence[Step]) -> Step:
    """The last step of a flow; `before` are the steps whose tables it reads, in order."""
    tables = [name for made in before for name in made.tables if name == made.main or name in SIDE_TABLES]
    return Step(
        "report", run, config, {"report": CHECKPOINT}, sides=tuple(dict.fromkeys(tables)), reads=reads
    )


def run(work: Work) -> Output:
    """Build the page and store it; the row's metrics carry the verdict's sentences."""
    config: ReportConfig = work.config
    source = Source(work.store, work.versions, work.policy)
    page = _build(source, config)
    told = {
        "bytes": len(page.encode()),
        "file": FILE,
        "verdict": [line.text for line in verdict.lines(source)],
    }
    data = json.dumps({name: version.ref for name, version in work.versions.items()})
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / FILE).write_text(page, encoding="utf-8")
        row = checkpoint_row(
            work.store, "report", work.identity, "report", "html", Path(folder), json.dumps(told), data
        )
    return Output({"report": [row]})


def build_report(
    store: Store, versions: Mapping[str, TableVersion], policy: Policy, config: ReportConfig | None = None
) -> str:
    """The page on these versions (table name to version, in the flow's order). What is not there is left out."""
    return _build(Source(store, versions, policy), config or ReportConfig())


def report_file(store: Store, version: TableVersion) -> Path:
    """The verified local HTML file of a version of the table `report`."""
    row = find_checkpoint(store, version, "report")
    return Path(store.get_folder(row["uri"], row["sha256"])) / FILE


def _build(source: Source, config: ReportConfig) -> str:
    sections = {
        "head": flow.head(source, config.recipe),
        "verdict": verdict.summary(source),
        "coverage": coverage.coverage(source),
        "flow": flow.steps(source),
        "diversity": diversity.diversity(source),
        "votes": labels.votes(source),
        "leaves": labels.leaves(source),
        "controversial": labels.controversial(source),
        "distilled": labels.distilled(source),
        "tokens": labels.token_labels(source),
        "scores": scores.evaluation(source),
        "comparisons": verdict.comparisons(source),
        "samples": samples.samples(source, config.samples),
        "lookup": lookup.index(source, config.lineage_rows),
    }
    return render_page(sections)

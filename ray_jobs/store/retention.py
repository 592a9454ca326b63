"""Which versions may go: never one that a tag, a checkpoint or a kept version refers to."""

from collections import deque
from typing import TYPE_CHECKING

from ray_jobs.store import versions
from ray_jobs.store.provenance import TableVersion, storage_errors
from synth.errors import BadInput

if TYPE_CHECKING:
    from ray_jobs.store.store import Store

_CHECKPOINT = {"kind", "uri", "sha256"}  # columns of tables whose versions all stay: a model outlives its run


def cleanup(store: "Store", keep: int, dry_run: bool = False) -> list[str]:
    """Deletes what `removable` names and returns it. Data files that a kept version lists stay.

    Fragments of finished units that no version lists are left alone for a week by Lance; later ones are
    written again by the step that misses them.
    """
    going = removable(store, keep)
    for name in sorted({version.name for version in going}) if not dry_run else []:
        numbers = [version.version for version in going if version.name == name]
        with storage_errors(f"clean up table {name}"):
            dataset = versions.open_table(store.files, name)
            dataset.cleanup_old_versions(versions=numbers, error_if_tagged_old_versions=True)
    return [version.ref for version in going]


def removable(store: "Store", keep: int) -> list[TableVersion]:
    """Versions older than the newest `keep` of their table that nothing kept refers to."""
    if keep < 1:
        raise BadInput(f"cleanup keeps at least 1 version of each table, not {keep}")
    by_table = {name: store.versions(name) for name in store.tables()}
    models = {name for name in by_table if set(store.schema(name).names) >= _CHECKPOINT}
    everything = {version.ref: version for listed in by_table.values() for version in listed}
    kept: set[str] = set()
    queue = deque(
        version
        for name, all_versions in by_table.items()
        for i, version in enumerate(reversed(all_versions))
        if i < keep or version.tags or name in models
    )
    while queue:
        version = queue.popleft()
        if version.ref not in kept:
            kept.add(version.ref)
            queue.extend(everything[r] for r in version.provenance.inputs.values() if r in everything)
    return [version for ref, version in everything.items() if ref not in kept]

"""The only door to storage: tables with versions, small records, folders of weights, one lock per root.

    store = Store("runs/local")
    schema = table_schema([pa.field("text", pa.string())])
    parts = store.write_fragments("prompts", table, schema)            # any process, invisible
    version = store.commit("prompts", schema, parts, Provenance(...))  # one commit: rows and provenance
    store.read("prompts@v1", columns=["id", "text"])

Under the root: `tables/NAME.lance`, `artifacts/NAME-HASH` (write-once folders), `lock`, and whatever records
`put_json` is given. Importing this package loads neither lance nor ray.
"""

from ray_jobs.store.diff import Diff
from ray_jobs.store.digest import row_digests
from ray_jobs.store.exclude import Excluded, without
from ray_jobs.store.lineage import LineageRow
from ray_jobs.store.provenance import Busy, Provenance, StoreError, TableVersion
from ray_jobs.store.pull import verify_pull
from ray_jobs.store.store import Store
from ray_jobs.store.tables import table_schema

__all__ = [
    "Busy",
    "Diff",
    "Excluded",
    "LineageRow",
    "Provenance",
    "Store",
    "StoreError",
    "TableVersion",
    "row_digests",
    "table_schema",
    "verify_pull",
    "without",
]

"""The peers, each run in a virtual environment of its own: `python dedup_peers.py PEER ROWS.json
LABELS.json`.

Every peer gets raw rows and gives one cluster label a row. Only the standard library and the peer are
imported. The clock runs from raw text to labels or kept rows; reading the rows and importing the library are
outside it. Parameters as ours: word 3-grams, 128 permutations, threshold 0.7; bands as the peer chooses them.
"""

import json
import re
import resource
import sys
import tempfile
import time
from pathlib import Path

NGRAM, THRESHOLD, PERMUTATIONS = 3, 0.7, 128
AT_START = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # some systems hand the parent's on


def shingles(text: str) -> set[str]:
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[i : i + NGRAM]) for i in range(max(1, len(words) - NGRAM + 1))}


class Groups:
    """Union-find."""

    def __init__(self, size: int) -> None:
        self.up = list(range(size))

    def find(self, node: int) -> int:
        while self.up[node] != node:
            self.up[node] = node = self.up[self.up[node]]
        return node

    def join(self, one: int, two: int) -> None:
        one, two = self.find(one), self.find(two)
        self.up[max(one, two)] = min(one, two)

    def labels(self) -> list[int]:
        return [self.find(node) for node in range(len(self.up))]


def datasketch(rows: list[str], verify: bool) -> tuple[float, list[int]]:
    """MinHash.bulk, MinHashLSH with its own bands, optionally exact Jaccard of every candidate."""
    import xxhash
    from datasketch import MinHash, MinHashLSH

    start = time.perf_counter()
    sets = [shingles(row) for row in rows]
    encoded = ([s.encode() for s in one] for one in sets)
    signed = MinHash.bulk(encoded, num_perm=PERMUTATIONS, hashfunc=xxhash.xxh32_intdigest)
    index = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS)
    groups = Groups(len(rows))
    for row, one in enumerate(signed):
        for other in index.query(one):
            if not verify or len(sets[row] & sets[other]) / len(sets[row] | sets[other]) >= THRESHOLD:
                groups.join(row, other)
        index.insert(row, one, check_duplication=False)
    return time.perf_counter() - start, groups.labels()


def rensa(rows: list[str]) -> tuple[float, list[int]]:
    """Its own deduplicator: candidates by LSH, checked by the similarity of signatures. Labels are read off
    afterwards."""
    from rensa import RMinHash, RMinHashDeduplicator

    start = time.perf_counter()
    signed = RMinHash.from_token_sets((list(shingles(row)) for row in rows), num_perm=PERMUTATIONS, seed=42)
    index = RMinHashDeduplicator(threshold=THRESHOLD, num_perm=PERMUTATIONS, use_lsh=True, seed=42)
    kept = index.add_pairs((str(row), one) for row, one in enumerate(signed))
    seconds = time.perf_counter() - start
    groups = Groups(len(rows))
    gone = [row for row, stays in enumerate(kept) if not stays]
    for row, others in zip(gone, index.get_duplicate_sets([signed[row] for row in gone]), strict=True):
        for other in others:
            if signed[row].jaccard(signed[int(other)]) >= THRESHOLD:
                groups.join(row, int(other))
    return seconds, groups.labels()


def daft(rows: list[str]) -> tuple[float, list[int]]:
    """Its documented recipe: the minhash expression, bands as columns, groups by band; no verification. 14 x
    9 bands."""
    import daft as df
    from daft import col

    start = time.perf_counter()
    table = df.from_pydict(
        {"row": list(range(len(rows))), "text": [" ".join(re.findall(r"\w+", r.lower())) for r in rows]}
    )
    signed = (
        table.with_column(
            "sig", col("text").minhash(num_hashes=126, ngram_size=NGRAM, seed=42, hash_function="xxhash")
        )
        .select("row", "sig")
        .to_arrow()
    )
    groups = Groups(len(rows))
    matrix = signed["sig"].combine_chunks().values.to_numpy().reshape(len(rows), 126)
    for band in range(14):
        keys = [part.tobytes() for part in matrix[:, band * 9 : band * 9 + 9].copy()]
        met = df.from_pydict({"row": list(range(len(rows))), "key": keys})
        met = met.groupby("key").agg(col("row").list_agg().alias("rows"))
        for bucket in met.to_pydict()["rows"]:
            for other in bucket[1:]:
                groups.join(bucket[0], other)
    return time.perf_counter() - start, groups.labels()


def datatrove(rows: list[str]) -> tuple[float, list[int]]:
    """Its four-stage pipeline with 14 x 9 bands on two local workers; no verification."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    config = MinhashConfig(n_grams=NGRAM, num_buckets=14, hashes_per_bucket=9)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "in").mkdir()
        for part in range(2):
            lines = (json.dumps({"id": str(i), "text": rows[i]}) for i in range(part, len(rows), 2))
            (root / "in" / f"{part}.jsonl").write_text("\n".join(lines))
        start = time.perf_counter()
        source = JsonlReader(str(root / "in"))
        gone = JsonlWriter(str(root / "removed"), compression=None)
        stages = [
            ([source, MinhashDedupSignature(str(root / "sig"), config=config)], 2),
            ([MinhashDedupBuckets(str(root / "sig"), str(root / "buckets"), config=config)], 14),
            (
                [
                    MinhashDedupCluster(
                        str(root / "buckets"), str(root / "gone"), config=config, save_cluster_id=True
                    )
                ],
                1,
            ),
            (
                [
                    source,
                    MinhashDedupFilter(str(root / "gone"), gone, load_cluster_ids=True),
                    JsonlWriter(str(root / "out"), compression=None),
                ],
                2,
            ),
        ]
        for number, (steps, tasks) in enumerate(stages):
            LocalPipelineExecutor(steps, tasks=tasks, workers=2, logging_dir=str(root / f"log{number}")).run()
        seconds = time.perf_counter() - start
        files = [*(root / "out").glob("*.jsonl"), *(root / "removed").glob("*.jsonl")]
        kept = [json.loads(line) for file in files for line in file.open()]
    cluster = {int(row["id"]): row.get("metadata", {}).get("minhash_cluster_id", -1) for row in kept}
    return seconds, [i if cluster[i] < 0 else len(rows) + cluster[i] for i in range(len(rows))]


def text_dedup(rows: list[str]) -> tuple[float, list[int]]:
    """`python -m text_dedup.minhash` with two processes; no verification. Timed without its interpreter's
    start."""
    import pickle
    import subprocess

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "rows.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
        command = [
            sys.executable, "-m", "text_dedup.minhash", "--path", "json", "--data_files", str(root / "rows.jsonl"),
            "--split", "train", "--cache_dir", str(root / "cache"), "--output", str(root / "out"), "--column", "text",
            "--batch_size", "10000", "--ngram", str(NGRAM), "--num_perm", str(PERMUTATIONS), "--threshold",
            str(THRESHOLD), "--num_proc", "2", "--min_length", "0", "--debug",
        ]  # fmt: skip
        bare = time.perf_counter()
        subprocess.run([*command[:3], "--help"], check=True, capture_output=True)
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds = time.perf_counter() - start - (start - bare)
        saved = pickle.loads((root / "out" / "uf.pkl").read_bytes())
    up = saved.parent if hasattr(saved, "parent") else saved
    groups = Groups(len(rows))
    for row in range(len(rows)):
        groups.join(row, int(up.get(row, row)))
    return seconds, groups.labels()


def data_juicer(rows: list[str]) -> tuple[float, list[int]]:
    """Its MinHash operator, hashes in two processes; no verification. Groups are read off its own union-find."""
    import datasets
    from data_juicer.ops.deduplicator import document_minhash_deduplicator as module

    found = []

    class Kept(module.UnionFind):
        def __init__(self, *arguments, **named) -> None:
            super().__init__(*arguments, **named)
            found.append(self)

    module.UnionFind = Kept
    table = datasets.Dataset.from_dict({"text": rows})
    start = time.perf_counter()
    operator = module.DocumentMinhashDeduplicator(
        tokenization="space", window_size=NGRAM, num_permutations=PERMUTATIONS, jaccard_threshold=THRESHOLD
    )
    operator.process(table.map(operator.compute_hash, num_proc=2))
    seconds = time.perf_counter() - start
    return seconds, [int(found[0].find(row)) for row in range(len(rows))]


PEERS = {
    "datasketch": lambda rows: datasketch(rows, verify=False),
    "datasketch+verify": lambda rows: datasketch(rows, verify=True),
    "rensa": rensa,
    "daft": daft,
    "datatrove": datatrove,
    "text-dedup": text_dedup,
    "data-juicer": data_juicer,
}
NEEDS = {
    "datasketch": ["datasketch==2.0.0", "xxhash"],
    "rensa": ["rensa==0.5.0"],
    "daft": ["daft==0.7.26", "numpy", "pyarrow"],
    "datatrove": ["datatrove[io,processing]==0.10.1", "xxhash", "spacy"],
    "text-dedup": ["text-dedup==0.4.0"],
    "data-juicer": ["py-data-juicer", "aiohttp"],  # which it imports and does not ask for
}


def peak() -> float:
    """The greatest resident memory of this process or a child, in MB (a parent's does not count)."""
    status = Path("/proc/self/status").read_text()
    own = int(re.search(r"VmHWM:\s+(\d+)", status).group(1))
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return max(own, children if children > AT_START else 0) / 1024


def main() -> None:
    peer, source, target = sys.argv[1:4]
    seconds, labels = PEERS[peer](json.loads(Path(source).read_text()))
    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    Path(target).write_text(
        json.dumps({"seconds": seconds, "megabytes": max(usage) / 1024, "labels": labels})
    )


if __name__ == "__main__":
    main()

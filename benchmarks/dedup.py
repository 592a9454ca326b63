"""Near-duplicate removal: ours against the peers, raw text in to kept rows out.

    python benchmarks/dedup.py [--json FILE] [--peers] [--rows 20000 200000] [--million] [--long]

One process per measurement, so that memory is its own; corpora and truth in dedup_corpus.py, the peers in
dedup_peers.py. With --peers each peer is installed into a throwaway virtual environment first. Same rows,
word 3-grams, 128 permutations and threshold for all; every system chooses its own bands.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import dedup_corpus as corpus
import dedup_peers as peers
import numpy as np
import pyarrow as pa

from synth.dedup import DedupConfig, deduplicate
from synth.minhash import choose_bands

VERIFYING = ("datasketch+verify", "rensa")  # rensa by signatures alone, but it checks


def ours(source: Path, target: Path) -> None:
    """Our measurement, in a process of its own."""
    rows = json.loads(source.read_text())
    table = pa.table({"id": [f"{i:09d}" for i in range(len(rows))], "text": rows})
    size = len(rows)
    del rows
    deduplicate(table.slice(0, 100), DedupConfig(ngram=corpus.NGRAM))  # tables are built once a process
    before = peers.peak()
    start, cpu = time.perf_counter(), time.process_time()
    result = deduplicate(table, DedupConfig(corpus.THRESHOLD, corpus.PERMUTATIONS, corpus.NGRAM))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    labels = np.arange(size)
    gone = result.duplicates.to_pydict()
    labels[np.array(gone["id"], dtype=int)] = np.array(gone["kept_id"], dtype=int)
    record = {"seconds": seconds, "cpu_seconds": cpu, "megabytes": peers.peak(), "input_megabytes": before}
    target.write_text(json.dumps(record | {"counts": result.counts, "labels": labels.tolist()}))


def environment(folder: Path, name: str) -> Path | None:
    """A throwaway environment with a peer in it: its Python, or None where it does not install."""
    home = folder / name
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
        done = subprocess.run([python, "-m", "pip", "install", "-q", *peers.NEEDS[name]], capture_output=True)
        if done.returncode:
            print(f"{name}: does not install here: {done.stderr.decode()[-200:]}", file=sys.stderr)
            return None
    return python


def measure(command: list, rows: Path, limit: float) -> dict | None:
    """Run one system over a file of rows; None if it fails or takes too long."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out.json"
        try:
            done = subprocess.run([*command, rows, target], capture_output=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return None
        if done.returncode:
            print(done.stderr.decode()[-500:], file=sys.stderr)
            return None
        return json.loads(target.read_text())


class Bench:
    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        self.measurements: list[dict] = []
        self.systems: dict[str, list] = {"ours": [sys.executable, __file__, "--ours"]}
        for peer in peers.PEERS if options.peers else ():
            python = environment(options.venvs or folder, peer.split("+")[0])
            if python is not None:
                self.systems[peer] = [python, Path(__file__).with_name("dedup_peers.py"), peer]

    def run(self, name: str, rows: list[str], judge: bool, only_ours: bool = False) -> None:
        """Measure the systems on one corpus."""
        file = self.folder / f"{name}.json"
        file.write_text(json.dumps(rows))
        true = corpus.truth(rows) if judge else None
        for system, command in self.systems.items():
            if only_ours and system != "ours":
                continue
            found = measure(command, file, self.options.limit)
            record = {"corpus": name, "system": system, "rows": len(rows), "done": found is not None}
            if found is not None:
                labels = np.array(found.pop("labels"))
                record |= found | {"rows_per_second": len(rows) / found["seconds"]}
                record |= corpus.quality(labels, *true) if true is not None else {}
            if system == "ours" and true is not None:
                bands = choose_bands(corpus.THRESHOLD, corpus.PERMUTATIONS)
                record["predicted_recall"] = float(np.mean([bands.recall(s) for s in true[2]]))
            self.measurements.append(record)
            show(record)

    def best(self, corpus_name: str, system: str, key: str) -> float | None:
        found = [
            m[key]
            for m in self.measurements
            if (m["corpus"], m["system"]) == (corpus_name, system) and key in m
        ]
        return found[0] if found else None


def show(record: dict) -> None:
    if not record["done"]:
        print(f"{record['corpus']:14s} {record['system']:18s} failed or out of time", flush=True)
        return
    judged = "".join(
        f" {k} {record[k]:.4f}" for k in ("precision", "recall", "rand", "predicted_recall") if k in record
    )
    speed = (
        f"{record['rows_per_second']:9.0f} rows/s {record['seconds']:8.2f} s {record['megabytes']:7.0f} MB"
    )
    print(f"{record['corpus']:14s} {record['system']:18s} {speed}{judged}", flush=True)


def claims(bench: Bench) -> list[dict]:
    """The goals, and whether they hold in this run."""
    found: list[dict] = []

    def claim(name: str, value: float | None, unit: str, goal: float, at_least: bool) -> None:
        if value is not None:
            holds = value >= goal if at_least else value <= goal
            found.append({"name": name, "value": value, "unit": unit, "goal": goal, "holds": bool(holds)})

    names = list(dict.fromkeys(m["corpus"] for m in bench.measurements))
    for name in names:
        speed = bench.best(name, "ours", "rows_per_second")
        rivals = [r for peer in VERIFYING if (r := bench.best(name, peer, "rows_per_second"))]
        others = [r for peer in peers.PEERS if (r := bench.best(name, peer, "rows_per_second"))]
        claim(
            f"{name}: speed over the fastest peer that verifies",
            (speed and rivals and speed / max(rivals)) or None,
            "x",
            2,
            True,
        )
        claim(
            f"{name}: speed over the fastest peer of all",
            (speed and others and speed / max(others)) or None,
            "x",
            1,
            True,
        )
        claim(f"{name}: precision", bench.best(name, "ours", "precision"), "", 0.999, True)
        predicted = bench.best(name, "ours", "predicted_recall")
        if predicted is not None:
            lacking = predicted - (bench.best(name, "ours", "recall") or 0.0)
            claim(f"{name}: recall below the S-curve's prediction", lacking, "", 0.01, False)
    smallest, million = (
        bench.best("short-20000", "ours", "seconds"),
        bench.best("short-1000000", "ours", "seconds"),
    )
    if million and smallest:
        claim("1M rows", million, "s", 360, False)
        claim("1M rows: memory", bench.best("short-1000000", "ours", "megabytes"), "MB", 6000, False)
        claim("time per row, 1M over 20k", million / 1e6 / (smallest / 2e4), "x", 1.5, False)
    bad, plain = bench.best("adversarial", "ours", "seconds"), bench.best("ordinary", "ours", "seconds")
    claim("adversarial bucket over ordinary rows", (bad and plain and bad / plain) or None, "x", 2, False)
    return found


def main() -> None:
    if "--ours" in sys.argv:
        return ours(Path(sys.argv[-2]), Path(sys.argv[-1]))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peers", action="store_true", help="install and measure the peers too")
    parser.add_argument("--venvs", type=Path, help="keep the peers' environments in this folder")
    parser.add_argument("--rows", type=int, nargs="*", default=[20_000])
    parser.add_argument("--million", action="store_true", help="1M rows, ours alone")
    parser.add_argument("--long", action="store_true", help="20k rows of 500 words")
    parser.add_argument(
        "--adversarial", type=int, default=10_000, help="rows in the adversarial bucket (0: none)"
    )
    parser.add_argument("--limit", type=float, default=600, help="seconds for one measurement")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options)
        for size in options.rows:
            bench.run(f"short-{size}", corpus.short_rows(size), judge=size <= 20_000)
        if options.long:
            bench.run("long-20000", corpus.short_rows(20_000, least=450, most=550), judge=False)
        if options.adversarial:
            bench.run(
                "ordinary", corpus.short_rows(options.adversarial, least=60, most=60), False, only_ours=True
            )
            bench.run(
                "adversarial", corpus.adversarial_rows(options.adversarial), judge=False, only_ours=True
            )
        if options.million:
            bench.run("short-1000000", corpus.short_rows(1_000_000), judge=False, only_ours=True)
    found = claims(bench)
    for claim in found:
        verdict = "holds" if claim["holds"] else "FAILS"
        print(f"{verdict}  {claim['name']}: {claim['value']:.4g} {claim['unit']} (goal {claim['goal']})")
    where = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
    where |= {"load": os.getloadavg()[0], "platform": platform.platform(), "peers": peers.NEEDS}
    if options.json:
        record = {"environment": where, "measurements": bench.measurements, "claims": found}
        options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()

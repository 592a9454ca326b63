"""Requests per second against a fixed-latency endpoint (200 ms, 64 slots: 320/s at best), and what a kill costs.

    python benchmarks/engine_throughput.py [--json FILE] [--rows 20000] [--peers distilabel curator datatrove]

Every system is a process of its own and asks one mock endpoint, which tells when the first request came and the last
answer went: the rate is between them, start-up is from the start of the process to the first request. Ours is a step
run by the mill: Ray tasks, the model's actor, the request cache, fragments, ledger, commit. The bare loop keeps its
answers in memory. Peers (engine_peers.py) get a virtual environment each, made here unless --environments has them;
a slow one gets fewer rows (--peer-rows), rates are compared.

The kill: the same job on fewer rows, its process group killed when half was answered, then run again. Lost are prompts
without an answer in the end, doubled those with several, paid twice the answers that the endpoint gave beyond one each.
A second run that neither ends nor asks for two minutes is ended as hung.
"""

import argparse
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PEERS = {
    "distilabel": ["distilabel[openai]==1.5.3", "requests"],
    "curator": ["bespokelabs-curator==0.1.31"],
    "datatrove": ["datatrove[processing,io]==0.10.1", "aiosqlite", "aiofiles", "aiohttp", "httpx"],
}
GOAL = 0.95  # of the bare loop's rate
HUNG = 120  # seconds


class Endpoint:
    """The mock endpoint as a process."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.root = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen([sys.executable, str(HERE / "engine_mock.py"), str(port)])
        while True:
            try:
                self.stats()
                return
            except OSError:
                time.sleep(0.1)

    def stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.root}/stats", timeout=30) as answer:
            return json.load(answer)

    def reset(self) -> None:
        urllib.request.urlopen(urllib.request.Request(f"{self.root}/reset", method="POST"), timeout=30)


def ours(url: str, rows: int, folder: Path) -> None:
    """A step of the mill that asks one role about every row."""
    import pyarrow as pa

    from ray_jobs.engine import Model
    from ray_jobs.progress import Progress
    from ray_jobs.step import Run, Step, run_steps
    from ray_jobs.step.definition import Cut
    from ray_jobs.store import Provenance, Store, table_schema
    from synth.policy import load_policy

    schema = table_schema([pa.field("text", pa.string())])
    store = Store(str(folder / "root"))
    if "asked" not in store.tables():
        made = [
            {"id": f"r{at}", "parent_id": "", "group_id": f"r{at}", "text": f"prompt number {at}"}
            for at in range(rows)
        ]
        plain = pa.Table.from_pylist(made, schema=pa.schema([f for f in schema if f.name != "digest"]))
        store.commit(
            "asked", schema, store.write_fragments("asked", plain, schema), Provenance("asked", "asked")
        )
    role = Model("openai", "mock", "instruct", options=(("url", url), ("concurrency", 64)))
    run = Run(
        store,
        load_policy("safety"),
        17,
        {"writer": role},
        progress=Progress(quiet=True),
        units=64,
        unit_cpus=1.0,  # three tasks fill the slots; twelve would only cost the start of twelve processes
    )
    step = Step(
        "answered", answer, Config(), {"answered": schema}, inputs=("asked",), roles=("writer",), cut=Cut()
    )
    run_steps([step], run)
    found = store.read("answered").to_pylist()
    lines = [{"prompt": row["id"], "answer": row["text"]} for row in found]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))


@dataclass(frozen=True)
class Config:
    """Nothing to configure."""

    tokens: int = 8


def answer(work: Any) -> Any:
    """The unit's rows, answered."""
    from ray_jobs.engine import Failure, Sampling
    from ray_jobs.step import Output

    rows = work.rows["asked"].to_pylist()
    prompts = [[{"role": "user", "content": row["text"]}] for row in rows]
    answers = work.engines.get("writer").generate(
        prompts, Sampling(max_tokens=work.config.tokens), [0] * len(rows)
    )
    assert not any(isinstance(one, Failure) for one in answers)
    made = [row | {"text": one.text} for row, one in zip(rows, answers, strict=True)]
    return Output(
        {"answered": [{name: row[name] for name in ("id", "parent_id", "group_id", "text")} for row in made]}
    )


def command(system: str, url: str, rows: int, folder: Path, environments: Path) -> list[str]:
    arguments = [url, str(rows), str(folder)]
    if system == "ours":
        return [sys.executable, __file__, "--worker", *arguments]
    python = sys.executable if system == "bare" else str(environments / system / "bin" / "python")
    return [python, str(HERE / "engine_peers.py"), system, *arguments]


def start(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    paths = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            words, stdout=log, stderr=log, start_new_session=True, env={**os.environ, "PYTHONPATH": paths}
        )


def answers(folder: Path) -> Counter[str]:
    path = folder / "answers.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return Counter(json.loads(line)["prompt"] for line in lines)


def measure(system: str, rows: int, endpoint: Endpoint, environments: Path) -> dict[str, Any]:
    """Start-up and rate of an undisturbed job."""
    endpoint.reset()
    with tempfile.TemporaryDirectory() as name:
        folder, began = Path(name), time.time()
        process = start(command(system, f"{endpoint.root}/v1", rows, folder, environments), folder)
        code = ended(process, endpoint)
        finished, told = time.time(), endpoint.stats()
        if code or len(answers(folder)) != rows:
            return {"system": system, "failed": (folder / "log").read_text(errors="replace")[-800:]}
        return {
            "system": system,
            "rows": rows,
            "startup_s": round(told["first"] - began, 2),
            "rate": round(rows / (told["last"] - told["first"]), 1),
            "whole_s": round(finished - began, 2),
            "calls": told["answers"],
        }


def killed(system: str, rows: int, endpoint: Endpoint, environments: Path) -> dict[str, Any]:
    """The same job, killed when half was answered, and run again."""
    endpoint.reset()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = command(system, f"{endpoint.root}/v1", rows, folder, environments)
        process = start(words, folder)
        while endpoint.stats()["answers"] < rows // 2 and process.poll() is None:
            time.sleep(0.05)
        early = process.poll() is not None
        os.killpg(process.pid, signal.SIGKILL) if not early else None
        process.wait()
        time.sleep(2)
        before = endpoint.stats()["answers"]
        code = ended(start(words, folder), endpoint)
        told, found = endpoint.stats(), answers(folder)
        return {
            "system": system,
            "rows": rows,
            "before_the_kill": before,
            "lost": rows - len(found),
            "doubled": sum(count - 1 for count in found.values()),
            "paid_twice": told["answers"] - told["prompts"],
            "exit": code,
        }


def ended(process: subprocess.Popen[bytes], endpoint: Endpoint) -> int | str:
    """The exit code of a run, or "hung"."""
    asked, since = -1, time.monotonic()
    while (code := process.poll()) is None:
        if (now := endpoint.stats()["asked"]) != asked:
            asked, since = now, time.monotonic()
        elif time.monotonic() - since > HUNG:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return "hung"
        time.sleep(0.5)
    return code


def environment(peer: str, folder: Path) -> None:
    """A peer's own virtual environment."""
    if not (folder / peer / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder / peer)], check=True)
        pip = [str(folder / peer / "bin" / "python"), "-m", "pip", "install", "-q", *PEERS[peer]]
        subprocess.run(pip, check=True)


def claims(rates: list[dict[str, Any]], kills: list[dict[str, Any]]) -> list[dict[str, Any]]:
    by = {row["system"]: row["rate"] for row in rates if "rate" in row}
    found = []
    if {"ours", "bare"} <= by.keys():
        share = round(by["ours"] / by["bare"], 3)
        found.append({"name": "rate against a bare loop", "value": share, "unit": "share", "goal": f">= {GOAL}",
                      "holds": share >= GOAL})  # fmt: skip
    for peer in PEERS.keys() & by.keys():
        times = round(by["ours"] / by[peer], 2)
        found.append({"name": f"rate against {peer}", "value": times, "unit": "times", "goal": "> 1",
                      "holds": times > 1})  # fmt: skip
    for row in kills:
        if row["system"] == "ours":
            good = not row["lost"] and not row["doubled"] and row["paid_twice"] <= 64
            found.append({"name": "kill and resume: lost, doubled, paid twice",
                          "value": [row["lost"], row["doubled"], row["paid_twice"]], "unit": "rows, rows, calls",
                          "goal": "0, 0, <= 64 (those under way)", "holds": good})  # fmt: skip
    return found


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """The row, after it was printed."""
    print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    return row


def measured(options: argparse.Namespace, environments: Path) -> tuple[list[Any], list[Any]]:
    """Rates and kills of all systems, one after the other, on one endpoint."""
    for peer in options.peers:
        environment(peer, environments)
    endpoint = Endpoint()
    try:
        systems = [("bare", options.rows), ("ours", options.rows)]
        systems += [(peer, options.peer_rows) for peer in options.peers]
        rates = [shown(measure(system, rows, endpoint, environments)) for system, rows in systems]
        kills = [
            shown(killed(s, options.kill_rows, endpoint, environments)) for s in ("ours", *options.peers)
        ]
    finally:
        endpoint.process.terminate()
    return rates, kills


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--peer-rows", type=int, default=3_000)
    parser.add_argument("--kill-rows", type=int, default=3_000, help="0: nothing is killed")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--environments", type=Path, help="where the peers' virtual environments are, or go")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.worker:
        url, rows, folder = options.worker
        ours(url, int(rows), Path(folder))
        return
    with tempfile.TemporaryDirectory() as scratch:
        rates, kills = measured(options, options.environments or Path(scratch))
    machine = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
    made = {
        "environment": machine,
        "measurements": {"rates": rates, "kills": kills},
        "claims": [shown(claim) for claim in claims(rates, kills)],
    }
    if options.json:
        Path(options.json).write_text(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()

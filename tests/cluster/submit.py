"""What a user does on a cluster, with Ray's own commands: token, head, submit, stop, submit again, a step alone."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs.store import Store
from tests import apart
from tests.ray_nodes import Nodes, until, with_token

ENDED = ("SUCCEEDED", "STOPPED", "FAILED")
LIMIT_S = 400


@dataclass
class Cluster:
    """A cluster with a token, and the jobs that are submitted to it from this checkout."""

    nodes: Nodes
    root: Path
    show: bool = False

    def job(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`ray job …`, as typed."""
        told = self.nodes.ray("job", *arguments, "--address", self.nodes.dashboard_url, check=False)
        if self.show:
            print(f"$ ray job {shlex.join(arguments)}\n{told.stdout}", flush=True)
        return told

    def submit(self, name: str, module: str, *flags: str, metadata: Mapping[str, str] | None = None) -> None:
        asked = ["--submission-id", name, "--no-wait", "--working-dir", str(apart.ROOT)]
        asked += ["--metadata-json", json.dumps(metadata)] if metadata else []
        command = ["python", "-m", f"ray_jobs.{module}", "--recipe", "tiny", "--root", str(self.root), *flags]
        environment = self.nodes.environment
        told = subprocess.run(
            ["ray", "job", "submit", "--address", self.nodes.dashboard_url, *asked, "--", *command],
            env=environment,
            cwd=apart.ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert told.returncode == 0, told.stdout + told.stderr

    def info(self, name: str) -> dict[str, Any]:
        """What the job server says of a job."""
        token = Path(self.nodes.environment["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
        asked = urllib.request.Request(
            f"{self.nodes.dashboard_url}/api/jobs/{name}", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(asked, timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def ended(self, name: str) -> bool:
        return self.info(name)["status"] in ENDED

    def units(self, step: str) -> int:
        return len(Store(str(self.root)).list_json(f"ledger/{step}"))

    def finish(self, name: str) -> dict[str, Any]:
        """Wait for a job's end; status, metadata, log and the tables there are then."""
        until(lambda: self.ended(name), LIMIT_S, f"the end of job {name}", every=0.5)
        info = self.info(name)
        return {
            "status": info["status"],
            "metadata": info["metadata"],
            "log": self.job("logs", name).stdout,
            "tables": Store(str(self.root)).tables(),
        }


def session(folder: Path) -> dict[str, Any]:
    """The whole session; what was seen at each point."""
    with Nodes(with_token(apart.environment(), folder), head_cpus=4, dashboard=True) as nodes:
        cluster = Cluster(nodes, folder / "mill")
        bare = {k: v for k, v in nodes.environment.items() if not k.startswith("RAY_AUTH")}
        refused = subprocess.run(
            ["ray", "job", "list", "--address", nodes.dashboard_url],
            env={**bare, "HOME": str(folder / "nobody")},
            capture_output=True,
            text=True,
            check=False,
        )
        cluster.submit("mill-1", "pipeline", "--until", "prompts", metadata={"team": "red"})
        until(
            lambda: cluster.units("prompts") or cluster.ended("mill-1"), LIMIT_S, "a finished unit", every=0.2
        )
        cluster.job("stop", "mill-1")
        stopped = cluster.finish("mill-1") | {"finished_units": cluster.units("prompts")}
        cluster.submit("mill-2", "pipeline", "--until", "prompts")
        resumed = cluster.finish("mill-2")
        cluster.submit("mill-3", "dedup")
        alone = cluster.finish("mill-3")
        packages = [
            path for path in Path(nodes.folder).rglob("working_dir_files/_ray_pkg_*") if path.is_dir()
        ]
        size = max(sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) for path in packages)
    return {
        "without_token": refused.returncode,
        "refusal": refused.stderr[-500:],
        "package_bytes": size,
        "stopped": stopped,
        "resumed": resumed,
        "alone": alone,
    }


if __name__ == "__main__":
    print(json.dumps(session(Path(sys.argv[1]))))

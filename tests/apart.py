"""A machine of one's own for a test that starts Ray clusters: namespaces for processes, network and mounts.

In them the default ports are free, nobody else's Ray is found or joined, a small file system can be mounted, and every
process that was started ends with the one that was run. Root may have them, and so may an ordinary user where the
kernel allows user namespaces; where neither holds, `prefix()` is None and callers keep apart by ports and folders.

    subprocess.run([*apart.prefix(), sys.executable, "-m", "tests.faults.matrix"])
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMESPACES = ("--net", "--mount", "--pid", "--fork", "--mount-proc")
MARK = "GUARDMILL_APART"  # set inside
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


@lru_cache
def prefix() -> tuple[str, ...] | None:
    """What to put in front of a command so that it runs apart; () when this already does; None: not permitted."""
    if os.environ.get(MARK):
        return ()
    inside = (sys.executable, str(Path(__file__).resolve()))
    for user in ((), ("--user", "--map-root-user")):
        command = ("unshare", *user, *NAMESPACES, *inside)
        try:
            if subprocess.run([*command, "true"], capture_output=True, timeout=60).returncode == 0:
                return command
        except FileNotFoundError:
            return None
    return None


def environment() -> dict[str, str]:
    """The environment of such a command: this checkout is importable, in Ray's workers too."""
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))).rstrip(os.pathsep)
    bin_first = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    dropped = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "PYTHONPATH": path, "PATH": bin_first}


def main(command: Sequence[str]) -> int:
    """Inside: bring the loopback up, hide the machine's /tmp/ray, run the command and reap what it orphans.

    The host's own name has to mean the loopback, the one network there is: nodes find each other by it.
    """
    loopback_up()
    os.makedirs("/tmp/ray", exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/tmp/ray"], check=True)
    hosts = Path("/tmp/ray/hosts")
    hosts.write_text(f"127.0.0.1 localhost {socket.gethostname()}\n")
    subprocess.run(["mount", "--bind", str(hosts), "/etc/hosts"], check=True)
    child = subprocess.Popen(command, env={**os.environ, MARK: "1"})
    while True:
        pid, status = os.wait()
        if pid == child.pid:
            return os.waitstatus_to_exitcode(status)


def loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        asked = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, SIOCGIFFLAGS, asked))[1]
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""One run per root.

Locally an advisory `flock` on ROOT/lock: the kernel frees it when its holder dies, however it dies. On S3
there is no such thing: each run writes a claim under `locks/` and then lists; whoever sees another live claim
withdraws its own. Of two that come at once, at least one lists after both wrote, so two can never both go on
(both may withdraw, hence the tries). A claim is rewritten every 15 s and is dead 60 s after its last beat;
ages are differences of the server's own times, so clocks need not agree.
"""

import fcntl
import json
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_jobs.store.provenance import Busy, StoreError, storage_errors, utc_now
from ray_jobs.store.root import Root

BEAT_SECONDS = 15.0
DEAD_SECONDS = 60.0
_TRIES = 4


@contextmanager
def hold(root: Root) -> Iterator[None]:
    """Holds the root while the block runs. Busy, in one sentence, when another live run holds it."""
    with _hold_local(root) if root.is_local else _hold_claim(root):
        yield


@contextmanager
def _hold_local(root: Root) -> Iterator[None]:
    path = Path(root.path("lock"))
    with storage_errors(f"lock {root.address}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise _busy(root, file.read()) from None
        try:
            file.truncate(0)
            file.write(json.dumps(_holder()))
            file.flush()
            yield
        finally:
            file.truncate(0)
            fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def _hold_claim(root: Root) -> Iterator[None]:
    mine = f"locks/{uuid.uuid4().hex}.json"
    for attempt in range(_TRIES):
        root.put_json(mine, _holder())
        other = _live_claim(root, mine)
        if other is None:
            break
        record = root.read(other)
        root.delete(mine)
        if attempt == _TRIES - 1:
            raise _busy(root, (record or b"").decode())
        time.sleep(random.random())
    done, lost = threading.Event(), threading.Event()
    beat = threading.Thread(target=_keep_alive, args=(root, mine, done, lost), daemon=True)
    beat.start()
    try:
        yield
    finally:
        done.set()
        beat.join()
        root.delete(mine)
    if lost.is_set():
        raise StoreError(
            f"{root.address} could not be reached for {DEAD_SECONDS:.0f} s: another run may be using it"
        )


def _live_claim(root: Root, mine: str) -> str | None:
    """The path of another claim that has beaten lately."""
    found = [info for info in root.listing("locks") if info.is_file and not info.base_name.startswith(".")]
    claims = {root.relative(info.path): info.mtime for info in found}
    now = claims.pop(mine)
    live = [path for path, beat in claims.items() if (now - beat).total_seconds() < DEAD_SECONDS]
    return min(live, default=None)


def _keep_alive(root: Root, mine: str, done: threading.Event, lost: threading.Event) -> None:
    """Beats until `done`; sets `lost` when others had to take the claim for dead."""
    beaten = time.monotonic()
    while not done.wait(BEAT_SECONDS):
        try:
            root.put_json(mine, _holder())
        except StoreError:  # storage may come back: only a gap as long as a death counts
            if time.monotonic() - beaten > DEAD_SECONDS:
                lost.set()
        else:
            beaten = time.monotonic()


def _holder() -> dict[str, object]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": utc_now()}


def _busy(root: Root, record: str) -> Busy:
    try:
        holder = json.loads(record)
        who = f"pid {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (ValueError, KeyError):
        who = "which has just started or is about to end"
    return Busy(f"another run ({who}) is using {root.address}")

"""What was asked before, and answered: a call already paid for is not paid again, within a run and across
runs.

A request is known by the model's fingerprint, the call, the prompt, and the sampling and seed (or the
continuations). Its answer is a line of a segment file under ROOT/requests/<model>/, written before the caller
gets it, so a crash costs the requests under way and no other. Each actor writes segments of its own and reads
those of earlier ones when it opens: the index (key -> file, offset, length) stays in memory, the answers stay
on disk. On a local root a line is appended and flushed; on S3, which cannot append, the lines of a quarter of
a second become one object, and their callers wait for it.

Bounded: above `limit` bytes for all models together the oldest segments go, whole. Failures are never kept. A
line cut short by a crash is left out. Switched off by `request_cache_gb=0` in the recipe, or for one model by
the option ("cache", False).
"""

import asyncio
import json
import os
import re
import uuid
from collections.abc import Sequence
from typing import Any, BinaryIO

import pyarrow.fs as pafs

from ray_jobs.engine.calls import Completion, Model, Scores
from ray_jobs.engine.weights import fingerprint
from ray_jobs.store.provenance import storage_errors
from ray_jobs.store.root import Root
from synth.ids import stable_hash

METHODS = ("generate", "score")
FOLDER = "requests"
SEGMENT_BYTES = 16 << 20
COLLECT_SECONDS = 0.25
MANY = 100  # segments from which on they are merged when the cache is opened
KEY = 20  # hexadecimal digits in front of every line
LINE = re.compile(rb"[0-9a-f]{20}\{.*\}\n\Z")


class RequestCache:
    """The answers of one model under a root (a folder or s3://…). Not for several threads."""

    def __init__(self, root: str, model: Model, limit: int) -> None:
        self.files, self.limit = Root(root), limit
        self.identity = stable_hash(model.engine, fingerprint(model))
        self.folder = f"{FOLDER}/{self.identity}"
        self.index: dict[bytes, tuple[str, int, int]] = {}
        self.open: dict[str, BinaryIO] = {}
        self.segment, self.written = "", 0
        self.waiting: list[bytes] = []
        self.landing: asyncio.Task[None] | None = None
        make_room(self.files, limit)
        names = [self.files.relative(info.path) for info in self.files.listing(self.folder)]
        for name in names if len(names) < MANY else [self._merged(names)]:
            self._read_index(name)

    def key(self, method: str, row: Sequence[Any], extra: Sequence[Any]) -> str:
        """The name of one row's request."""
        return stable_hash(method, list(row), [vars(value) for value in extra])

    async def get(self, key: str) -> Completion | Scores | None:
        """The answer, or None when it is not known (any more)."""
        place = self.index.get(bytes.fromhex(key))
        if place is None:
            return None
        try:
            line = self._line(*place) if self.files.is_local else await asyncio.to_thread(self._line, *place)
            return decoded(json.loads(line[KEY:]))
        except (
            FileNotFoundError,
            ValueError,
            LookupError,
            TypeError,
        ):  # it made room for others, or is damaged
            self.index.pop(bytes.fromhex(key), None)
            return None

    async def put(self, key: str, answer: Completion | Scores) -> None:
        """Keep an answer; returns once it would survive a crash of this process."""
        line = key.encode() + json.dumps(encoded(answer), ensure_ascii=False).encode() + b"\n"
        if self.files.is_local:
            self._append(key, line)
            return
        self.waiting.append(line)
        if self.landing is None:
            self.landing = asyncio.create_task(self._land())
        await asyncio.shield(self.landing)

    def _line(self, name: str, offset: int, length: int) -> bytes:
        with self.files.fs.open_input_file(self.files.path(name)) as file:
            return file.read_at(length, offset)

    def _append(self, key: str, line: bytes) -> None:
        if not self.segment or self.written > SEGMENT_BYTES:
            self._new_segment()
        file = self.open[self.segment]
        file.write(line)
        file.flush()
        self._remember(line, self.segment, self.written)
        self.written += len(line)

    def _new_segment(self) -> None:
        for file in self.open.values():
            file.close()
        make_room(self.files, self.limit)
        self.segment, self.written = f"{self.folder}/{uuid.uuid4().hex}.jsonl", 0
        path = self.files.path(self.segment)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self.open = {self.segment: open(path, "ab")}  # noqa: SIM115 (open as long as it is written to)

    async def _land(self) -> None:
        """Write what came within `COLLECT_SECONDS` as one object."""
        await asyncio.sleep(COLLECT_SECONDS)
        lines, self.waiting, self.landing = self.waiting, [], None
        name, data = f"{self.folder}/{uuid.uuid4().hex}.jsonl", b"".join(lines)
        await asyncio.to_thread(self.files.write, name, data)
        offset = 0
        for line in lines:
            self._remember(line, name, offset)
            offset += len(line)

    def _merged(self, names: Sequence[str]) -> str:
        """One segment in the place of many."""
        name, parts = (
            f"{self.folder}/{uuid.uuid4().hex}.jsonl",
            [self.files.read(name) or b"" for name in names],
        )
        self.files.write(name, b"".join(part[: part.rfind(b"\n") + 1] for part in parts))
        for old in names:
            self.files.delete(old)
        return name

    def _read_index(self, name: str) -> None:
        offset = 0
        for line in (self.files.read(name) or b"").splitlines(keepends=True):
            if LINE.match(line):
                self._remember(line, name, offset)
            offset += len(line)

    def _remember(self, line: bytes, name: str, offset: int) -> None:
        self.index[bytes.fromhex(line[:KEY].decode())] = (name, offset, len(line))


def make_room(files: Root, limit: int) -> None:
    """Remove the oldest segments of all models until one more fits within `limit` bytes."""
    segments = [info for info in files.listing(FOLDER, recursive=True) if info.type == pafs.FileType.File]
    total = sum(info.size for info in segments)
    for info in sorted(segments, key=lambda info: info.mtime_ns or 0):
        if total <= limit - min(SEGMENT_BYTES, limit // 8):
            return
        with storage_errors(f"remove {info.path}"):
            files.delete(files.relative(info.path))
        total -= info.size


def encoded(answer: Completion | Scores) -> dict[str, Any]:
    return {name: value for name, value in vars(answer).items() if name != "cached"}


def decoded(kept: dict[str, Any]) -> Completion | Scores:
    """The answer as it was, marked as known before; its tokens were paid for then, and count as none now."""
    if "text" in kept:
        return Completion(**kept, cached=True)
    return Scores(tuple(kept["probabilities"]), kept["approximate"], kept["prompt_tokens"], cached=True)

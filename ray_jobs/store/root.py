"""A root folder, local or on S3, behind one file system: small records, folders, and the addresses Lance
wants.

Local files become visible by rename, S3 objects by a single PUT: a reader sees a whole record or none. The S3
endpoint, region and keys come from the environment (AWS_ENDPOINT_URL, AWS_REGION, ...) or the instance role,
never from a file of ours.
"""

import json
import os
import re
import uuid
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from ray_jobs.store.provenance import StoreError, storage_errors
from synth.errors import BadInput

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@=+-]*")


class Root:
    """The file system under a root: paths are relative, with forward slashes, and cannot leave it."""

    def __init__(self, address: str) -> None:
        """`address` is a local path or s3://bucket/prefix. BadInput when it is a file or another scheme."""
        self.is_local = "://" not in address
        if self.is_local:
            path = Path(address).expanduser().absolute()
            holder = next(p for p in (path, *path.parents) if p.exists())
            if not holder.is_dir():
                raise BadInput(f"the store's root {address} cannot be a folder: {holder} is a file")
            self.address = str(path)
            self._base = str(path)
        elif address.startswith("s3://") and address[5:].strip("/"):
            self.address = address.rstrip("/")
            self._base = self.address[5:]
        else:
            raise BadInput(f"the store's root {address} is neither a local path nor s3://bucket/prefix")

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "fs"}

    @cached_property
    def fs(self) -> pafs.FileSystem:
        """The Arrow file system that `path` belongs to. Delayed opening makes a small S3 file one PUT."""
        if self.is_local:
            return pafs.LocalFileSystem()
        endpoint = _endpoint()
        if not endpoint:
            return pafs.S3FileSystem(region=_region(), allow_delayed_open=True)
        scheme, _, host = endpoint.rpartition("://")
        return pafs.S3FileSystem(
            region=_region(), endpoint_override=host, scheme=scheme or "https", allow_delayed_open=True
        )

    @property
    def storage_options(self) -> dict[str, str] | None:
        """What Lance needs besides the address."""
        if self.is_local:
            return None
        options = {"aws_region": _region() or "us-east-1"}
        if endpoint := _endpoint():
            options |= {"aws_endpoint": endpoint, "allow_http": str(endpoint.startswith("http://")).lower()}
        return options

    def uri(self, relative: str) -> str:
        """The address of `relative` for Lance and for people."""
        return f"{self.address}/{checked(relative)}"

    def path(self, relative: str) -> str:
        """The path of `relative` on `fs`; the root itself for an empty string."""
        return f"{self._base}/{checked(relative)}" if relative else self._base

    def read(self, relative: str) -> bytes | None:
        """The bytes of a file, or None when there is none."""
        path = self.path(relative)
        with storage_errors(f"read {self.uri(relative)}"):
            try:
                with self.fs.open_input_stream(path) as stream:
                    return stream.read()
            except FileNotFoundError:
                return None

    def write(self, relative: str, data: bytes) -> None:
        """Writes a file whole: an earlier one stays readable until the new one takes its place."""
        path = self.path(relative)
        with storage_errors(f"write {self.uri(relative)}"):
            if not self.is_local:
                with self.fs.open_output_stream(path) as out:
                    out.write(data)
                return
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            draft = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.part")
            try:
                with draft.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(target)
            finally:
                draft.unlink(missing_ok=True)

    def delete(self, relative: str) -> None:
        """Removes a file; no error when it is gone already."""
        with storage_errors(f"delete {self.uri(relative)}"):
            if self.info(relative).type == pafs.FileType.File:
                self.fs.delete_file(self.path(relative))

    def info(self, relative: str) -> pafs.FileInfo:
        """Type, size and time of a path."""
        return self.fs.get_file_info(self.path(relative))

    def infos(self, relatives: list[str]) -> list[pafs.FileInfo]:
        """`info` for many paths in one call."""
        return self.fs.get_file_info([self.path(relative) for relative in relatives])

    def listing(self, relative: str, recursive: bool = False) -> list[pafs.FileInfo]:
        """What a folder holds, by path; empty when there is no folder."""
        selector = pafs.FileSelector(self.path(relative), allow_not_found=True, recursive=recursive)
        with storage_errors(f"list {self.address}/{relative}"):
            return sorted(self.fs.get_file_info(selector), key=lambda info: info.path)

    def relative(self, path: str) -> str:
        """The inverse of `path`."""
        return path[len(self._base) + 1 :]

    def put_json(self, relative: str, record: Any) -> None:
        """Writes one record atomically. TypeError when JSON cannot hold it."""
        self.write(relative, json.dumps(record, ensure_ascii=False, sort_keys=True).encode())

    def get_json(self, relative: str) -> Any:
        """The record, or None when there is none. StoreError when the file is not JSON."""
        data = self.read(relative)
        if data is None:
            return None
        try:
            return json.loads(data)
        except ValueError as error:
            raise StoreError(
                f"{self.uri(relative)} is not a whole JSON record: delete it to go on"
            ) from error

    def list_json(self, prefix: str) -> list[str]:
        """The records under a folder, at any depth, as sorted paths that `get_json` takes."""
        found = [self.relative(i.path) for i in self.listing(prefix, recursive=True) if i.is_file]
        return sorted(f for f in found if f.endswith(".json") and not Path(f).name.startswith("."))


def checked(relative: str) -> str:
    """The path itself. BadInput when it is absolute, climbs, or has odd characters."""
    if not all(_PART.fullmatch(part) for part in relative.split("/")):
        raise BadInput(
            f"{relative!r} is no path inside the store: letters, digits and . _ - @ = + between slashes"
        )
    return relative


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def _region() -> str | None:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")

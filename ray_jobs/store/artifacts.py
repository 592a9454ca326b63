"""Write-once folders (weights, heads, reports), named by the hash of their content.

The hash covers each file's relative path and bytes. A folder appears under its final name only when it is
whole: by rename locally, and on S3 by its file list `files.json`, which is written last and read first.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs as pafs

from ray_jobs.store.provenance import StoreError, storage_errors
from ray_jobs.store.root import Root, checked
from synth.errors import BadInput

_LIST = "files.json"
_CHUNK = 1 << 20
_PIECE = (
    64 << 20
)  # of a file to or from S3: each is a request, and Arrow's own 1 MiB makes hundreds for a checkpoint


def working_dir(root: Root, name: str) -> str:
    """A folder on this machine for work in progress: beside the tables, or in the cache folder for S3."""
    path = working_path(root, name)
    with storage_errors(f"make the folder {path}"):
        path.mkdir(parents=True, exist_ok=True)
    return str(path)


def working_path(root: Root, name: str) -> Path:
    """Where that folder is, or would be."""
    base = Path(root.path("work")) if root.is_local else _cache() / "work" / _slug(root.address)
    return base / checked(name)


def put_folder(root: Root, local_dir: str, name: str) -> tuple[str, str]:
    """Copies a folder into the root: (path inside the root, sha256). One stored before is kept.

    What comes from this root's own working folders is finished, so its files are not copied but linked: a checkpoint
    takes its room once.
    """
    source = Path(local_dir)
    if not source.is_dir():
        raise BadInput(f"{local_dir} is not a folder")
    sha256 = folder_sha256(source)
    target = f"artifacts/{checked(name)}-{sha256[:16]}"
    with storage_errors(f"store {local_dir} as {root.address}/{target}"):
        if root.is_local:
            own = source.resolve().is_relative_to(Path(root.path("work")).resolve())
            _put_local(source, Path(root.path(target)), sha256, _link if own else shutil.copy2)
        elif root.get_json(f"{target}/{_LIST}") is None:
            names = _file_names(source)
            for file in names:
                pafs.copy_files(
                    str(source / file),
                    f"{root.path(target)}/files/{file}",
                    source_filesystem=pafs.LocalFileSystem(),
                    destination_filesystem=root.fs,
                    chunk_size=_PIECE,
                )
            root.put_json(f"{target}/{_LIST}", {"files": names, "sha256": sha256})
    return target, sha256


def get_folder(root: Root, uri: str, sha256: str) -> str:
    """A local folder of that content: the stored one, or for S3 a verified copy in the cache."""
    relative = uri.removeprefix(f"{root.address}/")
    with storage_errors(f"read {root.address}/{relative}"):
        path = Path(root.path(relative)) if root.is_local else _fetched(root, relative, sha256)
        if not path.is_dir():
            raise StoreError(f"the stored folder {root.address}/{relative} is gone")
        if folder_sha256(path) != sha256:
            raise StoreError(
                f"the stored folder {root.address}/{relative} is not what was stored: checksums differ"
            )
    return str(path)


def copy_folder(root: Root, target: Root, uri: str, sha256: str) -> None:
    """Stores a root's folder in another root, at the same path. StoreError when its content is not `sha256`."""
    relative = uri.removeprefix(f"{root.address}/")
    name = relative.removeprefix("artifacts/").removesuffix(f"-{sha256[:16]}")
    path, arrived = put_folder(target, get_folder(root, uri, sha256), name)
    if (path, arrived) != (relative, sha256):
        raise StoreError(f"the copy of {uri} under {target.address} is not what was stored: checksums differ")


def folder_sha256(folder: Path) -> str:
    """The sha256 over the sorted relative paths and the bytes of all files."""
    total = hashlib.sha256()
    for name in _file_names(folder):
        digest = hashlib.sha256()
        with (folder / name).open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        total.update(f"{len(name.encode())}:{name}{digest.hexdigest()}".encode())
    return total.hexdigest()


def _put_local(source: Path, target: Path, sha256: str, copy: Callable[[str, str], object]) -> None:
    if target.is_dir() and folder_sha256(target) == sha256:
        return
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        shutil.copytree(source, draft, copy_function=copy)
        if target.is_dir():
            shutil.rmtree(target)  # it does not hold what its name says
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without hard links
        shutil.copy2(source, target)


def _fetched(root: Root, relative: str, sha256: str) -> Path:
    target = _cache() / "artifacts" / sha256
    if target.is_dir():
        return target
    listed = root.get_json(f"{relative}/{_LIST}")
    if listed is None:
        raise StoreError(f"the stored folder {root.address}/{relative} is gone")
    draft = target.with_name(f".{sha256}.{uuid.uuid4().hex[:12]}.part")
    try:
        for file in listed["files"]:
            (draft / file).parent.mkdir(parents=True, exist_ok=True)
            pafs.copy_files(
                f"{root.path(relative)}/files/{file}",
                str(draft / file),
                source_filesystem=root.fs,
                destination_filesystem=pafs.LocalFileSystem(),
                chunk_size=_PIECE,
            )
        if folder_sha256(draft) != sha256:
            raise StoreError(
                f"the stored folder {root.address}/{relative} is not what was stored: checksums differ"
            )
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _file_names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "guardmill"


def _slug(address: str) -> str:
    return hashlib.sha256(address.encode()).hexdigest()[:16]

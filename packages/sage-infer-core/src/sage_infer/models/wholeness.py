"""Verification of files by size and SHA-256. Files are read again only if they may have changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sage_infer.models.files import open_model_file, read_model_text

__all__ = ["changed_files", "describe", "files_match", "flush", "read_json"]

_COMPARED = "compared.json"  # sizes, times and inodes of a folder's files at the last verification
_CHUNK = 1 << 20


def files_match(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether a folder's files have the given ``size`` and ``sha256``, by file name.

    The result is recorded in the folder if it is writable. A recorded file is not read again while its size, times
    (of modification, and of the inode's change, which programs cannot set) and inode stay the same.

    Raises:
        OSError: a file is missing.
    """
    known = read_json(folder / _COMPARED)
    compared: dict[str, list[int]] = {}
    for name, facts in files.items():
        path = folder / name
        if path.stat().st_size != facts["size"]:
            return False
        compared[name] = _place(path)
        if known.get(name) != compared[name] and _sha256(path) != facts["sha256"]:
            return False
    if known != compared:
        _remember(folder, compared)
    return True


def changed_files(
    folder: Path, files: Mapping[str, Mapping[str, Any]], read: Callable[[int], None]
) -> Iterator[tuple[str, str]]:
    """Read every file of a folder again, and yield the name of each that differs, with the reason.

    ``read`` is called with the number of bytes of each part that was read.
    """
    for name, facts in files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != facts["size"]:
                yield name, f"has {size} bytes instead of {facts['size']}"
            elif _sha256(path, read) != facts["sha256"]:
                yield name, "has its recorded size, but other content: its SHA-256 differs"
        except OSError as error:
            yield name, f"cannot be read: {error.strerror or error}"


def _place(path: Path) -> list[int]:
    """Return the metadata that changes when a file's content is changed through the file system."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _remember(entry: Path, compared: Mapping[str, list[int]]) -> None:
    """Record the metadata if the folder is writable; otherwise files are read again the next time."""
    new = entry / f".{_COMPARED}.{uuid.uuid4().hex[:8]}"
    with contextlib.suppress(OSError):
        try:
            new.write_text(json.dumps(compared), encoding="utf-8")
            new.replace(entry / _COMPARED)
        finally:
            new.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one if there is none."""
    try:
        data = json.loads(read_model_text(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def describe(path: Path) -> dict[str, Any]:
    flush(path)
    return {"size": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path, read: Callable[[int], None] = lambda count: None) -> str:
    digest = hashlib.sha256()
    with open_model_file(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            read(len(chunk))
    return digest.hexdigest()


def flush(path: Path) -> None:
    """Flush a file or folder to disk. Does nothing for folders on Windows, which cannot flush them."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

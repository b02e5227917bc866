"""Whether files are those that were written: by size and SHA-256, read again only where they may have changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["describe", "files_match", "flush", "read_json"]

_COMPARED = "compared.json"  # at which times and inodes a folder's files were last compared
_CHUNK = 1 << 20


def files_match(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a folder's files have the ``size`` and ``sha256`` that are stated by name.

    What was read for it is noted in the folder, where it can be written to, and not read the next time unless size,
    times (of modification, and of the inode's change, which nobody sets) or inode are others.

    Raises:
        OSError: a file is not there.
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


def _place(path: Path) -> list[int]:
    """What changes when a file's bytes are changed through the file system."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _remember(entry: Path, compared: Mapping[str, list[int]]) -> None:
    """As far as the folder may be written to; otherwise files are read again the next time."""
    new = entry / f".{_COMPARED}.{uuid.uuid4().hex[:8]}"
    with contextlib.suppress(OSError):
        try:
            new.write_text(json.dumps(compared), encoding="utf-8")
            new.replace(entry / _COMPARED)
        finally:
            new.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def describe(path: Path) -> dict[str, Any]:
    flush(path)
    return {"size": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def flush(path: Path) -> None:
    """To the disk itself. Folders cannot be flushed on every system; there it is left to the file system."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""A cache of models in an engine's own form: one folder an entry, whole or absent, shared by processes.

An entry is written into a folder beside its place, flushed to disk, and renamed, so that no crash leaves half
of one under its name. Its manifest holds every file's size, SHA-256 and modification time. Opening an entry
compares sizes and times, and reads a file again to check its hash only when its time is not the recorded one;
what does not match is rebuilt. A lock file an entry keeps two processes from preparing the same model twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sage_infer.errors import ConfigError
from sage_infer.models.file_lock import file_lock

__all__ = ["PreparedCache", "Progress"]

Progress = Callable[[str, float], None]
"""Called with what is being done and how much of the whole is done, 0 to 1."""

_MANIFEST = "manifest.json"
_CHUNK = 1 << 20


class PreparedCache:
    """Entries below ``root``, which is made when the first one is. Raises :class:`ConfigError` when it cannot
    be written.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def get_or_build(self, label: str, identity: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
        """The folder of the entry for ``identity`` (plain JSON data), made by ``build(empty folder)`` unless
        it is there and whole.

        ``label`` begins the folder's name, for people. Whatever ``build`` raises is passed on, and leaves
        nothing behind.
        """
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        entry = self.root / f"{_file_name(label)}-{key[:20]}"
        if _is_whole(entry, identity):
            return entry
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with file_lock(self.root / f".{entry.name}.lock"):
                # Another process may have made it while this one waited.
                if not _is_whole(entry, identity):
                    self._build(entry, identity, build)
        except OSError as error:
            raise ConfigError(
                f"cannot write the prepared model under {self.root}: {error.strerror or error}; "
                "free some space there, or choose another cache folder"
            ) from error
        return entry

    def remove_outdated(self, is_outdated: Callable[[dict[str, Any]], bool]) -> None:
        """Deletes the entries whose identity ``is_outdated`` says can never be asked for again.

        As far as it may: a cache that is read-only, or whose entry another process deletes, is left as it is.
        """
        for manifest in self.root.glob(f"*/{_MANIFEST}"):
            data = _read_manifest(manifest.parent)
            if data is not None and is_outdated(data["identity"]):
                with contextlib.suppress(OSError):
                    _discard(manifest.parent)

    def _build(self, entry: Path, identity: Mapping[str, Any], build: Callable[[Path], None]) -> None:
        # Under the lock every such folder is what a killed process left.
        for abandoned in self.root.glob(f".{entry.name}.new-*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        new = self.root / f".{entry.name}.new-{uuid.uuid4().hex[:8]}"
        new.mkdir()
        try:
            build(new)
            files = {path.name: _describe(path) for path in sorted(new.iterdir())}
            manifest = new / _MANIFEST
            manifest.write_text(
                json.dumps({"identity": identity, "files": files}, indent=1), encoding="utf-8"
            )
            _flush(manifest)
            _flush(new)
            if entry.exists():
                _discard(entry)
            new.rename(entry)
            _flush(self.root)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _is_whole(entry: Path, identity: Mapping[str, Any]) -> bool:
    manifest = _read_manifest(entry)
    # Through JSON, which has no tuples.
    if manifest is None or manifest["identity"] != json.loads(json.dumps(identity)):
        return False
    try:
        return all(_matches(entry / name, facts) for name, facts in manifest["files"].items())
    except (OSError, KeyError, TypeError, AttributeError):
        return False


def _matches(path: Path, facts: Mapping[str, Any]) -> bool:
    stat = path.stat()
    if stat.st_size != facts["size"]:
        return False
    return bool(stat.st_mtime_ns == facts["mtime_ns"]) or _sha256(path) == facts["sha256"]


def _read_manifest(entry: Path) -> dict[str, Any] | None:
    try:
        data = json.loads((entry / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = (
        isinstance(data, dict)
        and isinstance(data.get("identity"), dict)
        and isinstance(data.get("files"), dict)
    )
    return data if whole else None


def _describe(path: Path) -> dict[str, Any]:
    _flush(path)
    stat = path.stat()
    return {"size": stat.st_size, "sha256": _sha256(path), "mtime_ns": stat.st_mtime_ns}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """To the disk itself. Folders cannot be flushed on every system; there it is left to the file system."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(entry: Path) -> None:
    """Takes an entry away in one step, so that nobody sees half of it, then deletes it."""
    aside = entry.with_name(f".{entry.name}.old-{uuid.uuid4().hex[:8]}")
    entry.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _file_name(label: str) -> str:
    return (
        "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in label).strip(".")[:60]
        or "model"
    )

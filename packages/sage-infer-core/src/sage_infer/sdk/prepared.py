"""On-disk cache of models in an engine's own format: one folder per entry, complete or absent, shared by processes.

An entry is written into a temporary folder next to its destination, flushed to disk, and renamed, so that a crash
leaves no partial entry. Its manifest holds every file's size and SHA-256. A file's hash is verified unless the file is
known to be unchanged: same size, times (of modification, and of the inode's change, which programs cannot set) and
inode as at the last verification. Mismatches are rebuilt. One lock file per entry keeps two processes from preparing
the same model twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sage_infer.errors import ConfigError
from sage_infer.models.file_lock import file_lock
from sage_infer.models.wholeness import describe, files_match, flush, read_json

__all__ = ["PreparedCache", "Progress"]

Progress = Callable[[str, float], None]
"""Called with the current stage and the completed share, 0 to 1."""

_MANIFEST = "manifest.json"


class PreparedCache:
    """A cache in the folder ``root``, which is created with the first entry."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def get_or_build(self, label: str, identity: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
        """Return the folder of the entry for ``identity`` (plain JSON data).

        If no complete entry exists, ``build(empty folder)`` creates it. ``label`` is a readable prefix of the folder's
        name. If ``build`` raises, the exception is passed on and no partial entry is left.

        Raises:
            ConfigError: the cache folder cannot be written.
        """
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        entry = self.root / f"{_file_name(label)}-{key[:20]}"
        if _is_whole(entry, identity):
            return entry
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with file_lock(self.root / f".{entry.name}.lock"):
                # Another process may have created it during the wait.
                if not _is_whole(entry, identity):
                    self._build(entry, identity, build)
        except OSError as error:
            raise ConfigError(
                f"cannot write the prepared model under {self.root}: {error.strerror or error}; "
                "free some space there, or choose another cache folder"
            ) from error
        return entry

    def remove_outdated(self, is_outdated: Callable[[dict[str, Any]], bool]) -> None:
        """Delete entries for whose identity ``is_outdated`` returns true.

        Best effort: errors, such as a read-only cache or an entry that another process deletes, are ignored.
        """
        for manifest in self.root.glob(f"*/{_MANIFEST}"):
            data = _read_manifest(manifest.parent)
            if data is not None and is_outdated(data["identity"]):
                with contextlib.suppress(OSError):
                    _discard(manifest.parent)

    def _build(self, entry: Path, identity: Mapping[str, Any], build: Callable[[Path], None]) -> None:
        # Under the lock every such folder was left by a killed process.
        for abandoned in self.root.glob(f".{entry.name}.new-*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        new = self.root / f".{entry.name}.new-{uuid.uuid4().hex[:8]}"
        new.mkdir()
        try:
            build(new)
            files = {path.name: describe(path) for path in sorted(new.iterdir())}
            manifest = new / _MANIFEST
            manifest.write_text(
                json.dumps({"identity": identity, "files": files}, indent=1), encoding="utf-8"
            )
            flush(manifest)
            flush(new)
            if entry.exists():
                _discard(entry)
            new.rename(entry)
            flush(self.root)
            files_match(entry, files)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _is_whole(entry: Path, identity: Mapping[str, Any]) -> bool:
    manifest = _read_manifest(entry)
    # Through JSON, which has no tuples.
    if manifest is None or manifest["identity"] != json.loads(json.dumps(identity)):
        return False
    try:
        return files_match(entry, manifest["files"])
    except (OSError, KeyError, TypeError, AttributeError):
        return False


def _read_manifest(entry: Path) -> dict[str, Any] | None:
    data = read_json(entry / _MANIFEST)
    whole = isinstance(data.get("identity"), dict) and isinstance(data.get("files"), dict)
    return data if whole else None


def _discard(entry: Path) -> None:
    """Rename an entry atomically, so that no process sees a partial one, then delete it."""
    aside = entry.with_name(f".{entry.name}.old-{uuid.uuid4().hex[:8]}")
    entry.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _file_name(label: str) -> str:
    return (
        "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in label).strip(".")[:60]
        or "model"
    )

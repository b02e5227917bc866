"""Recomputation of recorded hashes: of models from wheels, and of models that engines prepared.

At load a file is read again only where its size, times or inode have changed (``wholeness``). That does not see
bits that flip on a disk. Here every file is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from attrs import frozen

from sage_infer.models.store import MARKER, models_dir
from sage_infer.models.wholeness import changed_files, read_json

__all__ = ["Damage", "Recorded", "recorded_folders", "verify_folders"]

_MANIFEST = "manifest.json"  # of a prepared model, as ``sage_infer.sdk.prepared`` writes it


@frozen(kw_only=True)
class Recorded:
    """A folder whose files have recorded sizes and hashes.

    Attributes:
        folder: where the files are.
        files: ``size`` and ``sha256`` by file name.
        fix: what to do where a file differs.
    """

    folder: Path
    files: Mapping[str, Mapping[str, Any]]
    fix: str

    @property
    def size_bytes(self) -> int:
        return sum(facts["size"] for facts in self.files.values())


@frozen(kw_only=True)
class Damage:
    """A file that is not what was recorded.

    Attributes:
        file: its path.
        reason: how it differs.
        fix: what to do.
    """

    file: Path
    reason: str
    fix: str


def recorded_folders(extra: Iterable[Path] = ()) -> list[Recorded]:
    """Models from wheels and prepared models with recorded hashes, in the folders of this user and in ``extra``.

    ``extra`` are folders that the backend option ``cache_dir`` names.
    """
    import platformdirs

    cache = platformdirs.user_cache_path("sage-infer", appauthor=False)
    prepared = {*cache.glob(f"*/*/{_MANIFEST}")}
    for folder in extra:
        prepared |= {*folder.glob(f"*/{_MANIFEST}"), *folder.glob(f"*/*/{_MANIFEST}")}
    return [*_from_wheels(models_dir()), *_prepared(sorted(prepared))]


def _from_wheels(store: Path) -> Iterator[Recorded]:
    for marker in sorted(store.glob(f"*/{MARKER}")):
        data = read_json(marker)
        files = _described(data)
        if files:
            yield Recorded(
                folder=marker.parent,
                files=files,
                fix=f"delete {marker.parent}, then: sage infer model add {data.get('name')}",
            )


def _prepared(manifests: Iterable[Path]) -> Iterator[Recorded]:
    for manifest in manifests:
        files = _described(read_json(manifest))
        if files and not manifest.parent.name.startswith("."):
            folder = manifest.parent
            yield Recorded(
                folder=folder,
                files=files,
                fix=f"delete {folder}; the model is prepared again when it is loaded",
            )


def _described(data: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The files of a marker or manifest that have a size and a hash."""
    files = data.get("files")
    return {
        name: facts
        for name, facts in (files.items() if isinstance(files, dict) else ())
        if isinstance(facts, dict)
        and isinstance(facts.get("size"), int)
        and isinstance(facts.get("sha256"), str)
    }


def verify_folders(folders: Iterable[Recorded], read: Callable[[Recorded, int], None]) -> list[Damage]:
    """Read every file and return those that differ; ``read(folder, bytes)`` is called as bytes are read."""
    return [
        Damage(file=recorded.folder / name, reason=reason, fix=recorded.fix)
        for recorded in folders
        for name, reason in changed_files(recorded.folder, recorded.files, partial(read, recorded))
    ]

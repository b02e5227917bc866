"""Hugging Face models: the cache first, with or without the library, then the hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sage_infer.errors import ModelNotFound
from sage_infer.models.contents import is_whole
from sage_infer.models.files import read_model_text

__all__ = ["cached", "cached_models", "fetch", "hub_cache", "is_repo_id"]

_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")

# Copies of the weights for other frameworks, which are not used.
_NOT_WANTED = (
    "*.h5", "*.msgpack", "*.ot", "*.tflite", "*.mlmodel", "*.gguf", "*.onnx", "onnx/*", "openvino/*",
    "original/*", "coreml/*",
)  # fmt: skip
_TIMEOUT = 10.0  # seconds for the hub to list the model's files
_BESIDE_SAFETENSORS = ("*.bin", "*.pt", "*.pth")


def is_repo_id(name: str) -> bool:
    """Whether ``name`` has the form ``owner/name``."""
    parts = name.split("/")
    return len(parts) == 2 and all(
        part and part[0] not in ".-" and _ID_CHARACTERS.issuperset(part) for part in parts
    )


def hub_cache() -> Path:
    """The hub library's cache folder, by the same rules as the library."""
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(cache).expanduser()
    home = os.environ.get("HF_HOME")
    if not home:
        home = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "hub"


def cached(repo_id: str) -> Path | None:
    """The snapshot in the cache, if it holds a complete model. Reads the layout itself, without a library."""
    folder = _folder(repo_id)
    try:
        revision = read_model_text(folder / "refs" / "main").strip()
        snapshots = [folder / "snapshots" / revision] if revision else []
    except OSError:
        # Fetched by commit, without a branch: take the newest snapshot.
        snapshots = sorted(
            (folder / "snapshots").glob("*"), key=lambda path: path.stat().st_mtime, reverse=True
        )
    return next((path for path in snapshots if path.is_dir() and is_whole(path)), None)


def cached_models() -> Iterator[tuple[str, Path]]:
    """Id and snapshot of every complete model in the cache."""
    for folder in sorted(hub_cache().glob("models--*--*")):
        owner, _, name = folder.name.removeprefix("models--").partition("--")
        path = cached(f"{owner}/{name}")
        if path is not None:
            yield f"{owner}/{name}", path


def fetch(repo_id: str, *, offline: bool) -> Path:
    """The model's snapshot: from the cache if complete, else downloaded with progress bars.

    Raises:
        ModelNotFound: it is not in the cache and cannot be downloaded; the message gives the cause and the fix.
    """
    found = cached(repo_id)
    # An interrupted download may have omitted small files of a snapshot whose weights are complete.
    interrupted = next((_folder(repo_id) / "blobs").glob("*.incomplete"), None) is not None
    if found is not None and (offline or not interrupted):
        return found
    try:
        return _download(repo_id, offline)
    except ModelNotFound:
        if found is None:
            raise
        return found


def _download(repo_id: str, offline: bool) -> Path:
    looked = f"model {repo_id!r} is not in the Hugging Face cache ({hub_cache()})"
    copy = "copy its folder to this machine and pass the path"
    if offline:
        reason = "and this is an offline run (models.offline or HF_HUB_OFFLINE)"
        raise ModelNotFound(f"{looked}, {reason}; allow the network, or {copy}")
    try:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
    except ImportError:
        install = "pip install 'sage-infer-core[hub]'"
        raise ModelNotFound(f"{looked}; to download it: {install}, or {copy}") from None
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    try:
        info = HfApi(endpoint=endpoint).model_info(repo_id, timeout=_TIMEOUT)
        unwanted = _unwanted(repo_id, [sibling.rfilename for sibling in info.siblings or []])
        path = snapshot_download(repo_id, cache_dir=hub_cache(), endpoint=endpoint, ignore_patterns=unwanted)
    except ModelNotFound:
        raise
    except GatedRepoError:
        reason = f"{endpoint} requires its terms to be accepted: accept them there, and set HF_TOKEN"
    except RepositoryNotFoundError:
        reason = f"{endpoint} has no public model of that name: check it, or set HF_TOKEN if it is private"
    except HfHubHTTPError as error:
        code = error.response.status_code
        reason = f"{endpoint} answered {code}: try again later, set HF_ENDPOINT to a mirror, or {copy}"
    except Exception as error:  # errors of its HTTP client pass through, and the client differs by version
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        reason = f"{endpoint} cannot be reached ({said}): set HF_ENDPOINT to a mirror, or {copy}"
    else:
        return Path(path)
    raise ModelNotFound(f"{looked}, and {reason} (`sage infer model list` shows what is here)")


def _unwanted(repo_id: str, files: list[str]) -> list[str]:
    """Patterns of files that are not needed.

    Raises:
        ModelNotFound: there are only GGUF files, of which the user must choose one.
    """
    ggufs = [file for file in files if file.endswith(".gguf")]
    if ggufs and "config.json" not in files:
        raise ModelNotFound(
            f"model {repo_id!r} offers {len(ggufs)} GGUF file(s): fetch one of them with "
            f"`hf download {repo_id} {ggufs[0]}` and pass the path that it prints"
        )
    has_safetensors = any(file.endswith(".safetensors") and "/" not in file for file in files)
    return [*_NOT_WANTED, *(_BESIDE_SAFETENSORS if has_safetensors else ())]


def _folder(repo_id: str) -> Path:
    return hub_cache() / f"models--{repo_id.replace('/', '--')}"

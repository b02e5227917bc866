"""The rows of ``sage infer model list``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from attrs import asdict, frozen

from sage_infer.errors import SageInferError
from sage_infer.models import hf_hub
from sage_infer.models.contents import inspect_model
from sage_infer.models.store import model_state, size_on_disk
from sage_infer.names import ModelType
from sage_infer.specs import ModelSpec

__all__ = ["ModelRow", "list_models"]


@frozen(kw_only=True)
class ModelRow:
    """A named model.

    Attributes:
        name: name for ``--model``.
        model_type: None if the files do not tell, or are missing.
        state: ready, not-added or broken.
        path: its files; None if they are missing.
        size_bytes: size on disk if ready, else of the download; None if unknown.
        license: SPDX identifier, if known.
        source: its origin for people.
        origin: plug-in, alias or hub-cache.
        summary: one line about it.
        reason: why it is broken or missing.
        fix: the command that makes it ready.
    """

    name: str
    model_type: ModelType | None
    state: Literal["ready", "not-added", "broken"]
    path: Path | None = None
    size_bytes: int | None = None
    license: str = ""
    source: str = ""
    origin: Literal["plug-in", "alias", "hub-cache"]
    summary: str = ""
    reason: str = ""
    fix: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {**asdict(self), "path": None if self.path is None else str(self.path)}


def list_models() -> list[ModelRow]:
    """Names from plug-ins, aliases of the configuration, complete models in the Hugging Face cache. No network.

    Raises:
        ConfigError: the configuration cannot be read.
    """
    from sage_infer.config import load_config
    from sage_infer.discovery import model_specs

    aliases = load_config().config.models.aliases
    rows = [_alias_row(name, target) for name, target in aliases.items()]
    rows += [
        _spec_row(spec) for name, spec in model_specs().items() if name not in aliases
    ]  # aliases take precedence
    rows += [_hub_row(repo_id, path) for repo_id, path in hf_hub.cached_models()]
    return sorted(rows, key=lambda row: (row.origin == "hub-cache", row.name))


def _spec_row(spec: ModelSpec) -> ModelRow:
    state = model_state(spec)
    return ModelRow(
        name=spec.name,
        model_type=spec.model_type,
        state=state.state,
        path=state.path,
        size_bytes=size_on_disk(state.path) if state.path is not None else spec.download_bytes,
        license=spec.license,
        source=spec.source,
        origin="plug-in",
        summary=spec.summary,
        reason=state.reason,
        fix=f"sage infer model add {spec.name}" if state.state != "ready" and spec.from_wheel else "",
    )


def _alias_row(name: str, target: str) -> ModelRow:
    from sage_infer.models.resolve import ModelNotAdded, resolve_model

    source = f"alias of {target}"
    try:
        model = resolve_model(name, offline=True)
    except ModelNotAdded as error:
        fix = f"sage infer model add {error.spec.name}"
        kind = error.spec.model_type
        return ModelRow(
            name=name,
            model_type=kind,
            state="not-added",
            source=source,
            origin="alias",
            reason=str(error),
            fix=fix,
        )
    except SageInferError as error:
        return ModelRow(
            name=name, model_type=None, state="broken", source=source, origin="alias", reason=str(error)
        )
    path = Path(model.model_path)
    size = size_on_disk(path)
    return ModelRow(
        name=name,
        model_type=model.model_type,
        state="ready",
        path=path,
        size_bytes=size,
        source=source,
        origin="alias",
    )


def _hub_row(repo_id: str, path: Path) -> ModelRow:
    files = inspect_model(path)
    return ModelRow(
        name=repo_id,
        model_type=files.model_type,
        state="ready",
        path=files.path,
        size_bytes=size_on_disk(files.path),
        source="Hugging Face cache",
        origin="hub-cache",
    )

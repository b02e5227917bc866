"""Resolution of model names in requests."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from sage_infer.errors import ModelNotFound, UnsupportedFeature
from sage_infer.names import ModelType

from sage_infer_planning.registry import ModelEntry, ModelRegistry

__all__ = ["ModelRouter"]

_WORK: dict[str, str] = {
    "llm": "generate",
    "multimodal": "generate",
    "embedding": "embed",
    "reranker": "rerank",
}


class ModelRouter:
    """Finds models by id or alias, and the default model of a type.

    The default is the first registered model of the type that accepts requests, else the first registered one.
    """

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry

    def route(self, name: str | None, types: Sequence[ModelType]) -> ModelEntry:
        """Return the model for a request that needs one of ``types``.

        Raises:
            ModelNotFound: no model has this name or one of these types; the message suggests similar names.
            UnsupportedFeature: the model has another type.
        """
        entry = None if name is None else self.named(name, types)
        if entry is None:
            entry = self._default(types)
            if entry is None:
                raise ModelNotFound(f"no model here can {_WORK[types[0]]}; {self._known()}")
        elif entry.descriptor.model_type not in types:
            does = _WORK[entry.descriptor.model_type]
            raise UnsupportedFeature(
                f"model {name!r} can {does}, but not {_WORK[types[0]]}; {self._known(types)}"
            )
        return entry

    def named(self, name: str, types: Sequence[ModelType] = ()) -> ModelEntry | None:
        """The model of an id or alias; None for the name of a type, which means its default.

        Raises:
            ModelNotFound: there is none.
        """
        entry = self._registry.find(name)
        if entry is None and name not in types:
            names = [n for e in self._registry.entries() for n in (e.descriptor.model_id, *e.aliases)]
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else self._known()
            raise ModelNotFound(f"no model {name!r}; {hint}")
        return entry

    def _default(self, types: Sequence[ModelType]) -> ModelEntry | None:
        fitting = [e for e in self._registry.entries() if e.descriptor.model_type in types]
        return next((e for e in fitting if e.state == "ready"), fitting[0] if fitting else None)

    def _known(self, types: Sequence[ModelType] = ()) -> str:
        ids = [
            e.descriptor.model_id
            for e in self._registry.entries()
            if not types or e.descriptor.model_type in types
        ]
        return f"models: {', '.join(ids)}" if ids else "there are no models of that kind"

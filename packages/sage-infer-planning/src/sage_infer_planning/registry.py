"""Registered models and their states."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from attrs import define, field
from sage_infer.contracts import ModelStatus
from sage_infer.contracts.hybrid import ModelState
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import ModelDescriptor

__all__ = ["ModelEntry", "ModelRegistry"]

_NEXT: dict[ModelState, tuple[ModelState, ...]] = {
    "registered": ("loading", "failed"),
    "loading": ("ready", "failed", "sleeping"),
    "ready": ("draining", "failed"),
    "draining": ("registered", "sleeping", "failed", "ready"),
    "sleeping": ("loading", "registered", "failed"),
    "failed": ("loading", "registered"),
}
"""Possible next states by state. A failed model can be loaded again."""


@define
class ModelEntry:
    """One model and its state; ``since`` is the start of the state in seconds since the epoch.

    ``stage`` and ``share`` describe the progress of loading, as in ``ModelStatus``.
    """

    descriptor: ModelDescriptor
    aliases: tuple[str, ...] = ()
    state: ModelState = "registered"
    since: float = 0.0
    reason: str = ""
    stage: str = ""
    share: float | None = None

    @property
    def status(self) -> ModelStatus:
        return ModelStatus(
            model_id=self.descriptor.model_id,
            state=self.state,
            since=self.since,
            reason=self.reason,
            stage=self.stage,
            share=self.share,
        )


@define
class ModelRegistry:
    """Models in order of registration."""

    clock: Callable[[], float] = time.time
    _entries: dict[str, ModelEntry] = field(factory=dict)

    def register(self, model: ModelDescriptor, aliases: Iterable[str] = ()) -> ModelEntry:
        """Add a model, or replace a model with the same id that is not loaded.

        Raises:
            InvalidRequest: the model is loaded, or its name or an alias already refers to another model.
        """
        entry = self._entries.get(model.model_id)
        if entry is not None and entry.state not in ("registered", "failed"):
            raise InvalidRequest(f"model {model.model_id!r} is {entry.state}; unload it before changing it")
        for name in (model.model_id, *aliases):
            other = self.find(name)
            if other is not None and other.descriptor.model_id != model.model_id:
                raise InvalidRequest(
                    f"{name!r} already refers to model {other.descriptor.model_id!r}; choose another name"
                )
        entry = ModelEntry(model, tuple(aliases), "registered", self.clock())
        self._entries[model.model_id] = entry
        return entry

    def find(self, name: str) -> ModelEntry | None:
        """Return the entry with this id or alias, or None."""
        if name in self._entries:
            return self._entries[name]
        return next((entry for entry in self._entries.values() if name in entry.aliases), None)

    def entries(self) -> list[ModelEntry]:
        return list(self._entries.values())

    def move(self, entry: ModelEntry, state: ModelState, reason: str = "") -> None:
        """Change the state of a model.

        Raises:
            InvalidRequest: the transition is not allowed.
        """
        if state not in _NEXT[entry.state]:
            raise InvalidRequest(
                f"model {entry.descriptor.model_id!r} is {entry.state} and cannot become {state}; "
                f"possible next states: {', '.join(_NEXT[entry.state])}"
            )
        entry.state, entry.since, entry.reason = state, self.clock(), reason
        entry.stage, entry.share = "", None

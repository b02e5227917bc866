"""A model that answers: its backend, and the calls that are under way on it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from attrs import define
from sage_infer.contracts import EngineStats
from sage_infer.names import ModelType
from sage_infer.schemas import ModelDescriptor

from sage_infer_hybrid.config import ModelConfig
from sage_infer_hybrid.memory_planner import Share
from sage_infer_hybrid.registry import ModelEntry

__all__ = ["GENERATES", "LoadedModel"]

GENERATES: tuple[ModelType, ...] = ("llm", "multimodal")
_LOOK_S = 0.01  # how often a model that drains is looked at; its engine tells nobody when it is idle


@define(eq=False)
class LoadedModel:
    """``measured`` is what loading it added to the process's resident set, None where that says nothing."""

    entry: ModelEntry
    config: ModelConfig
    backend: Any
    share: Share
    measured: int | None = None
    calls: int = 0

    @property
    def descriptor(self) -> ModelDescriptor:
        return self.entry.descriptor

    @property
    def generates(self) -> bool:
        return self.descriptor.model_type in GENERATES

    @property
    def weight(self) -> float:
        return self.config.weight or (3.0 if self.generates else 1.0)

    @property
    def is_busy(self) -> bool:
        stats: EngineStats = self.backend.stats()
        return bool(self.calls or stats.running or stats.waiting)

    @contextmanager
    def call(self) -> Iterator[Any]:
        """The backend, for one call, during which the model cannot be taken away."""
        self.calls += 1
        try:
            yield self.backend
        finally:
            self.calls -= 1

    async def drained(self) -> None:
        """Wait until nothing is under way."""
        while self.is_busy:  # noqa: ASYNC110 - no engine tells when it has become idle
            await asyncio.sleep(_LOOK_S)

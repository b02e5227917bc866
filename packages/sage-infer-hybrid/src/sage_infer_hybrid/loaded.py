"""A loaded model: its backend, memory, and calls in progress."""

from __future__ import annotations

from typing import Any

from attrs import define
from sage_infer.contracts import EngineStats
from sage_infer.names import GENERATING
from sage_infer.schemas import ModelDescriptor
from sage_infer_planning.memory_planner import Share
from sage_infer_planning.registry import ModelEntry

__all__ = ["LoadedModel", "default_weight"]


@define(eq=False)
class LoadedModel:
    """A model with its backend.

    Attributes:
        shares: its memory per device, at least one.
        weight: its relative share of compute and of remaining memory.
        fraction: maximum share of its devices' memory; None without a limit.
        features: features claimed by its backend.
        measured: bytes of main memory added by loading it, None if unknown.
        calls: calls in progress, except started streams.
        may_sleep: whether it drains in order to sleep, so that a request may cancel the draining.
    """

    entry: ModelEntry
    backend: Any
    shares: tuple[Share, ...]
    weight: float
    fraction: float | None = None
    features: frozenset[str] = frozenset()
    measured: int | None = None
    calls: int = 0
    may_sleep: bool = False

    @property
    def descriptor(self) -> ModelDescriptor:
        return self.entry.descriptor

    @property
    def generates(self) -> bool:
        return self.descriptor.model_type in GENERATING

    @property
    def device(self) -> str:
        """The device on which its batch work is scheduled."""
        return self.shares[0].device

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(share.device for share in self.shares)

    @property
    def is_busy(self) -> bool:
        stats: EngineStats = self.backend.stats()
        return bool(self.calls or stats.running or stats.waiting)


def default_weight(model: ModelDescriptor) -> float:
    """Whether a stream of an LLM is live."""
    return 3.0 if model.model_type in GENERATING else 1.0

"""Common methods of all backends: life cycle, health and gauges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, runtime_checkable

from attrs import field, frozen

from sage_infer.schemas import CapabilityDescriptor

__all__ = ["EngineStats", "Health", "Lifecycle"]


@frozen(kw_only=True)
class Health:
    """Whether an instance answers; one that is draining answers what it has accepted. ``reason`` says why
    not.
    """

    status: Literal["ok", "starting", "degraded", "draining", "dead"]
    reason: str = ""

    @property
    def ok(self) -> bool:
        return self.status in ("ok", "degraded", "draining")


@frozen(kw_only=True)
class EngineStats:
    """Gauges of an instance at one moment, and counters since it started.

    Attributes:
        running: sequences in the current batch.
        waiting: accepted requests that have not begun.
        kv_blocks_total: total KV blocks (pages); 0 for an instance without KV.
        kv_blocks_free: KV blocks that a new request could take; those held between prefill and decode are
            not.
        finished: requests that have ended, cancelled ones included.
        prompt_tokens: prompt tokens computed.
        output_tokens: tokens generated.
        prefix_hit_tokens: prompt tokens taken from a prefix cache.
        waiting_prompt_tokens, running_context_tokens, oldest_wait_s, steps, step_s, kv_blocks_cached: as in
            ``InstanceReport``.
        extensions: what only this engine reports.
    """

    running: int
    waiting: int
    kv_blocks_total: int = 0
    kv_blocks_free: int = 0
    finished: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    prefix_hit_tokens: int = 0
    waiting_prompt_tokens: int = 0
    running_context_tokens: int = 0
    oldest_wait_s: float = 0.0
    steps: int = 0
    step_s: float | None = None
    kv_blocks_cached: int = 0
    extensions: Mapping[str, float] = field(factory=dict)


@runtime_checkable
class Lifecycle(Protocol):
    """Life cycle, health and capability of every backend."""

    async def start(self) -> None:
        """Load the model and become ready. Called once.

        Raises:
            ModelFileError, UnsupportedFeature, CapabilityMismatch, OutOfMemory: the model cannot be loaded.
        """
        ...

    async def close(self) -> None:
        """End open requests with ``RequestCancelled`` and free everything.

        Safe to call twice, and without ``start``. Afterwards, as before ``start``, every method that asks for
        work raises ``EngineDead``; ``health`` says ``dead`` with a reason.
        """
        ...

    async def health(self) -> Health: ...
    def stats(self) -> EngineStats: ...
    def get_capability(self) -> CapabilityDescriptor:
        """What this instance can do, read from the loaded engine."""
        ...

"""Common methods of all backends: life cycle, health and gauges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, runtime_checkable

from attrs import field, frozen

from sage_infer.schemas import CapabilityDescriptor

__all__ = ["EngineStats", "Health", "Lifecycle"]


@frozen(kw_only=True)
class Health:
    """Health of an instance.

    Attributes:
        status: ok, starting, degraded, draining (it still completes accepted requests) or dead.
        reason: explains any status other than ``ok``.
    """

    status: Literal["ok", "starting", "degraded", "draining", "dead"]
    reason: str = ""

    @property
    def ok(self) -> bool:
        return self.status in ("ok", "degraded", "draining")


@frozen(kw_only=True)
class EngineStats:
    """Current gauges of an instance, and counters since its start.

    Attributes:
        running: number of sequences in the current batch.
        waiting: number of accepted requests that have not started.
        kv_blocks_total: total number of KV blocks (pages); 0 for an instance without KV.
        kv_blocks_free: KV blocks available to a new request; blocks held between prefill and decode are not.
        finished: number of requests that have ended, including cancelled ones.
        prompt_tokens: number of prompt tokens computed.
        output_tokens: number of tokens generated.
        prefix_hit_tokens: number of prompt tokens found in a prefix cache.
        waiting_prompt_tokens, running_context_tokens, oldest_wait_s, steps, step_s, kv_blocks_cached: as in
            ``InstanceReport``.
        extensions: engine-specific metrics.
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
    kv_blocks_cached: int | None = 0
    extensions: Mapping[str, float] = field(factory=dict)


@runtime_checkable
class Lifecycle(Protocol):
    """Life cycle, health and capability of every backend."""

    async def start(self) -> None:
        """Load the model and get ready for requests. Called once.

        Raises:
            ModelFileError, UnsupportedFeature, CapabilityMismatch, OutOfMemory: the model cannot be loaded.
        """
        ...

    async def close(self) -> None:
        """End open requests with ``RequestCancelled`` and free all resources.

        Safe to call twice, and without ``start``. Before ``start`` and after ``close``, every method that submits
        work raises ``EngineDead``, and ``health`` returns ``dead`` with a reason.
        """
        ...

    async def health(self) -> Health: ...
    def stats(self) -> EngineStats: ...
    def get_capability(self) -> CapabilityDescriptor:
        """Return this instance's capability, as read from the loaded engine."""
        ...

"""The contract of telling who has what of which device's memory. Optional: for dashboards and schedulers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

__all__ = ["DeviceMemory", "MemoryPlanning", "MemoryReporting", "MemoryShare"]


class DeviceMemory(Protocol):
    """A device's memory in bytes: all of it, and what may be given to models."""

    @property
    def name(self) -> str: ...
    @property
    def total(self) -> int: ...
    @property
    def usable(self) -> int: ...


class MemoryShare(Protocol):
    """What the plan gives one model on one device, in bytes."""

    @property
    def model_id(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def weights(self) -> int: ...
    @property
    def kv(self) -> int: ...
    @property
    def activations(self) -> int: ...
    @property
    def overhead(self) -> int: ...


class MemoryPlanning(Protocol):
    """A plan. ``mode`` is ``exclusive``, ``mps`` or ``time_slice``."""

    @property
    def mode(self) -> str: ...
    @property
    def devices(self) -> Sequence[DeviceMemory]: ...
    @property
    def shares(self) -> Sequence[MemoryShare]: ...
    def used(self, device: str) -> int:
        """Bytes of a device that the plan gives away; activations count once where models run in turns."""
        ...


@runtime_checkable
class MemoryReporting(Protocol):
    """What a ``HybridInferenceBackend`` that plans memory has besides."""

    def memory_plan(self) -> MemoryPlanning: ...
    def measured_bytes(self) -> Mapping[str, int | None]:
        """What each loaded model really takes, by its id; None where that could not be measured."""
        ...

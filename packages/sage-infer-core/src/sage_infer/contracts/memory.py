"""Optional contract: memory used per model and device, for dashboards and schedulers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

__all__ = ["DeviceMemory", "MemoryPlanning", "MemoryReporting", "MemoryShare"]


class DeviceMemory(Protocol):
    """A device's memory in bytes: all of it, and the part that models may use."""

    @property
    def name(self) -> str: ...
    @property
    def total(self) -> int: ...
    @property
    def usable(self) -> int: ...


class MemoryShare(Protocol):
    """One model's part of one device in the plan, in bytes."""

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
        """Bytes of a device that the plan allocates; activations count once where models run in turns."""
        ...


@runtime_checkable
class MemoryReporting(Protocol):
    """Additional methods of a ``HybridInferenceBackend`` that plans memory."""

    def memory_plan(self) -> MemoryPlanning: ...
    def measured_bytes(self) -> Mapping[str, int | None]:
        """Measured memory of each loaded model by id; None if it could not be measured."""
        ...

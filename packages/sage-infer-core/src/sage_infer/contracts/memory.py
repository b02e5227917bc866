"""Optional contract: memory used per model and device, for dashboards and schedulers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

__all__ = ["DeviceMemory", "MemoryPlanning", "MemoryReporting", "MemoryShare"]


class DeviceMemory(Protocol):
    """Memory of a device in bytes: the total, and the part that models may use."""

    @property
    def name(self) -> str: ...
    @property
    def total(self) -> int: ...
    @property
    def usable(self) -> int: ...


class MemoryShare(Protocol):
    """Memory that the plan gives one model on one device, in bytes."""

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
    """A memory plan. ``mode`` is ``exclusive``, ``mps`` or ``time_slice``."""

    @property
    def mode(self) -> str: ...
    @property
    def devices(self) -> Sequence[DeviceMemory]: ...
    @property
    def shares(self) -> Sequence[MemoryShare]: ...
    def used(self, device: str) -> int:
        """Return the bytes of a device that the plan allocates.

        If models run in turns, activations count only once.
        """
        ...


@runtime_checkable
class MemoryReporting(Protocol):
    """Additional methods of a ``HybridInferenceBackend`` that plans memory."""

    def memory_plan(self) -> MemoryPlanning: ...
    def measured_bytes(self) -> Mapping[str, int | None]:
        """Return the measured memory in bytes of each loaded model by id; None if it could not be measured."""
        ...

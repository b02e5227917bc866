"""The contract of what reads a machine's hardware."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from sage_infer.schemas import HardwareProfile

__all__ = ["HardwareDetector"]


@runtime_checkable
class HardwareDetector(Protocol):
    """Reads what is there and returns data, nothing else.

    No allocation on a device, no driver state changed, no privileges needed, an answer within a second.
    """

    def detect(self) -> HardwareProfile:
        """What this machine has of the detector's kind; an empty profile where there is nothing.

        Raises:
            SageInferError: the hardware or its tool is there, and its answer could not be understood.
        """
        ...

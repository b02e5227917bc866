"""Contracts of hardware detection and hardware measurement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from sage_infer.schemas import HardwareProfile

__all__ = ["HardwareDetector", "HardwareMeter"]


@runtime_checkable
class HardwareDetector(Protocol):
    """Reads hardware facts and returns them as data.

    A detector allocates no device memory, does not change driver state, needs no privileges, and returns within a
    second.
    """

    def detect(self) -> HardwareProfile:
        """Return this machine's hardware of the detector's kind; the profile is empty if there is none.

        Raises:
            SageInferError: the hardware or its tool is present, but its output could not be parsed.
        """
        ...


@runtime_checkable
class HardwareMeter(Protocol):
    """Additional method of a detector that can measure. It is called only on request (``--measure``)."""

    def measure(self, profile: HardwareProfile, progress: Callable[[str, float], None]) -> HardwareProfile:
        """Return the detector's profile with ``measured_…`` figures and latencies filled in.

        A measurement takes seconds, not minutes. It leaves no files or processes behind, even if it is killed.
        Figures that cannot be measured on this machine stay null; a note gives the reason.
        ``progress(stage, share)`` reports the current stage and its completed share, 0 to 1.
        """
        ...

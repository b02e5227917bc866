"""The contracts of what reads, and of what measures, a machine's hardware."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from sage_infer.schemas import HardwareProfile

__all__ = ["HardwareDetector", "HardwareMeter"]


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


@runtime_checkable
class HardwareMeter(Protocol):
    """What a detector has besides that can measure. It is asked only where a person wants that (``--measure``)."""

    def measure(self, profile: HardwareProfile, progress: Callable[[str, float], None]) -> HardwareProfile:
        """The detector's own profile with ``measured_…`` figures and latencies filled in.

        Takes seconds, not minutes; leaves no file and no process, even when it is killed. What cannot be measured
        here stays null, with a note that says why. ``progress(what, share)`` reports 0 to 1.
        """
        ...

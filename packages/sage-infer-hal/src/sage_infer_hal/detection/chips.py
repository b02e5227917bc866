"""Chip tables: figures that no tool prints, with their sources and confidence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import field, frozen
from sage_infer.names import Precision
from sage_infer.schemas import Figure
from sage_infer.schemas.hardware import Confidence

__all__ = ["Chip", "find_chip"]

_LEAST_SHOWN = 0.91
"""Tools show up to a tenth less than the nominal memory: in-band ECC, firmware and spare rows are subtracted."""


@frozen(kw_only=True)
class Chip:
    """Known facts about one device, counted as the vendor's tool counts devices (a die, if a card has two).

    Attributes:
        names: names that tools print for it, compared without case, spaces, ``_`` and ``-``.
        source: source of the figures.
        confidence: reliability of the figures.
        memory_gib: nominal memory in GiB: a device with more or less is not this chip; None skips the comparison.
        ecc_share: share of the nominal memory that error correction hides from tools.
        other_sizes: whether devices with this name also have other memory sizes; then unknown memory does not match.
        bandwidth_gbs: peak device memory bandwidth in GB/s.
        tflops: dense peak rate in TFLOP/s (TOP/s for integers) by precision.
        precisions: precisions of its arithmetic units; empty if unknown.
        architecture: the vendor's name of the instruction set architecture.
    """

    names: tuple[str, ...]
    source: str
    confidence: Confidence
    memory_gib: int | None = None
    ecc_share: float = 0.0
    other_sizes: bool = False
    bandwidth_gbs: float | None = None
    tflops: Mapping[Precision, float] = field(factory=dict)
    precisions: tuple[Precision, ...] = ()
    architecture: str | None = None

    def fields(self) -> dict[str, Any]:
        """Fields that the chip adds to an ``AcceleratorDescriptor``."""
        return {
            "compute_capability": self.architecture,
            "supported_precisions": self.precisions,
            "peak_tflops": {name: self._figure(value) for name, value in self.tflops.items()},
            "memory_bandwidth_gbs": None if self.bandwidth_gbs is None else self._figure(self.bandwidth_gbs),
        }

    def fits(self, memory_bytes: int | None) -> bool:
        """Whether a device with this amount of memory can be this chip."""
        if self.memory_gib is None:
            return True
        if memory_bytes is None:
            return not self.other_sizes
        shown = memory_bytes / (self.memory_gib * 1024**3 * (1 - self.ecc_share))
        return _LEAST_SHOWN <= shown <= 1.02

    def _figure(self, value: float) -> Figure:
        return Figure(value=value, source=self.source, confidence=self.confidence)


def find_chip(table: Iterable[Chip], name: str, memory_bytes: int | None) -> Chip | None:
    """The chip with exactly this name and a matching memory size; a common prefix is not enough."""
    wanted = _key(name)
    return next((chip for chip in table if wanted in map(_key, chip.names) and chip.fits(memory_bytes)), None)


def _key(name: str) -> str:
    return "".join(character for character in name.lower() if character not in " _-")

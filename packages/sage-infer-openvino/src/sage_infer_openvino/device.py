"""What an OpenVINO device can do."""

from __future__ import annotations

from typing import Any

from sage_infer.errors import CapabilityMismatch, UnsupportedFeature
from sage_infer.names import Precision

__all__ = ["check_precision", "compute_precisions"]

_CAPABILITIES = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}
_NAMES: dict[str, Precision] = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}


def compute_precisions(core: Any, device: str) -> tuple[str, ...]:
    """The float types that ``device`` computes in, in OpenVINO's words, the widest first.

    A CPU without the instructions for one computes in float32 and says nothing when it is asked for that one.
    Raises :class:`UnsupportedFeature` for a device that is not there.
    """
    try:
        has = core.get_property(device, "OPTIMIZATION_CAPABILITIES")
    except RuntimeError as error:
        there = ", ".join(core.available_devices)
        raise UnsupportedFeature(f"OpenVINO has no device {device} here; it has {there}") from error
    return tuple(name for name, capability in _CAPABILITIES.items() if capability in has)


def check_precision(core: Any, device: str, precision: str) -> tuple[Precision, ...]:
    """What ``device`` computes in, in the contract's words, if ``precision`` is among it.

    Raises:
        CapabilityMismatch: it is not.
    """
    has = compute_precisions(core, device)
    if precision not in has:
        raise CapabilityMismatch(
            f"device {device} does not compute in {precision} on this machine; set precision to {' or '.join(has)}"
        )
    return tuple(_NAMES[name] for name in has)

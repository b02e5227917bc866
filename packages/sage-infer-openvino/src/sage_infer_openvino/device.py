"""What an OpenVINO device can do, and how it is asked to."""

from __future__ import annotations

from typing import Any

from sage_infer.errors import CapabilityMismatch, UnsupportedFeature
from sage_infer.names import Precision
from sage_infer.system import usable_cpus, usable_threads

__all__ = ["check_precision", "compute_precisions", "latency_properties"]

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


def latency_properties(device: str, precision: str, threads: int | None) -> dict[str, Any]:
    """Properties for one request at a time on all of the device, or on so many CPU ``threads``.

    OpenVINO itself keeps to the affinity mask and to one thread a core, but knows nothing of CPU quotas: with more
    threads than a container is paid for, all of them are stopped until the next period.
    """
    properties: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    if threads is None and device.upper().startswith("CPU") and usable_threads() < len(usable_cpus()):
        threads = usable_threads()
    if threads is not None:
        properties["INFERENCE_NUM_THREADS"] = threads
    return properties


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

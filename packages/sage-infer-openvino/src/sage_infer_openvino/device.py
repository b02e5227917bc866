"""What an OpenVINO device can do, and how it is asked to."""

from __future__ import annotations

import functools
import os
import re
from typing import Any

import numpy as np
from sage_infer.errors import CapabilityMismatch, UnsupportedFeature
from sage_infer.names import Precision
from sage_infer.sdk.fields import Text
from sage_infer.system import usable_cpus, usable_threads

from sage_infer_openvino.ov_runtime import ops, ov

__all__ = [
    "DEVICE",
    "check_precision",
    "compile_model",
    "compute_precisions",
    "hardware_of",
    "latency_properties",
]

DEVICE = Text(pattern="[A-Za-z].*", hint="an OpenVINO device such as CPU, GPU.0 or NPU")
_CAPABILITIES = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}
_NAMES: dict[str, Precision] = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}
# What the CPU plug-in keeps of the shapes that it has computed: in a cache of each compiled model, and in oneDNN's,
# which all models share. Their own 5,000 and 1,024 let a server that meets ever new sizes of steps grow by a GiB; see
# decision 0032.
_CPU_EXECUTORS = 128
_CPU_PRIMITIVES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")


def hardware_of(device: str) -> str:
    """OpenVINO's device (``CPU``, ``GPU.1``, ``AUTO:GPU,CPU``) as the contract's ``hardware_backend``."""
    name = re.split(r"[.:(]", device.lower(), maxsplit=1)[0]
    return {"gpu": "intel-gpu", "npu": "intel-npu"}.get(name, re.sub("[^a-z0-9_-]", "-", name))


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
    threads than a container is paid for, all of them are stopped until the next period. It keeps kernels for every
    shape that it has met: on a CPU, for so many only that a server's memory ends growing.
    """
    properties: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    if _is_cpu(device):
        properties["CPU_RUNTIME_CACHE_CAPACITY"] = _CPU_EXECUTORS
        if threads is None and usable_threads() < len(usable_cpus()):
            threads = usable_threads()
    if threads is not None:
        properties["INFERENCE_NUM_THREADS"] = threads
    return properties


def _is_cpu(device: str) -> bool:
    return device.upper().startswith("CPU")


def compile_model(core: Any, model: Any, device: str, properties: dict[str, Any]) -> Any:
    """``core.compile_model``, on a CPU after oneDNN was told to keep fewer primitives."""
    if _is_cpu(device):
        _limit_primitives()
    return core.compile_model(model, device, properties)


@functools.cache
def _limit_primitives() -> None:
    """Lets oneDNN read its limit, which it does when a process makes its first primitive: here for one small product.

    The variable is not left behind: PyTorch has a oneDNN of its own, here or in a child of this process. One that is
    set already is the user's.
    """
    name, value = _CPU_PRIMITIVES
    if name in os.environ:
        return
    rows = ops.parameter([4, 64], np.float32)
    product = ops.matmul(rows, ops.constant(np.ones((64, 64), np.float32)), False, False)
    os.environ[name] = value
    try:
        ov.Core().compile_model(ov.Model([product], [rows], "product"), "CPU")
    finally:
        os.environ.pop(name, None)


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

"""Capabilities and properties of an OpenVINO device."""

from __future__ import annotations

import functools
import os
import re
from typing import Any

import numpy as np
from sage_infer.errors import CapabilityMismatch, OutOfMemory, UnsupportedFeature
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
    "infer",
    "latency_properties",
]

DEVICE = Text(pattern="[A-Za-z].*", hint="an OpenVINO device such as CPU, GPU.0 or NPU")
_CAPABILITIES = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}
_NAMES: dict[str, Precision] = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}
# Size limits of the CPU plug-in's kernel caches: one per compiled model, and oneDNN's,
# which all models share. With the defaults of 5,000 and 1,024, a server with varying step sizes grows by a GiB; see
# decision 0032.
_CPU_EXECUTORS = 128
_CPU_PRIMITIVES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")


_UNTOUCHED = np.float32(-3.1415927e38)  # no result


def infer(request: Any, output: str, inputs: Any = None) -> Any:
    """Compute, and return the float32 array of an output, which the next call overwrites.

    Where memory runs out, OpenVINO 2026.4 may return without an error, and leave the output of the last call. So its
    last number is replaced before.

    Raises:
        OutOfMemory: nothing was computed.
    """
    before = request.get_tensor(output).data
    if before.size:
        before.reshape(-1)[-1] = _UNTOUCHED
    request.infer(inputs)
    found = request.get_tensor(output).data
    if not found.size or found.reshape(-1)[-1] == _UNTOUCHED:
        raise OutOfMemory("OpenVINO computed nothing and reported no error, as it does if memory runs out")
    return found


def hardware_of(device: str) -> str:
    """OpenVINO's device (``CPU``, ``GPU.1``, ``AUTO:GPU,CPU``) as the contract's ``hardware_backend``."""
    name = re.split(r"[.:(]", device.lower(), maxsplit=1)[0]
    return {"gpu": "intel-gpu", "npu": "intel-npu"}.get(name, re.sub("[^a-z0-9_-]", "-", name))


def compute_precisions(core: Any, device: str) -> tuple[str, ...]:
    """The float types that ``device`` computes in, by OpenVINO's names, widest first.

    A CPU without instructions for a type silently computes in float32 instead.
    Raises :class:`UnsupportedFeature` for a missing device.
    """
    try:
        has = core.get_property(device, "OPTIMIZATION_CAPABILITIES")
    except RuntimeError as error:
        there = ", ".join(core.available_devices)
        raise UnsupportedFeature(
            f"OpenVINO has no device {device} on this machine; available: {there}"
        ) from error
    return tuple(name for name, capability in _CAPABILITIES.items() if capability in has)


def latency_properties(device: str, precision: str, threads: int | None) -> dict[str, Any]:
    """Properties for one request at a time on the whole device, or on ``threads`` CPU threads.

    OpenVINO respects the affinity mask and uses one thread per core, but ignores CPU quotas: with more
    threads than a container's quota, all of them are throttled until the next period. It caches kernels for every
    shape: on a CPU, the cache is limited so that a server's memory stops growing.
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
    """``core.compile_model``, on a CPU after reducing oneDNN's primitive cache."""
    if _is_cpu(device):
        _limit_primitives()
    return core.compile_model(model, device, properties)


@functools.cache
def _limit_primitives() -> None:
    """Make oneDNN read its limit, which happens with the first primitive of a process: here a small product.

    The variable is restored, as PyTorch has its own oneDNN, in this process or a child. A variable that is
    already set is the user's and is kept.
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
    """The precisions of ``device`` by the contract's names, if ``precision`` is among them.

    Raises:
        CapabilityMismatch: it is not.
    """
    has = compute_precisions(core, device)
    if precision not in has:
        raise CapabilityMismatch(
            f"device {device} does not support {precision} on this machine; set precision to {' or '.join(has)}"
        )
    return tuple(_NAMES[name] for name in has)

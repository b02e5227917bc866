"""Conversion of a ``QuantizationProfile`` to settings, or an error that names the unsupported field."""

from __future__ import annotations

import attrs
from sage_infer.errors import CapabilityMismatch
from sage_infer.schemas import QuantizationProfile

from sage_infer_openvino.device import compute_precisions
from sage_infer_openvino.models.weight_format import WeightFormat
from sage_infer_openvino.ov_runtime import ov
from sage_infer_openvino.settings import DecoderSettings

__all__ = ["with_profile"]

_WEIGHTS: dict[int, WeightFormat] = {4: "int4", 8: "int8", 16: "bf16", 32: "f32"}


def with_profile(settings: DecoderSettings, profile: QuantizationProfile) -> DecoderSettings:
    """The settings for ``profile``.

    Activations of 16 bits are computed in bf16 or f16 if the device supports it, else in float32, which is more precise
    than requested. Activations of 8 bits are treated in the same way, except in products with quantized weights on
    devices with 8-bit products. Weights with fewer bits than ``weight_bits`` in the file are kept.

    Raises:
        CapabilityMismatch: the device or this engine does not support the profile.
    """
    precision = _precision(settings.device, profile.activation_bits)
    length = profile.max_sequence_length
    if settings.max_sequence_length is not None and length is not None:
        length = min(length, settings.max_sequence_length)
    if profile.weight_bits not in _WEIGHTS:
        raise _mismatch("weight_bits", profile.weight_bits, "4, 8, 16 or 32")
    if profile.sparsity_ratio:
        raise _mismatch(
            "sparsity_ratio", profile.sparsity_ratio, "0: OpenVINO's CPU kernels do not use sparsity"
        )
    if profile.kernel_backend not in (None, "openvino"):
        raise _mismatch("kernel_backend", profile.kernel_backend, "openvino or null")
    if profile.calibration_dataset is not None:
        raise _mismatch(
            "calibration_dataset", profile.calibration_dataset, "null: weights are rounded, not calibrated"
        )
    return attrs.evolve(
        settings,
        weight_format=_WEIGHTS[profile.weight_bits],
        precision=precision,
        dynamic_quantization=profile.activation_bits == 8,
        kv_precision=_kv_precision(profile, precision),
        max_sequence_length=length or settings.max_sequence_length,
    )


def _precision(device: str, bits: int) -> str:
    if bits not in (8, 16, 32):
        raise _mismatch("activation_bits", bits, "8, 16 or 32")
    has = compute_precisions(ov.Core(), device)
    return next((name for name in ("bf16", "f16") if name in has), "f32") if bits < 32 else "f32"


def _kv_precision(profile: QuantizationProfile, precision: str) -> str:
    bits = profile.kv_bits_decode
    if profile.kv_bits_prefill != bits:
        message = f"{bits}, as kv_bits_decode: an instance has one KV format"
        raise _mismatch("kv_bits_prefill", profile.kv_bits_prefill, message)
    names = {8: "u8", 16: "bf16" if precision == "bf16" else "f16", 32: "f32"}
    if bits not in names:
        raise _mismatch("kv_bits_decode", bits, "8, 16 or 32")
    return names[bits]


def _mismatch(field: str, value: object, expected: str) -> CapabilityMismatch:
    return CapabilityMismatch(
        f"quantization profile: {field} is {value!r}, but the openvino backend supports {expected}"
    )

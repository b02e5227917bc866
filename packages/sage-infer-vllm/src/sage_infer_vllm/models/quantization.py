"""Conversion of quantization profiles to vLLM's settings, validated against platform and checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen
from sage_infer.errors import CapabilityMismatch
from sage_infer.schemas import QuantizationProfile

from sage_infer_vllm.models.described import described_method, read_object
from sage_infer_vllm.platform import Platform, QuantizationMethod

__all__ = [
    "DEVICE_METHODS", "NONE", "Quantization", "checkpoint_method", "quantization_for", "undetected_method",
]  # fmt: skip

_CHECKPOINTS = (
    QuantizationMethod(name="awq", weight_bits=4),
    QuantizationMethod(name="gptq", weight_bits=4),
    QuantizationMethod(name="gptq", weight_bits=8),
    QuantizationMethod(name="compressed-tensors", weight_bits=4),
    QuantizationMethod(name="compressed-tensors", weight_bits=8),
    QuantizationMethod(name="compressed-tensors", weight_bits=8, activation_bits=8),
)
DEVICE_METHODS: Mapping[str, tuple[QuantizationMethod, ...]] = {
    "cpu": _CHECKPOINTS,
    "cuda": (
        *_CHECKPOINTS,
        QuantizationMethod(name="fp8", weight_bits=8, activation_bits=8, online=True),
        QuantizationMethod(name="gptq_marlin", weight_bits=4),
        QuantizationMethod(name="gptq_marlin", weight_bits=8),
        QuantizationMethod(name="awq_marlin", weight_bits=4),
    ),
}
"""vLLM's own platforms by device type (https://docs.vllm.ai/en/latest/features/quantization/#supported-hardware)."""

_KERNELS = {"marlin": "_marlin"}  # selectable kernel families → suffix of the method's name
_KV_PRESETS = {8: "fp8", 4: "int4"}


@frozen(kw_only=True)
class Quantization:
    """A profile as engine settings.

    Attributes:
        profile_id: the profile; None for the checkpoint's own format.
        method: vLLM's ``quantization``; None leaves it to the checkpoint.
        kv_preset: KV preset in the sense of ``--kv-schema``; None keeps the model's precision.
        max_sequence_length: maximum sequence length in tokens covered by the profile's calibration.
    """

    profile_id: str | None = None
    method: str | None = None
    kv_preset: str | None = None
    max_sequence_length: int | None = None


NONE = Quantization()


def quantization_for(
    profile: QuantizationProfile, model_path: str | Path, platform: Platform, *, device: str
) -> Quantization:
    """The profile's engine settings for this model and platform. ``device`` is vLLM's device type.

    Raises:
        CapabilityMismatch: not supported by platform or checkpoint; the message lists all missing parts.
    """
    methods = platform.quantization if platform.quantization is not None else DEVICE_METHODS.get(device, ())
    where = platform.backend_name if platform.quantization is not None else f"vLLM on {device}"
    problems: list[str] = []
    method = _method(profile, checkpoint_method(model_path), methods, where, problems)
    kv_preset = _kv_preset(profile, problems)
    if profile.sparsity_ratio:
        problems.append(
            f"vLLM has no sparse kernels, but the profile has {profile.sparsity_pattern} sparsity of "
            f"{profile.sparsity_ratio:g}"
        )
    if problems:
        raise CapabilityMismatch(f"quantization profile {profile.profile_id!r}: {'; '.join(problems)}")
    return Quantization(
        profile_id=profile.profile_id,
        method=method,
        kv_preset=kv_preset,
        max_sequence_length=profile.max_sequence_length,
    )


def undetected_method(model_path: str | Path, platform: Platform) -> str | None:
    """vLLM's method for a checkpoint that only a vendor's tool describes, which vLLM does not detect."""
    found = described_method(Path(model_path))
    if found is None:
        return None
    return next((m.name for m in platform.quantization or () if m.checkpoint_name == found.name), None)


def checkpoint_method(model_path: str | Path) -> QuantizationMethod | None:
    """The quantization of a checkpoint; None for floats, and for GGUF files, which are dequantized."""
    described = described_method(Path(model_path))
    if described is not None:
        return described
    found = read_object(Path(model_path) / "config.json").get("quantization_config")
    if not isinstance(found, dict):
        return None
    name = str(found.get("quant_method", "unknown"))
    weights, activations = _bits(name, found)
    return QuantizationMethod(name=name, weight_bits=weights, activation_bits=activations)


def _bits(name: str, config: Mapping[str, Any]) -> tuple[int, int]:
    """Bits per weight and activation of a ``quantization_config``."""
    if name == "fp8":
        return 8, 8
    groups = config.get("config_groups")
    if isinstance(groups, Mapping) and groups:
        group = next(iter(groups.values()))
        weights, inputs = group.get("weights") or {}, group.get("input_activations") or {}
        return int(weights.get("num_bits", 16)), int(inputs.get("num_bits", 16))
    bits = config.get("bits", config.get("w_bit", 16))
    return (bits if isinstance(bits, int) else 16), 16


def _method(
    profile: QuantizationProfile,
    checkpoint: QuantizationMethod | None,
    methods: Sequence[QuantizationMethod],
    where: str,
    problems: list[str],
) -> str | None:
    """vLLM's method for the profile's weights and activations; problems are added to ``problems``."""
    wanted = (profile.weight_bits, profile.activation_bits)
    words = f"{wanted[0]}-bit weights with {wanted[1]}-bit activations (weight_bits, activation_bits)"
    if checkpoint is None:
        if wanted == (16, 16):
            return _with_kernel(None, profile, methods, problems)
        online = [m for m in methods if m.online and (m.weight_bits, m.activation_bits) == wanted]
        if online:
            return _with_kernel(online[0].name, profile, methods, problems)
        able = sorted({f"{m.weight_bits}/{m.activation_bits} by {m.name}" for m in methods})
        problems.append(
            f"the checkpoint is not quantized, and {where} cannot quantize to {words} while loading; use a quantized "
            f"checkpoint ({', '.join(able) or 'none is supported'})"
        )
        return None
    has = (checkpoint.weight_bits, checkpoint.activation_bits)
    if has != wanted:
        problems.append(
            f"the checkpoint has {has[0]}-bit weights with {has[1]}-bit activations ({checkpoint.name}), not {words}"
        )
    else:
        fitting = (m for m in methods if m.checkpoint_name == checkpoint.name)
        for method in fitting:
            if (method.weight_bits, method.activation_bits) == has:
                return _with_kernel(method.name, profile, methods, problems)
        names = ", ".join(sorted({m.checkpoint_name for m in methods})) or "none"
        problems.append(
            f"{where} does not support {checkpoint.name} checkpoints with {words}; supported: {names}"
        )
    return _with_kernel(checkpoint.name, profile, methods, problems)


def _with_kernel(
    method: str | None,
    profile: QuantizationProfile,
    methods: Sequence[QuantizationMethod],
    problems: list[str],
) -> str | None:
    kernel = profile.kernel_backend
    if kernel is None:
        return method
    chosen = f"{method}{_KERNELS.get(kernel, '')}" if method else None
    if kernel in _KERNELS and any(m.name == chosen for m in methods):
        return chosen
    problems.append(f"kernel_backend {kernel!r} cannot be selected for this method; remove it")
    return method


def _kv_preset(profile: QuantizationProfile, problems: list[str]) -> str | None:
    prefill, decode = profile.kv_bits_prefill, profile.kv_bits_decode
    if prefill != decode:
        problems.append(
            f"kv_bits_prefill is {prefill} but kv_bits_decode {decode}: an engine has one KV cache; make them equal"
        )
        return None
    if decode >= 16:
        return None
    if decode not in _KV_PRESETS:
        problems.append(
            f"a KV cache of {decode} bits is not supported; use 16, {' or '.join(map(str, _KV_PRESETS))}"
        )
        return None
    return _KV_PRESETS[decode]

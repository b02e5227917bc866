"""A quantization profile becomes settings, or an error that names the field."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from openvino_toy import Toy, descriptor, run
from sage_infer.errors import CapabilityMismatch, InvalidRequest
from sage_infer.schemas import CapabilityDescriptor, QuantizationProfile
from sage_infer_openvino.backend import OpenVINOBackend
from sage_infer_openvino.device import compute_precisions
from sage_infer_openvino.ov_runtime import ov
from sage_infer_openvino.quant_profile import with_profile

HALF = {"bf16", "f16"}
LACKING = HALF - set(compute_precisions(ov.Core(), "CPU"))
FULL = {"activation_bits": 32, "kv_bits_prefill": 32, "kv_bits_decode": 32}


def opened(gguf: Path, cache_dir: Path, profile: QuantizationProfile) -> CapabilityDescriptor:
    async def main() -> CapabilityDescriptor:
        backend = OpenVINOBackend(descriptor(gguf, "tiny"), cache_dir=str(cache_dir), kv_cache_gb=0.01)
        backend.load_quant_profile(profile)
        try:
            await backend.start()
            return backend.get_capability()
        finally:
            await backend.close()

    return asyncio.run(main())


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_it_configures_the_engine(tiny_gguf: Any, tmp_path: Path, bits: int) -> None:
    profile = QuantizationProfile(profile_id=f"w{bits}", weight_bits=bits, **FULL, max_sequence_length=64)
    capability = opened(tiny_gguf(), tmp_path, profile)
    assert capability.quant_profile_id == f"w{bits}"
    assert capability.max_sequence_length == 64
    assert capability.kv_schema is not None
    assert capability.kv_schema.dtype == "fp32"


@pytest.mark.parametrize(("bits", "dtypes"), [(8, {"int8"}), (16, {"bf16", "fp16"})])
def test_kv_bits(tiny_gguf: Any, tmp_path: Path, bits: int, dtypes: set[str]) -> None:
    profile = QuantizationProfile(weight_bits=8, kv_bits_prefill=bits, kv_bits_decode=bits)
    schema = opened(tiny_gguf(hidden=128), tmp_path, profile).kv_schema
    assert schema is not None
    assert schema.dtype in dtypes


@pytest.mark.parametrize(("bits", "rounded"), [(8, True), (16, False), (32, False)])
def test_activation_bits(tiny_gguf: Any, bits: int, rounded: bool) -> None:
    wide = {"kv_bits_prefill": 32, "kv_bits_decode": 32}
    settings = OpenVINOBackend(descriptor(tiny_gguf(), "tiny"), dynamic_quantization=not rounded)._settings
    with_bits = with_profile(settings, QuantizationProfile(weight_bits=8, activation_bits=bits, **wide))
    assert with_bits.dynamic_quantization == rounded
    assert (with_bits.precision == "f32") == (bits == 32 or LACKING == HALF)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight_bits": 3}, "weight_bits is 3, but the openvino backend supports 4, 8, 16 or 32"),
        ({"activation_bits": 4}, "activation_bits is 4, but the openvino backend supports 8, 16 or 32"),
        ({"kv_bits_prefill": 8}, "kv_bits_prefill is 8, .* 32, as kv_bits_decode"),
        ({"kv_bits_prefill": 4, "kv_bits_decode": 4}, "kv_bits_decode is 4"),
        ({"sparsity_ratio": 0.5, "sparsity_pattern": "2:4"}, r"sparsity_ratio is 0\.5"),
        ({"kernel_backend": "marlin"}, "kernel_backend is 'marlin'"),
        ({"calibration_dataset": "c4"}, "calibration_dataset is 'c4'"),
    ],
)
def test_unsupported_fields_are_named(fields: dict[str, Any], message: str) -> None:
    backend = OpenVINOBackend(descriptor(Path("/none"), "tiny"))
    with pytest.raises(CapabilityMismatch, match=message):
        backend.load_quant_profile(QuantizationProfile(**{"weight_bits": 8, **FULL, **fields}))


def test_the_shorter_limit_counts(tiny_gguf: Any, tmp_path: Path) -> None:
    async def main() -> int:
        backend = OpenVINOBackend(
            descriptor(tiny_gguf(), "tiny"), cache_dir=str(tmp_path), kv_cache_gb=0.01, max_sequence_length=32
        )
        backend.load_quant_profile(QuantizationProfile(weight_bits=8, **FULL, max_sequence_length=64))
        await backend.start()
        limit = backend.get_capability().max_sequence_length
        await backend.close()
        return limit

    assert asyncio.run(main()) == 32


def test_not_on_a_started_backend() -> None:
    async def main() -> None:
        async with Toy() as toy:
            with pytest.raises(InvalidRequest, match=r"before start\(\)"):
                toy.backend.load_quant_profile(QuantizationProfile())

    run(main())


def test_precisions_that_the_device_lacks_are_refused(tiny_gguf: Any, tmp_path: Path) -> None:
    """OpenVINO itself would compute in float32 and say nothing."""

    async def main(precision: Any) -> None:
        backend = OpenVINOBackend(
            descriptor(tiny_gguf(), "tiny"), cache_dir=str(tmp_path), precision=precision
        )
        with pytest.raises(CapabilityMismatch, match=f"does not support {precision} .* set precision to f32"):
            await backend.start()
        await backend.close()

    for precision in sorted(LACKING):
        asyncio.run(main(precision))

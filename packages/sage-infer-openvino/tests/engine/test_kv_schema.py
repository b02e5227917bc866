"""The option ``kv_schema``: valid values, and rejections before and after the model is compiled."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from openvino_toy import descriptor
from sage_infer.errors import CapabilityMismatch, InvalidRequest, SageInferError
from sage_infer.schemas import KVCacheSchema
from sage_infer_openvino.backend import OpenVINOBackend
from sage_infer_openvino.engine.kv_schema import wanted_precision


@pytest.mark.parametrize(
    ("kv_schema", "kv_precision", "wanted"),
    [
        (None, None, None),
        (None, "u8", "u8"),
        ({"page_size": 32}, "f16", "f16"),
        ({"preset": "int8"}, None, "u8"),
        ({"preset": "fp16"}, "f16", "f16"),
    ],
)
def test_a_preset_is_a_precision(
    kv_schema: Mapping[str, Any] | None, kv_precision: str | None, wanted: str
) -> None:
    assert wanted_precision(kv_schema, kv_precision) == wanted


@pytest.mark.parametrize(
    ("kv_schema", "kv_precision", "error", "message"),
    [
        (
            {"preset": "fp8"},
            None,
            CapabilityMismatch,
            "does not support fp8 KV; use the preset fp16, bf16, int8",
        ),
        ({"preset": "int8"}, "f16", InvalidRequest, r"\(int8\) and kv_precision \(f16\) contradict"),
        ({"preset": "int8", "pages": 3}, None, InvalidRequest, "no key 'pages'; it has preset and page_size"),
    ],
)
def test_unsupported_options_are_rejected(
    kv_schema: Mapping[str, Any], kv_precision: str | None, error: type[SageInferError], message: str
) -> None:
    with pytest.raises(error, match=message):
        wanted_precision(kv_schema, kv_precision)


def open_with(gguf: Path, cache_dir: Path, kv_schema: Mapping[str, Any]) -> KVCacheSchema:
    async def main() -> KVCacheSchema:
        model = descriptor(gguf, "smollm2-135m")
        backend = OpenVINOBackend(model, cache_dir=str(cache_dir), kv_cache_gb=0.1, kv_schema=kv_schema)
        try:
            await backend.start()
            return backend.get_kv_schema()
        finally:
            await backend.close()

    return asyncio.run(main())


def test_the_loaded_engine_has_the_form_that_was_asked_for(smollm2_gguf: Path, cache_dir: Path) -> None:
    schema = open_with(smollm2_gguf, cache_dir, {"preset": "int8", "page_size": 32})
    assert (schema.dtype, schema.page_size) == ("int8", 32)


def test_another_page_size_is_refused(smollm2_gguf: Path, cache_dir: Path) -> None:
    with pytest.raises(CapabilityMismatch, match="have 32 tokens on this device, not 16"):
        open_with(smollm2_gguf, cache_dir, {"page_size": 16})

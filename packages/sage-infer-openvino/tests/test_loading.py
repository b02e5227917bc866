"""Loading: devices, default folders, KV layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from openvino_toy import descriptor
from sage_infer.errors import CapabilityMismatch
from sage_infer.schemas import CapabilityDescriptor
from sage_infer_openvino import loading
from sage_infer_openvino.device import hardware_of
from sage_infer_openvino.engine.kv_schema import kv_schema_of
from sage_infer_openvino.engine.paged_runner import KVLayout


@pytest.mark.parametrize(
    ("device", "hardware"),
    [
        ("CPU", "cpu"),
        ("cpu", "cpu"),
        ("GPU", "intel-gpu"),
        ("GPU.1", "intel-gpu"),
        ("NPU", "intel-npu"),
        ("AUTO:GPU,CPU", "auto"),
        ("MULTI(GPU)", "multi"),
        ("My Device", "my-device"),
    ],
)
def test_every_device_is_a_hardware_backend(device: str, hardware: str) -> None:
    assert hardware_of(device) == hardware
    CapabilityDescriptor(
        backend_name="x",
        instance_type="general",
        hardware_backend=hardware,
        max_batch_size=1,
        max_sequence_length=1,
        supported_precisions=("fp32",),
    )


def test_prepare_uses_the_default_place(
    tiny_gguf: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    stages: list[str] = []
    loading.prepare(model=descriptor(tiny_gguf(), "tiny"), progress=lambda stage, done: stages.append(stage))
    assert stages[-1] == "ready"
    assert loading.default_cache_dir().is_relative_to(tmp_path)
    assert len(list(loading.default_cache_dir().glob("tiny-*/model.xml"))) == 1


def layout(key: tuple[int, ...], value: tuple[int, ...], kind: str) -> KVLayout:
    return KVLayout(key, value, kind, kind, "2026.4")


@pytest.mark.parametrize(
    ("form", "nbytes"),
    [
        (layout((3, 32, 64), (3, 32, 64), "bf16"), 2 * 3 * 32 * 64 * 2),
        (layout((3, 40, 64), (3, 32, 72), "u8"), 3 * 40 * 64 + 3 * 32 * 72),
        (layout((3, 32, 72), (3, 32, 72), "u8"), 2 * 3 * 32 * 72),
    ],
)
def test_schemas_of_known_layouts_are_exact(form: KVLayout, nbytes: int) -> None:
    schema = kv_schema_of(form, 30, 30 * nbytes)
    assert schema.bytes_per_page == 30 * nbytes
    assert (schema.page_size, schema.num_heads, schema.head_dim) == (32, 3, 64)
    assert schema.format_id == (
        "openvino-2026.4" if form.key_type == "u8" else ""
    )  # pages of floats are plain


def test_layouts_without_a_schema_are_refused() -> None:
    known = layout((3, 32, 64), (3, 32, 64), "f32")
    for form, nbytes, says in (
        (attrs.evolve(known, key_type="i4", value_type="i4"), 1, "KV of type i4/i4 has no schema"),
        (attrs.evolve(known, key_type="u8"), 1, "KV of type u8/f32 has no schema"),
        (attrs.evolve(known, key_shape=(3, 64, 32)), 1, "which no schema describes"),
        (known, 77, "in 77 bytes, but its shapes require 49152"),
    ):
        with pytest.raises(CapabilityMismatch, match=says):
            kv_schema_of(form, 1, nbytes)

"""``sage infer backend show --model``: what a backend can do with one model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sage_infer.cli.opened import summary
from sage_infer.schemas import CapabilityDescriptor, KVCacheSchema, KVGroup
from sage_infer.schemas.codec import to_dict

if TYPE_CHECKING:
    from conftest import Sage


def test_the_opened_backend_is_shown(sage: Sage, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    arguments = ("infer", "backend", "show", "toy", "--model", "model.gguf", "-o", "delay=1")
    shown = sage.json(*arguments)
    assert shown["factory"] == "toy_engine:ToyBackend"
    assert shown["capability"]["backend_name"] == "toy"
    assert shown["kv_schema_reason"] is None
    text = sage(*arguments).stdout
    assert "with model model.gguf:\nfeatures  chat, logprobs\nKV        no features\n" in text
    refused = sage.fails("infer", "backend", "show", "toy", "-o", "delay=1", code=2)
    assert "name one with --model" in refused


def lines(reason: str | None = None, **capability: Any) -> dict[str, list[str]]:
    descriptor = CapabilityDescriptor(
        backend_name="b", instance_type="general", hardware_backend="cpu", max_batch_size=1,
        max_sequence_length=9, supported_precisions=("fp32",), **capability,
    )  # fmt: skip
    found: dict[str, list[str]] = {}
    for label, text in summary({"capability": to_dict(descriptor), "kv_schema_reason": reason}):
        found.setdefault(label, []).append(text)
    return found


def test_kv_features_stand_apart_and_groups_are_listed() -> None:
    groups = (
        KVGroup(layers=(0, 1), kind="sliding", window=64),
        KVGroup(layers=(2,)),
        KVGroup(layers=(3,), kind="state", state_bytes=512),
    )
    schema = KVCacheSchema(
        dtype="bf16", page_size=16, num_layers=4, num_heads=2, head_dim=32, format_id="x", groups=groups
    )
    found = lines(features=("chat", "kv_export", "cache_salt"), kv_schema=schema, kv_cache_capacity_gb=0.5)
    assert (found["features"], found["KV"], found["KV size"]) == (
        ["chat"],
        ["kv_export, cache_salt"],
        ["0.5 GiB"],
    )
    assert found["KV form"] == ["bf16, pages of 16 tokens, 4 layers, 2 heads of 32; x"]
    assert found["KV group"] == [
        "2 layers: sliding, window of 64 tokens",
        "1 layer: full",
        "1 layer: state, 512 bytes per sequence and layer",
    ]


def test_mla_and_a_cache_that_no_schema_describes() -> None:
    mla = KVCacheSchema(dtype="fp32", page_size=16, num_layers=2, num_heads=1, head_dim=576, value_dim=0)
    assert lines(kv_schema=mla)["KV form"] == [
        "fp32, pages of 16 tokens, 2 layers, one latent of 576 per token (MLA); plain"
    ]
    assert lines("the pages are of another kind")["KV form"] == ["the pages are of another kind"]
    assert "KV form" not in lines()

"""Converted GGUF files: exact weights and an equal tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from sage_infer.errors import ModelFileError, UnsupportedFeature
from sage_infer.schemas import ModelDescriptor
from sage_infer_vllm.models.prepare import loadable_folder
from vllm_toys import have_vllm

pytestmark = pytest.mark.skipif(
    not have_vllm(),
    reason="transformers comes with vLLM, which is not installed; `hatch run vllm:test` has it",
)


def test_weights_are_exact(smollm2: ModelDescriptor) -> None:
    import gguf
    import numpy as np
    from safetensors import safe_open

    seen: list[float] = []
    folder = loadable_folder(
        smollm2.model_path, cache_dir=None, progress=lambda stage, share: seen.append(share)
    )
    assert seen == sorted(seen)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(smollm2.model_path).tensors}
    with safe_open(folder / "model.safetensors", framework="np") as found:
        assert len(found.keys()) == len(tensors)
        for name, source in (
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("model.layers.7.mlp.down_proj.weight", "blk.7.ffn_down.weight"),
            ("model.layers.29.self_attn.v_proj.weight", "blk.29.attn_v.weight"),
        ):
            tensor = tensors[source]
            exact = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert np.array_equal(found.get_tensor(name), exact)
        query = tensors["blk.0.attn_q.weight"]
        rows = gguf.quants.dequantize(query.data, query.tensor_type).reshape(9, 32, 2, 576)
        # llama.cpp keeps the two halves of a rotary pair next to each other; transformers one after the other.
        assert np.array_equal(
            found.get_tensor("model.layers.0.self_attn.q_proj.weight"), rows.swapaxes(1, 2).reshape(576, 576)
        )


def test_the_converted_tokenizer_is_equal(smollm2: ModelDescriptor) -> None:
    from transformers import AutoTokenizer

    folder = loadable_folder(smollm2.model_path, cache_dir=None, progress=lambda stage, share: None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.encode("The capital of France is") == [504, 3575, 282, 4649, 314]
    assert tokenizer.decode([504, 3575]) == "The capital"
    assert "<|im_start|>" in tokenizer.chat_template


def write_gguf(path: Path, architecture: str) -> Path:
    import gguf

    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_uint32(f"{architecture}.block_count", 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_failed_conversions_report_the_reason(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    unknown = write_gguf(tmp_path / "unknown.gguf", "no-such-family")
    with pytest.raises(
        UnsupportedFeature, match=r"cannot be converted for vLLM \(ValueError: .*no-such-family"
    ):
        loadable_folder(unknown, cache_dir=cache, progress=lambda stage, share: None)
    empty = write_gguf(tmp_path / "empty.gguf", "llama")
    with pytest.raises((ModelFileError, UnsupportedFeature)):
        loadable_folder(empty, cache_dir=cache, progress=lambda stage, share: None)
    assert [entry for entry in cache.iterdir() if entry.is_dir()] == []

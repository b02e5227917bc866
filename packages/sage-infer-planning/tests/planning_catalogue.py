"""Real models by their published configurations, and real cards by their recorded tools' output.

Sizes and parameter counts are those of each model's ``config.json`` and safetensors index on its publisher's page at
huggingface.co: meta-llama, Qwen, mistralai, google, microsoft, HuggingFaceTB, BAAI and sentence-transformers.
"""

from __future__ import annotations

from typing import Any

from sage_infer.schemas import AcceleratorDescriptor, HardwareProfile
from sage_infer_planning.model_shape import ModelShape, shape_of_config

__all__ = ["CARDS", "CATALOGUE"]


def _llm(
    layers: int,
    hidden: int,
    inner: int,
    heads: int,
    kv_heads: int,
    vocab: int,
    *,
    tied: bool = False,
    **more: Any,
) -> ModelShape:
    return shape_of_config({
        "model_type": "llama", "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": inner,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab,
        "tie_word_embeddings": tied, "max_position_embeddings": 32768, "torch_dtype": "bfloat16", **more,
    })  # fmt: skip


def _encoder(layers: int, hidden: int, inner: int, heads: int, vocab: int, positions: int) -> ModelShape:
    return shape_of_config({
        "model_type": "bert", "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": inner,
        "num_attention_heads": heads, "vocab_size": vocab, "max_position_embeddings": positions,
        "torch_dtype": "float32",
    })  # fmt: skip


CATALOGUE: dict[str, tuple[ModelShape, int]] = {
    "SmolLM2-135M": (_llm(30, 576, 1536, 9, 3, 49152, tied=True), 134_515_008),
    "Qwen2.5-0.5B": (_llm(24, 896, 4864, 14, 2, 151936, tied=True), 494_032_768),
    "Qwen2.5-7B": (_llm(28, 3584, 18944, 28, 4, 152064), 7_615_616_512),
    "Qwen2.5-32B": (_llm(64, 5120, 27648, 40, 8, 152064), 32_763_876_352),
    "Qwen3-8B": (_llm(36, 4096, 12288, 32, 8, 151936, head_dim=128), 8_190_735_360),
    "Mistral-7B-v0.1": (_llm(32, 4096, 14336, 32, 8, 32000), 7_241_732_096),
    "Mixtral-8x7B": (_llm(32, 4096, 14336, 32, 8, 32000, num_local_experts=8), 46_702_792_704),
    "Llama-3.1-8B": (_llm(32, 4096, 14336, 32, 8, 128256), 8_030_261_248),
    "Llama-3.3-70B": (_llm(80, 8192, 28672, 64, 8, 128256), 70_553_706_496),
    "gemma-2-9b": (_llm(42, 3584, 14336, 16, 8, 256000, head_dim=256, tied=True), 9_241_705_984),
    "phi-4": (_llm(40, 5120, 17920, 40, 10, 100352), 14_659_507_200),
    "all-MiniLM-L6-v2": (_encoder(6, 384, 1536, 12, 30522, 512), 22_713_216),
    "bge-m3": (_encoder(24, 1024, 4096, 16, 250002, 8194), 567_754_752),
}
"""The shape, and the number of weights as published."""


def _card(backend: str, vendor: str, model: str, mebibytes: int) -> HardwareProfile:
    device = AcceleratorDescriptor(
        hardware_backend=backend, vendor=vendor, model=model, index=0, memory_bytes=mebibytes * 2**20
    )
    return HardwareProfile(accelerators=(device,))


CARDS = {
    # Memory as nvidia-smi and npu-smi print it for these cards (the detectors' tests have the recordings).
    "24 GB": _card("cuda", "NVIDIA", "NVIDIA GeForce RTX 4090", 24564),
    "32 GB": _card("ascend", "Huawei", "910B4", 32768),
    "64 GB": _card("ascend", "Huawei", "910B3", 65536),
    "80 GB": _card("cuda", "NVIDIA", "NVIDIA H100 80GB HBM3", 81559),
}

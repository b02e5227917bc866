"""Tiny models with random weights, one for each form of attention, as Hugging Face folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["FORMS", "write_model"]

VOCABULARY = 128
_COMMON: Mapping[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "tie_word_embeddings": False, "initializer_range": 0.2,
}  # fmt: skip


def _gemma3(transformers: Any) -> Any:
    return transformers.Gemma3TextConfig(**_COMMON, num_hidden_layers=6, head_dim=32, sliding_window=64)


def _gpt_oss(transformers: Any) -> Any:
    return transformers.GptOssConfig(
        **_COMMON, num_hidden_layers=2, head_dim=32, num_local_experts=4, num_experts_per_tok=2, sliding_window=64
    )  # fmt: skip


def _deepseek_v3(transformers: Any) -> Any:
    return transformers.DeepseekV3Config(
        **{**_COMMON, "num_key_value_heads": 4}, num_hidden_layers=2, moe_intermediate_size=64, n_routed_experts=4,
        n_shared_experts=1, num_experts_per_tok=2, n_group=2, topk_group=1, first_k_dense_replace=1, kv_lora_rank=512,
        q_lora_rank=32, qk_rope_head_dim=64, qk_nope_head_dim=32, v_head_dim=32, topk_method="noaux_tc",
        scoring_func="sigmoid",
    )  # fmt: skip


def _llama4(transformers: Any) -> Any:
    common = {**_COMMON, "intermediate_size": 64}
    return transformers.Llama4TextConfig(
        **common, num_hidden_layers=4, head_dim=32, intermediate_size_mlp=128, num_local_experts=2,
        num_experts_per_tok=1, attention_chunk_size=128, no_rope_layers=[1, 1, 1, 0], use_qk_norm=True,
    )  # fmt: skip


def _qwen3_next(transformers: Any) -> Any:
    return transformers.Qwen3NextConfig(
        **_COMMON, num_hidden_layers=4, head_dim=32, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64,
        shared_expert_intermediate_size=64, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=128,
        linear_value_head_dim=128,
    )  # fmt: skip


def _jamba(transformers: Any) -> Any:
    return transformers.JambaConfig(
        **_COMMON, num_hidden_layers=2, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, num_experts=2,
        mamba_d_state=16, mamba_d_conv=4, mamba_expand=2, use_mamba_kernels=False,
    )  # fmt: skip


FORMS: Mapping[str, Callable[[Any], Any]] = {
    "gemma3": _gemma3, "gpt-oss": _gpt_oss, "deepseek-v3": _deepseek_v3, "llama4": _llama4,
    "qwen3-next": _qwen3_next, "jamba": _jamba,
}  # fmt: skip
"""Name → configuration of a model, made by transformers."""


def write_model(name: str, folder: Path, dtype: str = "float32") -> Path:
    """The folder of a model of ``FORMS``, with a tokenizer of its small vocabulary."""
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    torch.manual_seed(5)
    config = FORMS[name](transformers)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    if name == "deepseek-v3":  # transformers saves no bias that is zero, and vLLM wants one
        weights = folder / "model.safetensors"
        tensors = load_file(weights)
        for layer in range(config.first_k_dense_replace, config.num_hidden_layers):
            bias = f"model.layers.{layer}.mlp.gate.e_score_correction_bias"
            tensors.setdefault(bias, torch.zeros(config.n_routed_experts))
        save_file(tensors, weights, metadata={"format": "pt"})
    _tokenizer(transformers).save_pretrained(folder)
    return folder


def _tokenizer(transformers: Any) -> Any:
    """One token per word: ``w3``, ``w4``, …"""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<s>", "</s>", *(f"w{number}" for number in range(3, VOCABULARY))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )

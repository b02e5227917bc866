"""Models with random weights for ``on_cuda.py``: made where they are used, as they are too large to keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["embedding_model", "llm_model"]

_WORDS = 32_000
_SHAPES: dict[str, dict[str, Any]] = {
    "1.7b": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16,
             "num_key_value_heads": 8, "head_dim": 128},
    "small": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
              "num_key_value_heads": 2, "head_dim": 64},
}  # fmt: skip


def llm_model(folder: Path, size: str) -> str:
    """A Llama of this size in bfloat16, and the path to its folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **_SHAPES[size], vocab_size=_WORDS, max_position_embeddings=16_384, rope_theta=1e6,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.manual_seed(1)
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    _save_words(folder)
    return str(folder)


def embedding_model(folder: Path) -> str:
    """An encoder of MiniLM's shape, and the path to its folder."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=_WORDS, hidden_size=384, num_hidden_layers=12, num_attention_heads=12,
        intermediate_size=1536, max_position_embeddings=512, pad_token_id=0,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    _save_words(folder)
    return str(folder)


def _save_words(folder: Path) -> None:
    """A tokenizer whose words are ``w0`` to ``w31999``."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = {"[PAD]": 0, "[BOS]": 1, "[EOS]": 2, "[UNK]": 3}
    words |= {f"w{number}": number for number in range(len(words), _WORDS)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]", unk_token="[UNK]"
    ).save_pretrained(folder)

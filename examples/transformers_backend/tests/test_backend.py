"""The contract kit on transformers, with a tiny model of random weights that is made here."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from attrs import evolve
from sage_infer.errors import ModelFileError
from sage_infer.schemas import ModelDescriptor
from sage_infer_hf.backend import HfBackend
from sage_infer_hf.engine import Engine
from sage_infer_testing import InferenceBackendContract
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_folder = tempfile.TemporaryDirectory()
MODEL = ModelDescriptor(model_id="tiny", model_type="llm", model_path=_folder.name)
END = "<|end|>"


def setup_module() -> None:
    """A Llama of two layers, whose tokens are bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: at for at, letter in enumerate([*letters, END])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(_folder.name)
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=257, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=None, eos_token_id=256,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(_folder.name)


class TestBackend(InferenceBackendContract):
    max_queue = 64

    def make_backend(self) -> HfBackend:
        return HfBackend(evolve(MODEL, max_sequence_length=512))


def test_the_kept_cache_changes_nothing() -> None:
    kept, sequence = Engine(Path(MODEL.model_path)), [72, 69, 76]
    for _ in range(8):
        weights = kept.weights(sequence)
        alone = Engine(Path(MODEL.model_path)).weights(sequence)
        assert weights == pytest.approx(alone, rel=1e-3)
        sequence.append(max(weights, key=weights.__getitem__))


@pytest.mark.parametrize("config", [None, "{", "{}"])
def test_what_is_no_model_is_refused(tmp_path: Path, config: str | None) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelFileError, match=str(tmp_path)):
        Engine(tmp_path)

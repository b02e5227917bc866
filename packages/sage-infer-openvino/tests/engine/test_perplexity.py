"""8-bit weights hardly change perplexity on a fixed text, compared with float32."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from openvino_toy import DATA
from sage_infer_openvino.models.decoder_graph import build_decoder
from sage_infer_openvino.models.decoder_weights import DecoderConfig, DenseWeight
from sage_infer_openvino.models.gguf.model import GgufModel
from sage_infer_openvino.models.prepare import PreparedDecoder
from sage_infer_openvino.models.weight_format import WeightFormat
from sage_infer_openvino.ov_runtime import ov

pytestmark = pytest.mark.long

# The beginning of Pride and Prejudice (Jane Austen, 1813; in the public domain).
TEXT = DATA / "pride_and_prejudice_1.txt"
F32 = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
ROUNDED = {**F32, "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32"}


@attrs.frozen
class Floats:
    """A model whose matrices are floats, as in a Hugging Face folder; the sample model has 4 bits in its file."""

    source: GgufModel

    @property
    def config(self) -> DecoderConfig:
        return self.source.config

    def weight(self, name: str) -> DenseWeight:
        return DenseWeight(self.source.weight(name).dense(), "f32")


def perplexity(
    source: Any, weight_format: WeightFormat, tokens: list[int], properties: Mapping[str, str] = F32
) -> float:
    compiled = ov.Core().compile_model(build_decoder(source, weight_format), "CPU", dict(properties))
    request = compiled.create_infer_request()
    request.infer(
        {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, len(tokens)), np.int64),
            "position_ids": np.arange(len(tokens), dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
    )
    logits = request.get_tensor("logits").data[0].astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    logprobs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return math.exp(-float(logprobs[np.arange(len(tokens) - 1), tokens[1:]].mean()))


@pytest.fixture(scope="module")
def tokens(prepared: PreparedDecoder) -> list[int]:
    return prepared.load_tokenizer().encode(TEXT.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def exact(smollm2_gguf: Path, tokens: list[int]) -> float:
    return perplexity(GgufModel(smollm2_gguf), "f32", tokens)


def test_the_text_is_language_to_the_model(exact: float, tokens: list[int]) -> None:
    assert len(tokens) > 500
    assert 1 < exact < 40


def test_8_bits_are_within_one_percent(smollm2_gguf: Path, tokens: list[int], exact: float) -> None:
    assert perplexity(Floats(GgufModel(smollm2_gguf)), "int8", tokens) == pytest.approx(exact, rel=0.01)


def test_rounded_activations_are_within_one_percent_too(
    smollm2_gguf: Path, tokens: list[int], exact: float
) -> None:
    found = perplexity(Floats(GgufModel(smollm2_gguf)), "int8", tokens, ROUNDED)
    assert found == pytest.approx(exact, rel=0.01)


def test_a_file_of_4_bits_loses_nothing(smollm2_gguf: Path, tokens: list[int], exact: float) -> None:
    """The default leaves the file's own blocks as they are."""
    assert perplexity(GgufModel(smollm2_gguf), "int8", tokens) == pytest.approx(exact, rel=1e-4)

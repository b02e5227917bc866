"""Memory requirements of the engines, as reported to planners."""

from __future__ import annotations

from typing import Any

import pytest
from sage_infer.schemas import ModelDescriptor
from sage_infer_openvino.memory import decoder_memory, encoder_memory

MODEL = ModelDescriptor(model_id="m", model_type="llm", model_path="/nowhere")


@pytest.mark.parametrize(
    ("options", "weights", "kv"),
    [
        ({}, (None, 8.5), 32),
        ({"weight_format": "f32", "precision": "bf16"}, (32, 32), 16),
        ({"weight_format": "exact", "kv_precision": "u8"}, (None, None), 9.5),
        ({"kv_schema": {"preset": "int8"}}, (None, 8.5), 9.5),
    ],
)
def test_decoders(options: dict[str, Any], weights: tuple[float | None, float | None], kv: float) -> None:
    found = decoder_memory(model=MODEL, options=options, hardware="cpu")
    assert (found.least_weight_bits, found.most_weight_bits) == weights
    assert found.kv_bits == kv


def test_steps_are_the_options() -> None:
    assert decoder_memory(model=MODEL, options={"step_tokens": 64}, hardware="cpu").step_tokens == 64
    assert encoder_memory(model=MODEL, options={"token_budget": 256}, hardware="cpu").step_tokens == 256

"""Sizes of models, from the headers of their files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sage_infer.errors import ModelFileError
from sage_infer_planning.model_shape import read_shape


@pytest.mark.parametrize(
    ("config", "message"),
    [("{", "cannot be read"), ("{}", "does not say how large the model is .*set memory_gb")],
)
def test_a_folder_that_does_not_say_its_size_is_refused(tmp_path: Path, config: str, message: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelFileError, match=message):
        read_shape(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ModelFileError, match=r"config\.json cannot be read: .*named pipe"):
        read_shape(tmp_path)


def test_weights_are_as_large_as_their_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "distilbert", "dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072,'
        ' "vocab_size": 30522, "max_position_embeddings": 512}'
    )
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    shape = read_shape(tmp_path)
    assert (shape.stored_bytes, shape.causal, shape.layers, shape.kv_bytes_per_token(16)) == (
        1000,
        False,
        6,
        0,
    )

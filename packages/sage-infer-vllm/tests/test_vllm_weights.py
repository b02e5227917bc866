"""The identity of a model's weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from sage_infer.errors import ModelFileError
from sage_infer_vllm.models.weights import content_id


def test_copies_have_one_identity_and_changed_weights_another(tmp_path: Path) -> None:
    model, copy = tmp_path / "model", tmp_path / "copy"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model-1.safetensors").write_bytes(b"one")
    (model / "model-2.safetensors").write_bytes(b"two")
    shutil.copytree(model, copy)
    assert content_id(copy) == content_id(model)
    (copy / "README.md").write_text("not a weight")
    assert content_id(copy) == content_id(model)
    (copy / "model-1.safetensors").write_bytes(b"onetwo")
    (copy / "model-2.safetensors").write_bytes(b"")  # the same bytes in other files
    assert content_id(copy) != content_id(model)
    (model / "config.json").write_text('{"rope_theta": 1}')
    assert content_id(model) != content_id(copy)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "nothing")
    with pytest.raises(ModelFileError, match=r"cannot be read .*nothing|cannot be read .*model\.safetensors"):
        content_id(tmp_path)

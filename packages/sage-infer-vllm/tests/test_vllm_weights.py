"""The identities of a model's weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from sage_infer.errors import ModelFileError
from sage_infer.sdk import record_source
from sage_infer_vllm.models.weights import weight_ids


def write_tensors(path: Path, **tensors: bytes) -> None:
    """A safetensors file with tensors of bytes."""
    header, at = {}, 0
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(tensors.values()))


def test_copies_have_one_identity_and_changed_weights_another(tmp_path: Path) -> None:
    model, copy = tmp_path / "model", tmp_path / "copy"
    model.mkdir()
    (model / "config.json").write_text("{}")
    write_tensors(model / "model-1.safetensors", a=b"one")
    write_tensors(model / "model-2.safetensors", b=b"two")
    shutil.copytree(model, copy)
    (copy / "README.md").write_text("not a weight")
    (copy / "model-2.safetensors").unlink()
    write_tensors(copy / "model-1.safetensors", b=b"two", a=b"one")  # the same tensors in one file
    assert weight_ids(copy) == weight_ids(model)
    write_tensors(copy / "model-1.safetensors", b=b"two", a=b"six")
    assert weight_ids(copy).weights_id != weight_ids(model).weights_id
    assert weight_ids(copy).content != weight_ids(model).content
    before = weight_ids(model)
    (model / "config.json").write_text('{"rope_theta": 1}')
    assert weight_ids(model).weights_id == before.weights_id
    assert weight_ids(model).content != before.content


def test_weights_that_are_not_safetensors_have_no_id_across_engines(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"one")
    before = weight_ids(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"two")
    assert weight_ids(tmp_path).weights_id == before.weights_id == ""
    assert weight_ids(tmp_path).content != before.content


def test_a_converted_folder_has_the_id_of_its_source(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    write_tensors(tmp_path / "model.safetensors", a=b"one")
    own = weight_ids(tmp_path).weights_id
    record_source(tmp_path, "source")
    assert weight_ids(tmp_path).weights_id == "source"
    write_tensors(tmp_path / "model.safetensors", a=b"two")
    assert weight_ids(tmp_path).weights_id not in ("source", own)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "nothing")
    with pytest.raises(
        ModelFileError, match=r"model\.safetensors.* cannot be read|cannot be read .*config\.json"
    ):
        weight_ids(tmp_path)

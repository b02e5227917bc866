"""Model files with anything in them are read, or refused as model files: nothing else comes out of a reader.

Files are changed in their heads, where numbers, names, shapes and offsets are. SAGE_FUZZ_EXAMPLES makes it longer.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_models import CASES, write_folder, write_gguf
from hypothesis import given
from hypothesis import strategies as st
from openvino_fuzz import FUZZ, JSON, REFUSED, linked
from sage_infer.errors import ModelFileError
from sage_infer_openvino.models.gguf.model import GgufModel
from sage_infer_openvino.models.hf_model import HfModel
from sage_infer_openvino.models.tokenizer import TextTokenizer

pytestmark = pytest.mark.filterwarnings(
    "error::RuntimeWarning"
)  # a number of a file that is infinite in a graph


def read(path: Path) -> None:
    """All that preparing reads of a model, but for the graph."""
    model: GgufModel | HfModel
    if path.is_dir():
        model = HfModel(path)
        if (path / "tokenizer.json").exists():
            TextTokenizer.from_folder(path)
    else:
        model = GgufModel(path)
        TextTokenizer.from_gguf(path)
    for name in ("embed", "final_norm", "layers.0.q", "layers.0.down"):
        model.weight(name).dense()
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        model.config.inverse_frequencies()
        model.config.inverse_frequencies(local=True)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return Path(write_gguf(CASES["llama"], tmp_path_factory.mktemp("gguf") / "m.gguf")).read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_folder(CASES["llama"], tmp_path_factory.mktemp("hf") / "m"))


def refused_or_read(path: Path) -> None:
    try:
        read(path)
    except REFUSED as error:
        assert str(path.name if path.is_file() else path) in str(error), "the error does not name the file"  # noqa: PT017


BYTES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8)


@FUZZ
@given(changes=BYTES, cut=st.none() | st.floats(0, 1))
def test_gguf(tmp_path: Path, gguf: bytes, changes: list[tuple[float, int]], cut: float | None) -> None:
    data = bytearray(gguf)
    head = min(len(data), 6000)
    for at, byte in changes:
        data[int(at * head)] = byte
    if cut is not None:
        del data[int(cut * len(data)) :]
    refused_or_read(_written(tmp_path / "changed.gguf", bytes(data)))


KEYS = st.sampled_from(
    ["hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
     "intermediate_size", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "max_position_embeddings",
     "eos_token_id", "bos_token_id", "tie_word_embeddings", "hidden_act", "model_type", "architectures",
     "text_config", "quantization_config", "sliding_window", "layer_types", "original_max_position_embeddings"]
)  # fmt: skip


@FUZZ
@given(changes=st.dictionaries(KEYS, JSON, min_size=1, max_size=3))
def test_config_of_a_folder(tmp_path: Path, folder: Path, changes: dict[str, Any]) -> None:
    changed = linked(folder, tmp_path / "changed", leave_out="config.json")
    config = json.loads((folder / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | changes))
    refused_or_read(changed)


@FUZZ
@given(data=st.data())
def test_safetensors(tmp_path: Path, folder: Path, data: st.DataObject) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack_from("<Q", whole)
    header = json.loads(whole[8 : 8 + length])
    name = data.draw(st.sampled_from(sorted(header)))
    part = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "all", "bytes"]))
    if part == "bytes":
        text = bytearray(whole[8 : 8 + length])
        for at, byte in data.draw(BYTES):
            text[int(at * length)] = byte
        new = bytes(text)
    else:
        if part == "all":
            header[name] = data.draw(JSON)
        else:
            header[name] = {
                **header[name],
                part: data.draw(JSON | st.lists(st.integers(-500, 500), max_size=3)),
            }
        new = json.dumps(header).encode()
    changed = linked(folder, tmp_path / "changed", leave_out="model.safetensors")
    _written(changed / "model.safetensors", struct.pack("<Q", len(new)) + new + whole[8 + length :])
    refused_or_read(changed)


CHANGED_WEIGHTS: dict[str, Callable[[bytearray], None]] = {
    "NaN": lambda data: data.__setitem__(slice(-4, None), struct.pack("<f", float("nan"))),
    "infinite": lambda data: data.__setitem__(slice(-4, None), struct.pack("<f", float("inf"))),
}


@pytest.mark.parametrize("what", CHANGED_WEIGHTS)
def test_weights_that_are_no_numbers(tmp_path: Path, gguf: bytes, what: str) -> None:
    data = bytearray(gguf)
    tensors = GgufModel(_written(tmp_path / "whole.gguf", bytes(gguf))).file.tensors
    norm = tensors["output_norm.weight"]
    piece = data[norm.offset : norm.offset + norm.nbytes]
    CHANGED_WEIGHTS[what](piece)
    data[norm.offset : norm.offset + norm.nbytes] = piece
    path = _written(tmp_path / "m.gguf", bytes(data))
    with pytest.raises(
        ModelFileError, match=r"m\.gguf: weight output_norm\.weight has values that are not finite"
    ):
        read(path)


def _written(path: Path, data: bytes) -> Path:
    """A new file: truncating one that a reader has mapped would be a bus error."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path

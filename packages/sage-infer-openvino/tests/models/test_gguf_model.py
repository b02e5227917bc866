"""GGUF files: the same numbers as the ``gguf`` package, and a clear error for every damaged file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from family_models import CASES, write_gguf
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as GgmlType
from gguf.quants import dequantize
from sage_infer.errors import ModelFileError, SageInferError, UnsupportedFeature
from sage_infer.sdk.gguf import TENSOR_TYPES
from sage_infer_openvino.models.decoder_weights import DecoderConfig, GroupedWeight
from sage_infer_openvino.models.gguf.file import GgufFile
from sage_infer_openvino.models.gguf.model import GgufModel, gguf_name
from sage_infer_openvino.models.model_files import find_model_file
from sage_infer_openvino.models.prepare import prepare_decoder

Write = Callable[..., Path]


def test_metadata_and_tensors_equal_the_gguf_packages(tiny_gguf: Write) -> None:
    path = tiny_gguf(GgmlType.Q4_1)
    ours, theirs = GgufFile(path), gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata == fields
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        found = ours.tensors[tensor.name]
        assert found.shape == tuple(reversed(tensor.shape.tolist()))
        assert np.array_equal(ours.raw(found), np.array(tensor.data).reshape(-1).view(np.uint8))


def test_the_sizes_of_tensor_types_equal_the_gguf_packages() -> None:
    known = {kind.value: (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
    assert {number: known[number] for number in TENSOR_TYPES if number in known} == {
        number: sizes for number, sizes in TENSOR_TYPES.items() if number in known
    }


@pytest.mark.parametrize(
    "kind", [GgmlType[name] for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")]
)
def test_weights_equal_dequantize_bit_for_bit(tiny_gguf: Write, kind: GgmlType) -> None:
    model = GgufModel(tiny_gguf(kind))
    tensor = model.file.tensors["blk.1.ffn_down.weight"]
    rows = model.file.raw(tensor).reshape(tensor.shape[0], -1)
    if kind in (GgmlType.F32, GgmlType.F16):
        rows = rows.view(np.float32 if kind == GgmlType.F32 else np.float16)
    expected = dequantize(rows, kind)
    weight = model.weight("layers.1.down")
    assert np.array_equal(weight.dense(), expected)
    if isinstance(weight, GroupedWeight):
        quants, scale, zero_point = weight.affine()
        shifted = quants - (0 if zero_point is None else zero_point[..., None])
        again = (shifted * scale[..., None]).reshape(weight.shape)
        assert np.abs(again - expected).max() <= 2e-7 * np.abs(expected).max()


def test_a_group_without_scale_keeps_its_minimum() -> None:
    quants = np.full((1, 1, 32), 5, np.uint8)
    weight = GroupedWeight(4, quants, np.zeros((1, 1), np.float32), np.full((1, 1), 0.25, np.float32))
    moved, scale, zero_point = weight.affine()
    assert zero_point is not None
    assert np.array_equal(
        ((moved - zero_point[..., None]) * scale[..., None]).reshape(1, 32), np.full((1, 32), 0.25)
    )


def test_q_and_k_rows_are_put_back_in_order(tiny_gguf: Write) -> None:
    """llama.cpp's converter writes the rows of a head as 0, h/2, 1, h/2 + 1, …"""
    rows = np.repeat(np.arange(64, dtype=np.float32)[:, None], 64, 1)
    written = rows.reshape(2, 2, 16, 64).swapaxes(1, 2).reshape(64, 64)
    path = tiny_gguf(layers=1)
    model = GgufModel(path)
    raw = model.file.tensors[gguf_name("layers.0.q")]
    data = bytearray(path.read_bytes())
    data[raw.offset : raw.offset + raw.nbytes] = written.tobytes()
    path.with_name("permuted.gguf").write_bytes(data)
    weight = GgufModel(path.with_name("permuted.gguf")).weight("layers.0.q")
    assert np.array_equal(weight.dense(), rows)


def test_config(tiny_gguf: Write) -> None:
    config = GgufModel(
        tiny_gguf(metadata={"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0})
    ).config
    assert (config.num_layers, config.hidden_size, config.num_heads, config.num_kv_heads) == (2, 64, 2, 1)
    assert (config.head_dim, config.intermediate_size, config.vocab_size) == (32, 128, 261)
    assert (config.max_sequence_length, config.tied_embeddings, config.eos_token_ids) == (128, True, (259,))
    assert config.rope_factors == (4.0,) * 16
    assert DecoderConfig.from_dict(config.to_dict()) == config


def test_every_cut_is_reported(tiny_gguf: Write, tmp_path: Path) -> None:
    """A copy that stopped anywhere, in the metadata or in the tensors, is a ModelFileError of one line."""
    data = tiny_gguf(layers=1).read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, 4000, 7), *range(4000, len(data), 997), len(data) - 1]:
        cut.write_bytes(data[:length])
        with pytest.raises(ModelFileError) as caught:
            GgufModel(cut)
        assert "\n" not in str(caught.value)
    assert f"{len(data):,}" in str(caught.value)
    assert f"{len(data) - 1:,}" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"hello, this is a text\n", "not a GGUF file"),
        (b"GGUF" + (9).to_bytes(4, "little") + bytes(16), "version 9"),
        (b"GGUF" + (3).to_bytes(4, "little") + (2**60).to_bytes(8, "little") * 2, "truncated or corrupt"),
    ],
)
def test_files_that_are_no_gguf(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=says):
        GgufModel(path)
    with pytest.raises(ModelFileError, match="cannot be read"):
        GgufModel(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"architecture": "mamba"}, UnsupportedFeature, r"'mamba' is not supported.*supported: llama"),
        ({"metadata": {"llama.expert_count": 8}}, UnsupportedFeature, "mixture of experts"),
        ({"metadata": {"llama.rope.dimension_count": 8}}, UnsupportedFeature, "partial rotary embedding"),
        ({"metadata": {"llama.rope.scaling.type": "dynamic"}}, UnsupportedFeature, "dynamic"),
        ({"metadata": {"llama.block_count": None}}, ModelFileError, "llama.block_count is None"),
        (
            {"metadata": {"llama.embedding_length": 128}},
            ModelFileError,
            "rows of 64, expected embedding_length 128",
        ),
    ],
)
def test_models_that_are_refused(
    tiny_gguf: Write, arguments: dict, error: type[SageInferError], says: str
) -> None:
    with pytest.raises(error, match=says):
        GgufModel(tiny_gguf(**arguments))


def test_missing_tensor_is_named(tiny_gguf: Write) -> None:
    model = GgufModel(tiny_gguf(metadata={"llama.block_count": 3}))
    with pytest.raises(ModelFileError, match=r"blk\.2\.attn_q\.weight"):
        model.weight("layers.2.q")


@pytest.mark.parametrize("heads", [2, 32])
def test_rows_that_are_not_those_of_the_heads(tiny_gguf: Write, heads: int) -> None:
    model = GgufModel(
        tiny_gguf(metadata={"llama.attention.head_count": heads, "llama.attention.head_count_kv": 2})
    )
    with pytest.raises(ModelFileError, match=r"blk\.0\.attn_k\.weight has 32 rows, expected 2 heads of"):
        model.weight("layers.0.k")


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """A model in parts, as ``gguf-split`` writes it."""
    (tmp_path / "parts").mkdir()
    write_gguf(CASES["qwen3"], tmp_path / "parts" / "q.gguf", split_max_tensors=13)
    return sorted((tmp_path / "parts").iterdir())


def test_a_model_in_parts_is_one(parts: list[Path], tmp_path: Path) -> None:
    assert [part.name for part in parts] == [f"q-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    whole = write_gguf(CASES["qwen3"], tmp_path / "q.gguf")
    assert find_model_file(parts[0].parent) == parts[0]
    one, many = (prepare_decoder(path, cache_dir=tmp_path / "cache") for path in (whole, parts[0]))
    assert many.fingerprint == one.fingerprint
    parts[2].touch()
    assert prepare_decoder(parts[0], cache_dir=tmp_path / "cache").folder != many.folder


def test_parts_that_do_not_make_a_model(parts: list[Path], tmp_path: Path) -> None:
    first, second, third = parts

    def fails(path: Path, says: str) -> None:
        with pytest.raises(ModelFileError, match=says) as caught:
            prepare_decoder(path, cache_dir=tmp_path / "cache")
        assert "\n" not in str(caught.value)

    fails(second, "is part 2 of 3 of a model; specify the first part, q-00001-of-00003.gguf")
    kept = second.read_bytes()
    second.write_bytes(third.read_bytes())
    fails(first, "q-00003-of-00003.gguf: repeats tensors of an earlier part")
    second.write_bytes(kept[:-1])
    fails(first, "q-00002-of-00003.gguf: truncated")
    second.unlink()
    fails(first.parent, "q-00002-of-00003.gguf: not found; the model has 3 parts")
    fails(first.rename(first.with_name("renamed.gguf")), "rename it")

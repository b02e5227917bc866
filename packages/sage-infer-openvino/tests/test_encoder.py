"""The torch-free sentence encoder: the same vectors as transformers, whatever the batch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sage_infer.errors import InvalidRequest, ModelFileError, SageInferError, UnsupportedFeature
from sage_infer_openvino.encoder import Encoder, read_encoder_config

Reference = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def encoder(minilm_dir: Path) -> Encoder:
    return Encoder(minilm_dir)


@pytest.fixture
def folder(minilm_dir: Path, tmp_path: Path) -> Path:
    """A copy of the model's folder whose configuration a test may change; the weights are linked."""
    target = tmp_path / "minilm"
    shutil.copytree(minilm_dir, target, ignore=shutil.ignore_patterns("*.safetensors"))
    (target / "model.safetensors").symlink_to(minilm_dir / "model.safetensors")
    return target


def test_vectors_equal_transformers(encoder: Encoder, reference: Reference) -> None:
    cases = reference("vectors_minilm.json")
    vectors, counts = encoder.embed([case["text"] for case in cases], truncate=True)
    expected = np.array([case["vector"] for case in cases])
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(cases), encoder.dimension)
    assert counts == [case["tokens"] for case in cases]
    assert (vectors * expected).sum(1).min() > 0.99999
    assert np.abs(vectors - expected).max() < 2e-5


def test_order_and_batches_do_not_matter(minilm_dir: Path, encoder: Encoder) -> None:
    texts = ["word " * (1 + 7 * (i * 5 % 11)) for i in range(11)] + ["x"]
    together, counts = encoder.embed(texts)
    alone = np.concatenate([encoder.embed([text])[0] for text in texts])
    assert np.abs(together - alone).max() < 1e-5
    small, _ = Encoder(minilm_dir, token_budget=1, threads=1).embed(texts)
    assert np.abs(small - alone).max() < 1e-5
    assert max(counts) == 73


def test_token_ids_are_taken_as_they_are(encoder: Encoder) -> None:
    (ids,) = encoder.tokenize(["Hello world"])
    assert (ids[0], ids[-1]) == (101, 102)
    vectors, counts = encoder.embed(["Hello world", ids])
    assert np.abs(vectors[0] - vectors[1]).max() < 1e-6
    assert counts == [4, 4]
    assert encoder.embed([])[0].shape == (0, encoder.dimension)


def test_long_inputs_are_refused_or_cut(encoder: Encoder) -> None:
    long = "a " * 300
    with pytest.raises(InvalidRequest, match="input 1 has 302 tokens, but this model takes 256"):
        encoder.embed(["short", long])
    _, counts = encoder.embed([long, [101] * 400], truncate=True)
    assert counts == [256, 256]
    # The last token of a cut text is still the separator.
    assert encoder.tokenize([long], truncate=True)[0][-1] == 102


@pytest.mark.parametrize(
    ("ids", "says"), [([], "empty list"), ([1, 30522], "outside 0 to 30521"), ([-1], "outside")]
)
def test_wrong_token_ids(encoder: Encoder, ids: list[int], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        encoder.embed([ids])


def change(path: Path, **values: Any) -> None:
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, **values}))


def test_first_token_pooling_without_normalization(folder: Path) -> None:
    change(folder / "1_Pooling" / "config.json", pooling_mode_mean_tokens=False, pooling_mode_cls_token=True)
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:2]))
    config = read_encoder_config(folder)
    assert (config.bert.pooling, config.bert.normalize, config.max_sequence_length) == ("cls", False, 256)
    (vector,), _ = Encoder(folder).embed(["Hello world"])
    assert abs(np.linalg.norm(vector) - 1) > 0.1


def test_a_plain_bert_folder_is_pooled_by_mean(folder: Path) -> None:
    (folder / "modules.json").unlink()
    (folder / "sentence_bert_config.json").unlink()
    config = read_encoder_config(folder)
    assert (config.bert.pooling, config.bert.normalize, config.max_sequence_length) == ("mean", False, 512)


@pytest.mark.parametrize(
    ("file", "values", "error", "says"),
    [
        (
            "config.json",
            {"model_type": "xlm-roberta"},
            UnsupportedFeature,
            "'xlm-roberta' is not supported.*bert",
        ),
        ("config.json", {"hidden_act": "swiglu"}, UnsupportedFeature, "'swiglu'"),
        ("config.json", {"hidden_size": None}, ModelFileError, "config.json: a BERT dimension"),
        (
            "1_Pooling/config.json",
            {"pooling_mode_max_tokens": True},
            UnsupportedFeature,
            "max_tokens, mean_tokens",
        ),
    ],
)
def test_folders_that_are_refused(
    folder: Path, file: str, values: dict[str, Any], error: type[SageInferError], says: str
) -> None:
    change(folder / file, **values)
    with pytest.raises(error, match=says):
        Encoder(folder)


def test_missing_files_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"model\.safetensors: cannot be read"):
        Encoder(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelFileError, match=r"tokenizer\.json: not found"):
        Encoder(folder)

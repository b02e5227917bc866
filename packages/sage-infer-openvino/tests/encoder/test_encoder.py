"""The torch-free encoder: the vectors and scores of sentence-transformers, in any batch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_toy import (
    DOCUMENTS,
    EMBEDDERS,
    QUERY,
    RERANKERS,
    TEXTS,
    write_encoder,
    write_json,
    write_safetensors,
)
from openvino_toy import DATA
from sage_infer.errors import (
    CapabilityMismatch,
    ContextLengthExceeded,
    InvalidRequest,
    ModelFileError,
    SageInferError,
    UnsupportedFeature,
)
from sage_infer_openvino.device import compute_precisions
from sage_infer_openvino.encoder.config import VectorHead, read_encoder_config
from sage_infer_openvino.encoder.encoder import Encoder
from sage_infer_openvino.models.safetensors_file import SafetensorsFolder
from sage_infer_openvino.ov_runtime import ov
from tokenizers import Tokenizer

Reference = Callable[[str], list[dict[str, Any]]]

RECORDED = json.loads((DATA / "encoders.json").read_text(encoding="utf-8"))
"""What sentence-transformers gave; ``data/make_encoder_reference.py`` wrote it."""


def embed(encoder: Encoder, inputs: Sequence[str | Sequence[int]], **options: Any) -> np.ndarray:
    return encoder.compute(encoder.tokenize(inputs, **options)).copy()


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
    inputs = encoder.tokenize([case["text"] for case in cases], truncate=True)
    assert [len(item) for item in inputs] == [case["tokens"] for case in cases]
    vectors = encoder.compute(inputs)
    expected = np.array([case["vector"] for case in cases])
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(cases), encoder.dimension)
    assert (vectors * expected).sum(1).min() > 0.99999
    assert np.abs(vectors - expected).max() < 2e-5


@pytest.mark.parametrize("name", EMBEDDERS)
def test_families_poolings_and_modules(name: str, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / name, **EMBEDDERS[name])
    encoder = Encoder(folder, prompt="")
    expected = np.array(RECORDED["texts"][name])
    assert encoder.dimension == expected.shape[1]
    together = embed(encoder, TEXTS)
    assert np.abs(together - expected).max() < 5e-6
    alone = np.concatenate([embed(encoder, [text]) for text in TEXTS])
    assert np.abs(together - alone).max() < 5e-6


def test_texts_are_tokenized_in_parts_and_never_beyond_their_limit(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[str]] = []

    class Tokenizer:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def encode_batch_fast(self, texts: list[str]) -> Any:
            given.append(texts)
            return self._inner.encode_batch_fast(texts)

    monkeypatch.setattr(encoder, "_tokenizer", Tokenizer(encoder._tokenizer))
    monkeypatch.setattr(encoder, "_cutting_tokenizer", Tokenizer(encoder._cutting_tokenizer))
    one = "x" * 5_000_000  # for the tokenizer a single unknown word
    with pytest.raises(ContextLengthExceeded, match="input 1 has 5000000 characters"):
        encoder.tokenize(["a", one])
    assert given == []
    inputs = encoder.tokenize(["a"] * 300 + [[101, 102], one], truncate=True)
    assert len(inputs) == 302
    assert max(map(len, given)) <= 64
    assert max(len(text) for texts in given for text in texts) < 200_000
    with pytest.raises(ContextLengthExceeded, match="input 3 has"):
        encoder.tokenize(["a", "b", "c", "word " * 1000, *["a"] * 1000])
    assert len(given[-1]) <= 64, "texts were tokenized after the first one that is too long"


def test_prompts(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "e5", **EMBEDDERS["xlm-roberta"])
    expected = np.array(RECORDED["prompted"]["xlm-roberta"])
    named = Encoder(folder, prompt_name="query")
    assert np.abs(embed(named, TEXTS) - expected).max() < 5e-6
    assert np.abs(embed(Encoder(folder, prompt="query: "), TEXTS) - expected).max() < 5e-6
    assert Encoder(folder).prompt == "the : "  # the model's default
    (ids,) = Encoder(folder, prompt="").tokenize([TEXTS[0]])
    assert list(named.tokenize([ids.ids])[0].ids) == list(ids.ids)  # token ids have no prompt
    with pytest.raises(InvalidRequest, match="no prompt 'question'; available: passage, query"):
        Encoder(folder, prompt_name="question")
    with pytest.raises(InvalidRequest, match="both set"):
        Encoder(folder, prompt="x", prompt_name="query")


@pytest.mark.parametrize("name", RERANKERS)
def test_scores_equal_those_of_the_cross_encoder(name: str, tmp_path: Path) -> None:
    encoder = Encoder(write_encoder(tmp_path / name, **RERANKERS[name]), reranker=True)
    expected = np.array(RECORDED["scores"][name])
    pairs = encoder.tokenize_pairs(QUERY, DOCUMENTS)
    assert max(map(len, pairs)) == encoder.max_sequence_length  # one of them was cut
    scores = encoder.compute(pairs)[:, 0].copy()
    assert np.abs(scores - expected).max() < 5e-6
    alone = np.concatenate([encoder.compute([pair])[:, 0].copy() for pair in pairs])
    assert np.abs(scores - alone).max() < 5e-6


def test_token_types_as_the_tokenizer_has_them(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "bert", **RERANKERS["bert"])
    pairs = Encoder(folder, reranker=True).tokenize_pairs("cat", ["dog"])
    assert pairs[0].types == [0, 0, 0, 1, 1]
    change(folder / "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])
    assert Encoder(folder, reranker=True).tokenize_pairs("cat", ["dog"])[0].types is None


def test_token_ids_are_taken_as_they_are(encoder: Encoder) -> None:
    (ids,) = encoder.tokenize(["Hello world"])
    assert (ids.ids[0], ids.ids[-1], len(ids)) == (101, 102, 4)
    vectors = embed(encoder, ["Hello world", ids.ids])
    assert np.abs(vectors[0] - vectors[1]).max() < 1e-6


def test_long_inputs_are_refused_or_cut(encoder: Encoder) -> None:
    long = "a " * 300
    with pytest.raises(
        ContextLengthExceeded, match="input 1 has 302 tokens, but the limit of this model is 256"
    ):
        encoder.tokenize(["short", long])
    cut = encoder.tokenize([long, [101] * 400], truncate=True)
    assert [len(item) for item in cut] == [256, 256]
    assert cut[0].ids[-1] == 102  # the last token of a cut text is still the separator


@pytest.mark.parametrize(
    ("ids", "says"), [([], "empty list"), ([1, 30522], "outside 0 to 30521"), ([-1], "outside")]
)
def test_wrong_token_ids(encoder: Encoder, ids: list[int], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        encoder.tokenize([ids])


def change(path: Path, **values: Any) -> None:
    data = json.loads(path.read_text()) if path.is_file() else {}
    write_json(path, {**data, **values})


def test_a_plain_bert_folder_is_pooled_by_mean(folder: Path) -> None:
    (folder / "modules.json").unlink()
    (folder / "sentence_bert_config.json").unlink()
    config = read_encoder_config(folder)
    assert isinstance(config.head, VectorHead)
    assert (config.head.pooling, config.head.steps, config.max_sequence_length) == (("mean",), (), 512)


@pytest.mark.parametrize(
    ("file", "values", "error", "says"),
    [
        ("config.json", {"model_type": "mpnet"}, UnsupportedFeature, "'mpnet' is not supported.*xlm-roberta"),
        ("config.json", {"hidden_act": "swiglu"}, UnsupportedFeature, "'swiglu'"),
        (
            "config.json",
            {"hidden_size": None},
            ModelFileError,
            r"config\.json: [a-z_]+ is missing or not a number",
        ),
        ("config.json", {"position_embedding_type": "relative_key"}, UnsupportedFeature, "'relative_key'"),
        (
            "1_Pooling/config.json",
            {"pooling_mode_first_three": True},
            UnsupportedFeature,
            "first_three is not",
        ),
        (
            "sentence_bert_config.json",
            {"max_seq_length": "many"},
            ModelFileError,
            "maximum length is not a number",
        ),
        ("sentence_bert_config.json", {"max_seq_length": -5}, ModelFileError, "maximum length is -5"),
        ("config.json", {"max_position_embeddings": 0}, ModelFileError, "max_position_embeddings is 0"),
        ("config.json", {"num_attention_heads": 0}, ModelFileError, "num_attention_heads is 0"),
        ("config.json", {"num_attention_heads": 7}, ModelFileError, "not a multiple of the 7 heads"),
        ("config.json", {"num_hidden_layers": 2**40}, ModelFileError, "num_hidden_layers is 1099511627776"),
        (
            "config.json",
            {"hidden_size": float("inf")},
            ModelFileError,
            "hidden_size is missing or not a number",
        ),
        ("config.json", {"layer_norm_eps": -1}, ModelFileError, "layer_norm_eps is -1"),
        ("config.json", {"hidden_act": ["gelu"]}, UnsupportedFeature, "activation"),
        ("1_Pooling/config.json", {"pooling_mode": [["mean"]]}, UnsupportedFeature, "pooling"),
        (
            "config_sentence_transformers.json",
            {"prompts": {"a": "b"}, "default_prompt_name": ["a"]},
            ModelFileError,
            "is not one of its prompts",
        ),
        (
            "config_sentence_transformers.json",
            {"default_prompt_name": "query"},
            ModelFileError,
            "'query' is not one of its prompts",
        ),
        (
            "config_sentence_transformers.json",
            {"prompts": {"query": 3}},
            ModelFileError,
            "not an object of Unicode strings",
        ),
        (
            "config_sentence_transformers.json",
            {"prompts": {"a": "\ud800"}},
            ModelFileError,
            "Unicode strings",
        ),
        ("tokenizer_config.json", {"model_input_names": 5}, ModelFileError, "model_input_names is 5"),
        ("config.json", {"pad_token_id": 2**20}, ModelFileError, "pad_token_id is 1048576"),
        ("config.json", {"vocab_size": 99999}, ModelFileError, r"word_embeddings.*expected \[99999, 384\]"),
        ("config.json", {"max_position_embeddings": 9999}, ModelFileError, "position_embeddings"),
    ],
)
def test_folders_that_are_refused(
    folder: Path, file: str, values: dict[str, Any], error: type[SageInferError], says: str
) -> None:
    change(folder / file, **values)
    with pytest.raises(error, match=says):
        Encoder(folder)


def test_prompts_excluded_from_pooling_are_rejected(folder: Path) -> None:
    change(folder / "1_Pooling" / "config.json", include_prompt=False)
    assert Encoder(folder).prompt == ""
    with pytest.raises(UnsupportedFeature, match="excludes its prompt from pooling"):
        Encoder(folder, prompt="query: ")


def test_modules_that_are_refused(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    write_json(
        folder / "modules.json", [*modules, {"type": "sentence_transformers.models.LSTM", "path": "3"}]
    )
    with pytest.raises(UnsupportedFeature, match="module 'LSTM' is not supported"):
        Encoder(folder)
    for outside in ("../other", "/etc"):
        write_json(
            folder / "modules.json", [{"type": "sentence_transformers.models.Pooling", "path": outside}]
        )
        with pytest.raises(ModelFileError, match="outside of the folder"):
            Encoder(folder)


@pytest.mark.parametrize(
    ("values", "error", "says"),
    [
        ({"use_residual": True}, UnsupportedFeature, "residual"),
        ({"activation_function": "mine.Swish"}, UnsupportedFeature, r"activation 'mine\.Swish'"),
        ({"out_features": None}, ModelFileError, "out_features is missing"),
        ({"out_features": float("inf")}, ModelFileError, "out_features is missing or not a number"),
        ({"out_features": -1}, ModelFileError, "out_features is -1"),
        ({"module_input_name": ["x"]}, UnsupportedFeature, "input other than"),
        ({"out_features": 7}, ModelFileError, r"linear\.weight has the shape \[10, 24\], expected \[7, 24\]"),
    ],
)
def test_dense_modules_that_are_refused(
    tmp_path: Path, values: dict[str, Any], error: type[SageInferError], says: str
) -> None:
    folder = write_encoder(tmp_path / "dense", **EMBEDDERS["dense"])
    change(folder / "2_Dense" / "config.json", **values)
    with pytest.raises(error, match=says):
        Encoder(folder)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("embeddings.word_embeddings.weight", np.zeros((5, 24))),
        ("embeddings.token_type_embeddings.weight", np.zeros((1, 24))),
        ("embeddings.LayerNorm.weight", np.ones(1)),
        ("encoder.layer.1.attention.self.query.weight", np.zeros((24, 23))),
        ("encoder.layer.1.attention.self.key.bias", np.zeros(1)),
        ("encoder.layer.0.attention.output.dense.weight", np.zeros((1, 24))),
        ("encoder.layer.0.output.dense.weight", np.zeros((24, 24, 1))),
        ("encoder.layer.0.intermediate.dense.weight", np.full((40, 24), np.nan)),
        ("pooler.dense.bias", np.full(24, np.inf)),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, name: str, values: np.ndarray) -> None:
    folder = write_encoder(tmp_path / "damaged", **RERANKERS["bert"])
    tensors = SafetensorsFolder(folder)
    whole = {own: tensors.weight(own).dense() for own in tensors.names()}
    (found,) = (own for own in whole if own.endswith(name))
    write_safetensors(folder / "changed", {**whole, found: values.astype(np.float32)})
    (folder / "changed").replace(folder / "model.safetensors")
    with pytest.raises(ModelFileError, match=r"shape|not finite|one token type"):
        Encoder(folder, reranker=True)


def test_tokens_that_only_the_tokenizer_has(tmp_path: Path) -> None:
    """Their rows would be read beyond the end of the embedding."""
    for name, reranker in (("bert", False), ("xlm-roberta", True)):
        folder = write_encoder(tmp_path / name, **(RERANKERS if reranker else EMBEDDERS)[name])
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.add_tokens(["elephant"])
        tokenizer.save(str(folder / "tokenizer.json"))
        encoder = Encoder(folder, reranker=reranker)
        tokenize = partial(encoder.tokenize_pairs, "cat") if reranker else encoder.tokenize
        with pytest.raises(InvalidRequest, match=r"input 1 has the token \d+ of the tokenizer"):
            tokenize(["cat", "an elephant"])


def test_token_types_and_texts_without_tokens_of_a_tokenizer(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "types", **RERANKERS["bert"])
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    for piece in tokenizer["post_processor"]["pair"]:
        next(iter(piece.values()))["type_id"] = 7
    write_json(folder / "tokenizer.json", tokenizer)
    with pytest.raises(InvalidRequest, match="token type 7"):
        Encoder(folder, reranker=True).tokenize_pairs("cat", ["dog"])
    del tokenizer["post_processor"]
    write_json(folder / "tokenizer.json", tokenizer)
    with pytest.raises(InvalidRequest, match="input 1 has no tokens"):
        Encoder(folder, reranker=True).tokenize(["cat", ""])


def test_rerankers_that_are_refused(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "three", family="bert", reranker=True, labels=3)
    with pytest.raises(UnsupportedFeature, match="classifier has 3 labels, expected one"):
        Encoder(folder, reranker=True)
    own = folder / "config_sentence_transformers.json"
    write_json(own, {"activation_fn": "torch.nn.modules.activation.Softmax"})
    with pytest.raises(UnsupportedFeature, match=r"Softmax' is not supported.*Sigmoid"):
        Encoder(folder, reranker=True)
    write_json(own, {"prompts": {"query": "q: "}, "default_prompt_name": "query"})
    with pytest.raises(UnsupportedFeature, match="default prompt"):
        Encoder(folder, reranker=True)
    plain = write_encoder(tmp_path / "plain", **EMBEDDERS["bert"])
    with pytest.raises(ModelFileError, match=r"tensor classifier\.weight is missing"):
        Encoder(plain, reranker=True)


def test_missing_files_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"model\.safetensors: cannot be read"):
        Encoder(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelFileError, match=r"tokenizer\.json: not found"):
        Encoder(folder)


def test_a_precision_that_the_device_lacks_is_refused(minilm_dir: Path) -> None:
    """OpenVINO itself would compute in float32 and say nothing."""
    for precision in sorted({"bf16", "f16"} - set(compute_precisions(ov.Core(), "CPU"))):
        with pytest.raises(CapabilityMismatch, match=f"does not support {precision}"):
            Encoder(minilm_dir, precision=precision)

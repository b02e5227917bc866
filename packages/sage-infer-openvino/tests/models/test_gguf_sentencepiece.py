"""SentencePiece vocabularies in GGUF files: ids and text equal those of sentencepiece."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openvino_toy import DATA
from sage_infer.errors import ModelFileError, UnsupportedFeature
from sage_infer_openvino.models.tokenizer import TextTokenizer

Write = Callable[..., Path]
SPACED, PLAIN = json.loads((DATA / "sentencepiece.json").read_text(encoding="utf-8"))


def metadata(vocabulary: dict[str, Any], **changes: Any) -> dict[str, Any]:
    values = {
        "model": "llama",
        "pre": "default",
        "tokens": vocabulary["tokens"],
        "scores": vocabulary["scores"],
        "token_type": vocabulary["types"],
        "add_space_prefix": vocabulary["add_space_prefix"],
        "merges": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "add_bos_token": None,
        **changes,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


@pytest.fixture(scope="module")
def spaced(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    from gguf import GGUFWriter

    path = tmp_path_factory.mktemp("vocabulary") / "spaced.gguf"
    writer = GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(SPACED["tokens"])
    writer.add_token_scores(SPACED["scores"])
    writer.add_token_types(SPACED["types"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return TextTokenizer.from_gguf(path)


@pytest.mark.parametrize("vocabulary", [SPACED, PLAIN], ids=["a space before", "none"])
def test_ids_and_text_equal_sentencepiece(tiny_gguf: Write, vocabulary: dict[str, Any]) -> None:
    tokenizer = TextTokenizer.from_gguf(tiny_gguf(metadata=metadata(vocabulary)))
    for case in vocabulary["texts"]:
        assert tokenizer.encode(case["text"], add_special=False) == case["ids"], case["text"]
        assert tokenizer.decode(case["ids"]) == case["text"]


@given(st.text())
def test_every_text_comes_back(spaced: TextTokenizer, text: str) -> None:
    if any(token in text for token in ("▁", "<s>", "</s>", "<unk>")):
        return  # a written ▁ is a space to SentencePiece, and special tokens are no text
    ids = spaced.encode(text, add_special=False)
    stream = spaced.detokenizer()
    assert stream.push_all(ids) + stream.flush() == text


def test_special_tokens(tiny_gguf: Write) -> None:
    """BOS goes first unless the file says otherwise, as llama.cpp has it for these vocabularies."""
    tokenizer = TextTokenizer.from_gguf(tiny_gguf(metadata=metadata(SPACED)))
    assert tokenizer.encode("Water")[0] == 1
    assert tokenizer.encode("</s>", add_special=False) == [2]
    assert tokenizer.decode([1, *tokenizer.encode("Water", add_special=False), 2]) == "Water"
    without = TextTokenizer.from_gguf(tiny_gguf(metadata=metadata(SPACED, add_bos_token=False)))
    assert without.encode("Water")[0] != 1


def test_phi_3_swallows_the_space_after_its_marks(tiny_gguf: Write) -> None:
    changes = metadata(
        {**SPACED, "tokens": [*SPACED["tokens"], "<|user|>", "<|endoftext|>"]},
        scores=[*SPACED["scores"], -1000.0, -1000.0],
        token_type=[*SPACED["types"], 3, 3],
        add_bos_token=False,
    )
    mark, end = len(SPACED["tokens"]), len(SPACED["tokens"]) + 1

    def ids(architecture: str, text: str) -> list[int]:
        path = tiny_gguf(architecture=architecture, metadata=changes)
        return TextTokenizer.from_gguf(path).encode(text)

    assert ids("phi3", "<|user|>\nthe") == ids("phi3", "<|user|>the") == [mark, *ids("phi3", "the")]
    assert ids("llama", "<|user|>\nthe") != ids("llama", "<|user|>the")
    assert ids("phi3", "<|endoftext|> the") != ids("phi3", "<|endoftext|>the")
    assert ids("phi3", "<|endoftext|>the")[0] == end


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"scores": None}, ModelFileError, "tokenizer.ggml.scores is not one number for each of 600"),
        ({"token_type": [1, 2, 3]}, ModelFileError, "tokenizer.ggml.token_type is not one number"),
        (
            {"model": "t5"},
            UnsupportedFeature,
            "tokenizer.ggml.model 't5' is not supported.*'llama' .SentencePiece",
        ),
    ],
)
def test_broken_vocabularies(
    tiny_gguf: Write, changes: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        TextTokenizer.from_gguf(tiny_gguf(metadata=metadata(SPACED, **changes)))

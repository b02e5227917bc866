"""Steps of a ``tokenizer.json`` cannot fill the memory, and texts on which they fail are rejected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from openvino_toy import toy_tokenizer
from sage_infer.errors import InvalidRequest, ModelFileError
from sage_infer_openvino.models.tokenizer import TextTokenizer, TokenizerMeta
from sage_infer_openvino.models.tokenizer_file import read_tokenizer

A = {"Sequence": {"id": "A", "type_id": 0}}
B = {"Sequence": {"id": "B", "type_id": 0}}


def replace(content: str, **pattern: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def template(copies: int) -> dict[str, Any]:
    return {"type": "TemplateProcessing", "single": [A] * copies, "pair": [A, B], "special_tokens": {}}


def normalizers(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"normalizer": {"type": "Sequence", "normalizers": list(steps)}}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
SPLIT = {"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated", "invert": False}


def written(folder: Path, changes: dict[str, Any]) -> Path:
    data = json.loads(toy_tokenizer().to_json())
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**data, **changes}))
    return path


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (normalizers(*[replace("aa", String="a")] * 40), "normalizer"),
        (normalizers(*[normalizers(*[replace("aaa", String="aa")] * 20)["normalizer"]] * 2), "normalizer"),
        (normalizers(*[replace("x", Regex="(?=a)")] * 40), "normalizer"),
        (normalizers(*[replace("xy", Regex="a")] * 40), "normalizer"),
        (normalizers(*[replace("x", String="")] * 40), "normalizer"),
        ({"normalizer": replace("x" * 2000, String="a")}, "normalizer"),
        ({"normalizer": {"type": "Prepend", "prepend": "x" * 10_000}}, "normalizer"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES] * 40}}, "pre_tokenizer"),
        ({"decoder": {"type": "Sequence", "decoders": [replace("aa", String="a")] * 40}}, "decoder"),
        ({"post_processor": template(2000)}, "post_processor"),
        ({"post_processor": {"type": "Sequence", "processors": [template(2)] * 20}}, "post_processor"),
    ],
)  # fmt: skip
def test_steps_that_multiply_a_text_are_refused(tmp_path: Path, changes: dict[str, Any], part: str) -> None:
    path = written(tmp_path, changes)
    with pytest.raises(ModelFileError, match=f"tokenizer.json: its {part} (makes|repeats)"):
        read_tokenizer(path)


@pytest.mark.parametrize(
    "changes",
    [
        normalizers({"type": "Prepend", "prepend": "▁"}, replace("▁", String=" ")),
        normalizers(
            {"type": "NFKC"}, replace("<n>", String="\n"), replace("<|tab|>", String="\t"),
            *[replace(" ", Regex=" {2,}")] * 9,
        ),
        {"post_processor": {"type": "Sequence", "processors": [BYTES, template(1)]}},
    ],
)  # fmt: skip
def test_usual_steps_are_taken(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert read_tokenizer(written(tmp_path, changes)).encode("a").ids


def test_a_text_on_which_a_pattern_backtracks_without_end_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, BYTES]}})
    tokenizer = TextTokenizer(read_tokenizer(path), TokenizerMeta())
    assert len(tokenizer.encode("aab", add_special=False)) == 3
    with pytest.raises(InvalidRequest, match="the model's tokenizer fails on a text"):
        tokenizer.encode("a" * 40)


def test_padding_and_truncation_of_the_file_have_no_effect(tmp_path: Path) -> None:
    padding = {
        "strategy": {"Fixed": 100_000_000}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "a",
    }  # fmt: skip
    truncation = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    path = written(tmp_path, {"padding": padding, "truncation": truncation})
    assert len(read_tokenizer(path).encode("abc").ids) == 3

"""Folders whose tokenizer, template or index is damaged, or made to do harm, are refused as model files."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from family_models import CASES, write_folder, write_gguf
from sage_infer.errors import InvalidRequest, ModelFileError
from sage_infer.schemas import ModelDescriptor
from sage_infer.sdk.chat_templates import ChatTemplate
from sage_infer_openvino.encoder.config import read_encoder_config
from sage_infer_openvino.models.hf_model import HfModel
from sage_infer_openvino.models.model_files import find_model_file, open_texts
from sage_infer_openvino.models.tokenizer import TextTokenizer

DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = Path(write_folder(CASES["llama"], tmp_path / "model"))
    TextTokenizer.from_gguf(write_gguf(CASES["llama"], tmp_path / "m.gguf")).save(folder)
    return folder


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize(
    "name",
    [
        "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja",
        "model.safetensors", "additional_chat_templates/tool_use.jinja",
    ],
)  # fmt: skip
def test_a_named_pipe_is_not_waited_for(folder: Path, name: str) -> None:
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    model = ModelDescriptor(model_id="m", model_type="llm", model_path=str(folder))
    for open_model in (find_model_file, read_encoder_config, lambda path: open_texts(model)):
        with pytest.raises(ModelFileError, match=f"{name} cannot be read: it is a named pipe"):
            open_model(folder)
    if name in ("config.json", "model.safetensors"):
        with pytest.raises(ModelFileError, match=f"{name}.* it is a named pipe"):
            HfModel(folder)


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text("utf-8"))
    change(data)
    path.write_text(json.dumps(data), "utf-8")


TEMPLATE = {"Sequence": {"id": "A", "type_id": 0}}
NO_TOKEN = {"SpecialToken": {"id": "<none>", "type_id": 0}}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data["model"]["vocab"].update(zz=2**31), "a token has the id 2147483648"),
        (lambda data: (data["model"].update(vocab={}, merges=[]), data.update(added_tokens=[])), "vocabulary is empty"),
        (
            lambda data: data.update(
                post_processor={
                    "type": "TemplateProcessing", "single": [NO_TOKEN, TEMPLATE], "pair": [TEMPLATE],
                    "special_tokens": {},
                }
            ),
            "cannot encode a text",
        ),
    ],
    ids=["id", "vocabulary", "post-processor"],
)  # fmt: skip
def test_tokenizers(folder: Path, change: Callable[[dict[str, Any]], object], says: str) -> None:
    TextTokenizer.from_folder(folder)
    changed(folder, change)
    with pytest.raises(ModelFileError, match=says) as caught:
        TextTokenizer.from_folder(folder)
    assert "tokenizer.json" in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_json_without_end(folder: Path, name: str) -> None:
    (folder / name).write_text(DEEP)
    with pytest.raises(ModelFileError, match=name):
        TextTokenizer.from_folder(folder)
    if name == "config.json":
        with pytest.raises(ModelFileError, match=name):
            HfModel(find_model_file(folder))


@pytest.mark.parametrize(
    ("index", "says"),
    [
        (DEEP, "not an index of shards"),
        ('{"weight_map": {"a": 5, "b": "x"}}', "5 is not the name of a shard"),
        ('{"weight_map": {"a": null}}', "None is not the name of a shard"),
        ('{"weight_map": {"a": "x\\u0000y"}}', "is not the name of a shard"),
    ],
    ids=["deep", "number", "null", "NUL"],
)
def test_indices(folder: Path, index: str, says: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelFileError, match=says) as caught:
        HfModel(folder)
    assert "index.json" in str(caught.value)


def test_a_head_that_is_no_object(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"[]")
    with pytest.raises(ModelFileError, match=r"model\.safetensors"):
        HfModel(folder)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in [1] %}" * 30 + "{% endfor %}" * 30, "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{% if 1 %}" * 2000 + "{% endif %}" * 2000, "{{ " + "+".join(["1"] * 20_000) + " }}",
    ],
    ids=["loops", "parentheses", "conditions", "sum"],
)  # fmt: skip
def test_templates_that_are_nested_too_deeply(source: str) -> None:
    with pytest.raises(ModelFileError, match="not valid Jinja"):
        ChatTemplate(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(400) %}{% for b in range(400) %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% for a in range(9999) %}{{ m(n) }}{% endfor %}{% endmacro %}{{ m(1) }}",
        "{{ 'x' * 2000000000 }}", "{{ 2000000000 * [1] }}", "{{ 10 ** (10 ** 9) }}", "{{ 9 ** 64 ** 64 }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ messages ** 2 }}",
    ],
    ids=["loops", "small loops", "macro", "text", "list", "power", "powers", "recursion", "types"],
)  # fmt: skip
def test_templates_that_compute_without_end(source: str) -> None:
    template = ChatTemplate(source)
    for _ in range(2):
        with pytest.raises(InvalidRequest, match=r"template (fails on these messages|exceeds what)"):
            template.render(HI)


def test_usual_arithmetic_of_templates() -> None:
    source = (
        "{% for i in range(3) %}{{ i * 2 }}{{ '-' * i }}{% endfor %}{{ 2 ** 10 }}{{ [1] * 2 }}{{ 1.5 * 2 }}"
    )
    template = ChatTemplate(source)
    assert [template.render(HI) for _ in range(2)] == ["02-4--1024[1, 1]3.0"] * 2

"""Tokenizers, chat templates and encoders' configurations with anything in them are read, or refused as model files.

Whatever is read works: texts become tokens, chats are rendered, and the tokenizer can be saved.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from encoder_toy import RERANKERS, write_encoder
from family_models import CASES, write_folder
from hypothesis import given
from hypothesis import strategies as st
from openvino_fuzz import FUZZ, JSON, REFUSED, linked
from sage_infer.errors import InvalidRequest
from sage_infer_openvino.encoder.config import read_encoder_config
from sage_infer_openvino.models.tokenizer import TextTokenizer
from sage_infer_openvino.models.tokenizer_file import encoded, read_tokenizer

MESSAGES = [{"role": "user", "content": "ab"}]
TEMPLATE = (
    "{% for message in messages %}{{ bos_token }}{{ message.role }}: {{ message['content'] }}{% endfor %}"
)
CONFIG = {
    "chat_template": TEMPLATE, "bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": "<pad>",
    "unk_token": None, "add_bos_token": True,
}  # fmt: skip


ENCODER_FILES = [
    "config.json", "tokenizer_config.json", "sentence_bert_config.json", "modules.json", "tokenizer.json",
    "config_sentence_transformers.json",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(write_folder(CASES["llama"], tmp_path_factory.mktemp("hf") / "m"))
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_encoder(tmp_path_factory.mktemp("encoder") / "m", **RERANKERS["bert"])
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "query: "}}))
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 30, "do_lower_case": True})
    )
    (folder / "modules.json").write_text(
        json.dumps([{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}])
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder


def changed(data: st.DataObject, tree: Any) -> Any:
    """The tree with one of its values replaced, or left out."""
    if not isinstance(tree, dict | list) or not tree or data.draw(st.integers(0, 5)) == 0:
        return data.draw(JSON)
    place: Any = data.draw(st.sampled_from(sorted(tree) if isinstance(tree, dict) else range(len(tree))))
    found = dict(tree) if isinstance(tree, dict) else list(tree)
    if data.draw(st.integers(0, 9)) == 0:
        del found[place]
    else:
        found[place] = changed(data, found[place])
    return found


def with_changed(data: st.DataObject, folder: Path, to: Path, name: str) -> Path:
    to = linked(folder, to, leave_out=name)
    (to / name).write_text(json.dumps(changed(data, json.loads((folder / name).read_text()))))
    return to


def use(folder: Path, saved: Path) -> None:
    try:
        tokenizer = TextTokenizer.from_folder(folder)
    except REFUSED as error:
        assert str(folder) in str(error), "the error names no file"  # noqa: PT017
        return
    try:
        tokenizer.decode(tokenizer.encode("ab <s>\u00e9 " * 3))
        if tokenizer.chat_templates is not None:
            tokenizer.render_chat(MESSAGES)
    except InvalidRequest:
        pass
    saved.mkdir(exist_ok=True)
    tokenizer.save(saved)
    assert TextTokenizer.load(saved).meta == tokenizer.meta


@FUZZ
@given(data=st.data())
def test_tokenizer(tmp_path: Path, folder: Path, data: st.DataObject) -> None:
    use(with_changed(data, folder, tmp_path / "changed", "tokenizer.json"), tmp_path / "saved")


@FUZZ
@given(data=st.data())
def test_tokenizer_config(tmp_path: Path, folder: Path, data: st.DataObject) -> None:
    use(with_changed(data, folder, tmp_path / "changed", "tokenizer_config.json"), tmp_path / "saved")


BLOCKS = st.sampled_from(
    [
        "{%", "%}", "{{", "}}", "{#", "#}", " for m in messages ", " if tools ", " endfor ", " endif ", " set x = ",
        "m.content", "messages", "[0]", "|tojson", "|length", ".items()", "namespace(a=1)", " + ", " * 99999",
        "range(9)", "'", '"', "-", "raise_exception('no')", "strftime_now('%Y')", " macro f(a) ", " endmacro ", "f(1)",
        "tools", "\n", "\ud800", "\x00",
    ]
)  # fmt: skip


@FUZZ
@given(blocks=st.lists(BLOCKS | st.text(max_size=3), max_size=12))
def test_chat_template(tmp_path: Path, folder: Path, blocks: list[str]) -> None:
    to = linked(folder, tmp_path / "changed", leave_out="tokenizer_config.json")
    (to / "tokenizer_config.json").write_text(json.dumps({**CONFIG, "chat_template": "".join(blocks)}))
    use(to, tmp_path / "saved")


@FUZZ
@given(
    data=st.data(),
    name=st.sampled_from(ENCODER_FILES),
    reranker=st.booleans(),
)
def test_encoder(tmp_path: Path, encoder: Path, data: st.DataObject, name: str, reranker: bool) -> None:
    to = with_changed(data, encoder, tmp_path / "changed", name)
    try:
        read_encoder_config(to, reranker=reranker)
        tokenizer = read_tokenizer(to / "tokenizer.json")
        encoded(lambda text: tokenizer.encode(text, "b"), "a")
    except InvalidRequest:
        pass
    except REFUSED as error:
        assert str(to) in str(error), "the error names no file"  # noqa: PT017

"""Ids and text equal those of the model's own tokenizer, and streams never contain partial characters."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sage_infer.errors import InvalidRequest, ModelFileError, UnsupportedFeature
from sage_infer.sdk.chat_templates import ChatTemplate
from sage_infer_openvino.models.gguf.file import GgufFile
from sage_infer_openvino.models.gguf.tokenizer import adds_bos
from sage_infer_openvino.models.tokenizer import TextTokenizer, TokenizerMeta
from tokenizers import Tokenizer, decoders, models

Reference = Callable[[str], list[dict[str, Any]]]
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path) -> TextTokenizer:
    return TextTokenizer.from_gguf(smollm2_gguf)


def test_ids_equal_the_models_own_tokenizer(smollm2: TextTokenizer, reference: Reference) -> None:
    for case in reference("tokens_smollm2.json"):
        assert smollm2.encode(case["text"], add_special=False) == case["ids"], case["text"]
        assert smollm2.decode(case["ids"], skip_special=False) == case["text"]


def test_facts(smollm2: TextTokenizer) -> None:
    assert smollm2.vocab_size == 49152
    assert smollm2.eos_token_ids == (2, 0)  # <|im_end|> ends a turn, <|endoftext|> a text
    assert smollm2.token_id("<|im_start|>") == 1
    assert smollm2.token_id("nothing like this") is None
    assert smollm2.decode([1, 504, 2]) == "The"
    assert smollm2.decode([1, 504], skip_special=False) == "<|im_start|>The"


def test_streams_equal_the_whole(smollm2: TextTokenizer, reference: Reference) -> None:
    """Any ids, even ones that are no valid UTF-8, and ids beyond the vocabulary, which models have."""
    rng = random.Random(0)
    library = smollm2._tokenizer
    streams = [case["ids"] for case in reference("tokens_smollm2.json")]
    streams += [[rng.randrange(17, 49152) for _ in range(rng.randint(1, 40))] for _ in range(500)]
    streams += [[rng.randrange(17, 300) for _ in range(30)] for _ in range(500)]
    for ids in streams:
        stream = smollm2.detokenizer()
        pieces = [stream.push(token_id) for token_id in ids] + [stream.flush()]
        assert "".join(pieces) == smollm2.decode(ids) == library.decode(ids, skip_special_tokens=True)
    assert smollm2.decode([60000, 504, 2**31]) == "The"


def test_no_half_characters(smollm2: TextTokenizer) -> None:
    stream, text = smollm2.detokenizer(), "a👨‍👩‍👧‍👦é中"
    pieces = [stream.push(token_id) for token_id in smollm2.encode(text, add_special=False)]
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)
    assert "" in pieces
    cut = smollm2.encode("👍", add_special=False)[:-1]
    stream = smollm2.detokenizer()
    assert stream.push_all(cut) == ""
    assert stream.flush() == "\ufffd"


def test_sentencepiece_style_vocabularies_stream(tmp_path: Path) -> None:
    """Llama 2's kind: a space is ▁, an unknown character is its bytes, the first space is not the text's."""
    vocab = {"▁": 0, "▁a": 1, "b": 2, "<0xF0>": 3, "<0x9F>": 4, "<0x91>": 5, "<0x8D>": 6, "▁▁": 7}
    library = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = TextTokenizer(library, TokenizerMeta())
    for ids in ([1, 2, 0, 1], [3, 4, 5, 6, 1], [7, 2], [0], [2, 7]):
        assert tokenizer.decode(ids) == library.decode(ids)
    stream = tokenizer.detokenizer()
    assert [stream.push(token) for token in (3, 4, 5, 6)] == ["", "", "", "👍"]


def test_chat(smollm2: TextTokenizer) -> None:
    text = smollm2.render_chat([{"role": "user", "content": "Hi <b>"}])
    system = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    )
    assert text == system + "<|im_start|>user\nHi <b><|im_end|>\n<|im_start|>assistant\n"
    history = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    plain = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n"
    assert smollm2.render_chat(history, add_generation_prompt=False) == plain


@pytest.mark.parametrize("messages", [[], [{"role": "user"}], [{"role": "user", "content": 5}]])
def test_messages_that_the_template_cannot_take(smollm2: TextTokenizer, messages: list[Any]) -> None:
    with pytest.raises(InvalidRequest):
        smollm2.render_chat(messages)


def templated(template: str) -> TextTokenizer:
    library = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    library.decoder = decoders.ByteLevel()
    return TextTokenizer(library, TokenizerMeta(chat_template=template, special_tokens={"bos_token": "<s>"}))


def test_template_variables() -> None:
    messages = [{"role": "user", "content": "x"}]
    tools = [{"name": "<f>", "é": 1}]
    text = templated("  {% if tools %}\n{{ bos_token }}{{ tools | tojson }}\n{% endif %}").render_chat(
        messages, tools
    )
    assert text == '<s>[{"name": "<f>", "é": 1}]\n'
    assert len(templated("{{ strftime_now('%Y') }}").render_chat(messages)) == 4
    assert (
        templated("{% for m in messages %}{% break %}{% endfor %}ok{{ flag }}").render_chat(
            messages, variables={"flag": 1}
        )
        == "ok1"
    )
    with pytest.raises(InvalidRequest, match="rejects these messages: only one user"):
        templated("{{ raise_exception('only one user') }}").render_chat(messages)
    with pytest.raises(InvalidRequest, match="SecurityError"):
        templated("{{ messages.__class__.__mro__[1].__subclasses__() }}").render_chat(messages)
    with pytest.raises(ModelFileError, match="not valid Jinja"):
        templated("{% if %}")


def test_gguf_metadata_decides(tiny_gguf: Write) -> None:
    plain = TextTokenizer.from_gguf(tiny_gguf())
    assert plain.decode(plain.encode("hello world")) == "hello world"
    assert plain.encode("<|end|>") == [259]
    assert plain.eos_token_ids == (259,)
    # A user-defined token is found whole and is text; a control token is not text.
    assert plain.encode("<think>") == [260]
    assert plain.decode([260, 259]) == "<think>"
    with pytest.raises(UnsupportedFeature, match="no chat template"):
        plain.render_chat([{"role": "user", "content": "x"}])
    marked = {
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.add_eos_token": True,
    }
    path = tiny_gguf(metadata=marked)
    bos = TextTokenizer.from_gguf(path)
    assert adds_bos(GgufFile(path))
    assert bos.encode("he") == [0, 256, 259]
    assert bos.encode("he", add_special=False) == [256]


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["We", "'ll", " call", " HTTPServer", "2024", "!", "\n", "x"]),
        ("qwen2", ["We", "'ll", " call", " HTTPServer", "2", "0", "2", "4", "!\n", "x"]),
        ("tekken", ["We", "'ll", " call", " HTTPServer", "2", "0", "2", "4", "!\n", "x"]),
        ("gpt-4o", ["We'll", " call", " HTTPServer", "202", "4", "!\n", "x"]),
    ],
)
def test_words_are_split_as_the_file_says(tiny_gguf: Write, pre: str, pieces: list[str]) -> None:
    tokenizer = TextTokenizer.from_gguf(tiny_gguf(metadata={"tokenizer.ggml.pre": pre}))._tokenizer
    split = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("We'll call HTTPServer2024!\nx")]
    assert [piece.replace("Ġ", " ").replace("Ċ", "\n") for piece in split] == pieces


@pytest.mark.parametrize(
    ("metadata", "error", "says"),
    [
        ({"tokenizer.ggml.pre": "chatglm-bpe"}, UnsupportedFeature, "'chatglm-bpe' is not supported.*smollm"),
        ({"tokenizer.ggml.model": "bert"}, UnsupportedFeature, "tokenizer.ggml.model 'bert'"),
        ({"tokenizer.ggml.merges": ["he llo"]}, ModelFileError, "do not match"),
        ({"tokenizer.ggml.merges": None}, ModelFileError, "tokenizer.ggml.merges is missing"),
    ],
)
def test_tokenizers_that_are_refused(
    tiny_gguf: Write, metadata: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        TextTokenizer.from_gguf(tiny_gguf(metadata=metadata))


def test_saved_and_loaded(tiny_gguf: Write, tmp_path: Path) -> None:
    tokenizer = TextTokenizer.from_gguf(
        tiny_gguf(metadata={"tokenizer.chat_template": "é{{ messages[0].content }}"})
    )
    tokenizer.save(tmp_path)
    again = TextTokenizer.load(tmp_path)
    assert again.meta == tokenizer.meta
    assert again.encode("hello <|end|>") == tokenizer.encode("hello <|end|>")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
        TextTokenizer.load(tmp_path)


def test_hugging_face_folder(tiny_gguf: Write, tmp_path: Path) -> None:
    """Limits of whoever saved the folder are dropped; ids that end a text come from every file that names
    some.
    """
    TextTokenizer.from_gguf(tiny_gguf()).save(tmp_path)
    library = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    library.enable_truncation(4)
    library.enable_padding(length=9)
    library.save(str(tmp_path / "tokenizer.json"))
    config = {
        "eos_token": {"content": "<|end|>"},
        "bos_token": None,
        "chat_template": [{"name": "default", "template": "T"}],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    tokenizer = TextTokenizer.from_folder(tmp_path)
    assert len(tokenizer.encode("abcdefgh")) == 8
    assert tokenizer.eos_token_ids == (7, 8, 259)
    assert tokenizer.meta.special_tokens == {"eos_token": "<|end|>"}
    assert tokenizer.render_chat([{"role": "user", "content": "x"}]) == "T"
    (tmp_path / "chat_template.jinja").write_text("newer")
    assert TextTokenizer.from_folder(tmp_path).meta.chat_template == "newer"
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelFileError, match=r"tokenizer\.json: not found"):
        TextTokenizer.from_folder(tmp_path)


ASK = {"role": "user", "content": "x"}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "<é>"}}]
PLAIN = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"


def test_a_template_for_tools_is_found(tiny_gguf: Write, tmp_path: Path) -> None:
    TextTokenizer.from_gguf(tiny_gguf()).save(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(
        json.dumps({
            "chat_template": [
                {"name": "default", "template": "D"},
                {"name": "tool_use", "template": "T{{ tools[0].function.name }}"},
            ]
        })
    )  # fmt: skip
    listed = TextTokenizer.from_folder(tmp_path)
    extra = tmp_path / "additional_chat_templates"
    extra.mkdir()
    (extra / "tool_use.jinja").write_text("F{{ tools[0].function.name }}")
    (tmp_path / "chat_template.jinja").write_text("D")
    config.write_text("{}")
    keys = {
        "tokenizer.chat_template": "D",
        "tokenizer.chat_template.tool_use": "G{{ tools[0].function.name }}",
    }
    for tokenizer, letter in (
        (listed, "T"),
        (TextTokenizer.from_folder(tmp_path), "F"),
        (TextTokenizer.from_gguf(tiny_gguf(metadata=keys)), "G"),
    ):
        assert tokenizer.render_chat([ASK]) == "D"
        assert tokenizer.render_chat([ASK], TOOLS) == letter + "f"
        tokenizer.save(tmp_path)
        assert TextTokenizer.load(tmp_path).render_chat([ASK], TOOLS) == letter + "f"


def test_tools_become_text_without_template_support() -> None:
    tokenizer = templated(PLAIN)
    text = tokenizer.render_chat([ASK], TOOLS)
    assert text.startswith("system:You can call functions.")
    assert text.endswith(";user:x;")
    assert json.dumps(TOOLS[0], ensure_ascii=False) in text
    text = tokenizer.render_chat([{"role": "system", "content": "Be brief."}, ASK], TOOLS)
    assert text.startswith("system:Be brief.\n\nYou can call functions.")
    refusing = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    )
    text = templated(refusing + PLAIN).render_chat([ASK], TOOLS)
    assert text.startswith("user:You can call functions.")
    assert text.endswith("\n\nx;")
    with pytest.raises(InvalidRequest, match="System role not supported"):
        templated(refusing + PLAIN).render_chat([{"role": "system", "content": "s"}, ASK], TOOLS)


def called(*arguments: Any) -> dict[str, Any]:
    calls = [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": one}} for one in arguments
    ]
    return {"role": "assistant", "content": "Wait.", "tool_calls": calls}


def test_calls_and_results_become_text_without_template_support() -> None:
    results = [{"role": "tool", "tool_call_id": "1", "content": text} for text in ("rain", "sun")]
    assert templated(PLAIN).render_chat([ASK, called({"a": 1}, "{'b'"), *results]) == (
        'user:x;assistant:Wait.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "f", "arguments": {\'b\'}\n</tool_call>;'
        "user:<tool_response>\nrain\n</tool_response>\n<tool_response>\nsun\n</tool_response>;"
    )


def test_arguments_that_are_no_object() -> None:
    """They are text, or in an object where the template takes the arguments apart."""
    loop = "{% for m in messages %}{% for c in m.tool_calls %}#{% endfor %}{% endfor %}"
    writes = templated(loop.replace("#", "{{ c.function.arguments }}"))
    assert writes.render_chat([called("{'b'")]) == "{'b'"
    takes_apart = templated(
        loop.replace("#", "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }};{% endfor %}")
    )
    assert takes_apart.render_chat([called({"a": 1}, "{'b'")]) == "a=1;text={'b';"


@pytest.mark.parametrize(
    ("source", "reads"),
    [
        ("{{ tools | tojson }}", True),
        ("{% if not tools is defined %}{% set tools = none %}{% endif %}{{ messages }}", True),
        ("{% macro m(x) %}{% if tools %}{{ x }}{% endif %}{% endmacro %}{{ m(1) }}", True),
        ("{# tools #}tools {{ messages[0].tools }}{% generation %}{% endgeneration %}", False),
    ],
)
def test_whether_a_template_reads_tools(source: str, reads: bool) -> None:
    assert ChatTemplate(source).reads_tools is reads


def test_messages_and_variables_that_a_template_cannot_take() -> None:
    tokenizer = templated("{{ messages[0].content }}{{ mood }}")
    hi = {"role": "user", "content": "hi"}
    for messages, variables, error, says in (
        ([], {}, InvalidRequest, "messages is empty"),
        ([{"content": "x"}], {}, InvalidRequest, "message 0 must be a mapping with a role"),
        ([hi, {"role": "user"}], {}, InvalidRequest, "message 1 of the user has no content"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}],
            {},
            UnsupportedFeature,
            "feature multimodal",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], {}, InvalidRequest, "content part without text"),
        ([hi], {"messages": [], "tools": 1, "mood": ""}, InvalidRequest, "must not contain messages, tools;"),
    ):
        with pytest.raises(error, match=says):
            tokenizer.render_chat(messages, variables=variables)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert tokenizer.render_chat([{**hi, "content": parts}], variables={"mood": "!", "self": 1}) == "a\nb!"


def test_thinking_by_either_name() -> None:
    hi: Any = [{"role": "user", "content": "x"}]
    granite = templated("{{ thinking }}")
    assert granite.render_chat(hi, variables={"enable_thinking": True}) == "True"
    assert granite.render_chat(hi, variables={"enable_thinking": True, "thinking": False}) == "False"
    assert (
        templated("{{ enable_thinking }}{{ thinking }}").render_chat(hi, variables={"enable_thinking": True})
        == "True"
    )


@pytest.mark.parametrize(
    ("meta", "family", "thinks"),
    [
        ({"chat_template": "{{ tools }}<tool_call>"}, "Hermes, Qwen and Granite 4", False),
        ({"chat_template": "no place for tools <tool_call>"}, "", False),
        ({"chat_template": "x", "tool_template": "{{ tools }}[TOOL_CALLS]"}, "Mistral", False),
        ({"chat_template": "<think>", "tool_template": "{{ tools }}<|python_tag|>"}, "Llama 3", True),
    ],
)
def test_the_format_of_answers(meta: dict[str, str], family: str, thinks: bool) -> None:
    library = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    library.decoder = decoders.ByteLevel()
    tokenizer = TextTokenizer(library, TokenizerMeta(**meta))
    form = tokenizer.answer_format
    assert form is not None
    assert (form.family, bool(form.thought_ends)) == (family, thinks)

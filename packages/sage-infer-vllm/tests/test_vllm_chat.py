"""Chats as prompts: tools and calls rendered by the template, or as text without its support."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sage_infer.contracts import TextCodec
from sage_infer.errors import InvalidRequest, ModelFileError, UnsupportedFeature
from sage_infer.factories import load_object
from sage_infer.schemas import ModelDescriptor
from sage_infer_vllm.plugin import sage_infer_backends
from sage_infer_vllm.requests.chat import render_chat
from vllm_toys import have_vllm

needs_transformers = pytest.mark.skipif(
    not have_vllm(),
    reason="transformers comes with vLLM, which is not installed; `hatch run vllm:test` has it",
)
CLOCK = {
    "type": "function",
    "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}},
}
USER = [{"role": "user", "content": "hi"}]


class Tokenizer:
    """A template that has a place for tools, or (``reads_tools``) ignores them."""

    chat_template = "… tool_calls …"
    reads_tools = True

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        if messages[0]["role"] == "odd":
            raise ValueError("roles must alternate\nsee the documentation")
        tools = f" {len(options['tools'])} tools" if options["tools"] and self.reads_tools else ""
        end = "A:" if options["add_generation_prompt"] else ""
        known = {"tools", "add_generation_prompt", "tokenize"}
        end += "".join(f"{name}={value}" for name, value in options.items() if name not in known)
        return f"<{messages[0]['content']}{tools}>{end}"


def test_chats_become_text_without_further_special_tokens() -> None:
    messages = [{"role": "user", "content": "hi"}]
    prompt = render_chat(Tokenizer(), messages, tools=[{"type": "function"}])
    assert (prompt.text, prompt.add_special_tokens) == ("<hi 1 tools>A:", False)
    assert render_chat(Tokenizer(), messages, add_generation_prompt=False).text == "<hi>"
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert render_chat(Tokenizer(), parts).text == "<a\nb>A:"


def test_template_variables_reach_the_template() -> None:
    messages = [{"role": "user", "content": "hi"}]
    prompt = render_chat(Tokenizer(), messages, template_variables={"enable_thinking": False})
    assert prompt.text == "<hi>A:enable_thinking=False"
    with pytest.raises(InvalidRequest, match="cannot set tokenize, tools"):
        render_chat(Tokenizer(), messages, template_variables={"tools": [], "tokenize": True})


def test_media_in_a_message_are_refused() -> None:
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    with pytest.raises(UnsupportedFeature, match="message 0 has a content part of type 'image_url'"):
        render_chat(Tokenizer(), messages)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty"),
        ([{"content": "x"}], "message 0 must be a mapping with a role"),
        ([{"role": "user"}], "message 0 of the user has no content"),
        ([{"role": "odd"}], r"fails on these messages \(ValueError: roles must alternate\)"),
    ],
)
def test_chats_that_are_refused(messages: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        render_chat(Tokenizer(), messages)
    with pytest.raises(UnsupportedFeature, match="no chat template"):
        render_chat(SimpleNamespace(chat_template=None), messages)


# --- templates without a place for tools


class Blind(Tokenizer):
    """Its template writes roles and contents only, and refuses the roles in ``refused``."""

    chat_template = "{{ messages }}"

    def __init__(self, *refused: str) -> None:
        self.refused = refused

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        for message in messages:
            if message["role"] in self.refused:
                raise ValueError(f"no {message['role']}")
        return "|".join(f"{message['role']}: {message['content']}" for message in messages)


def test_tools_are_described_where_the_template_ignores_them() -> None:
    text = render_chat(Blind(), USER, tools=[CLOCK]).text or ""
    assert text.startswith("system: You can call functions")
    assert json.dumps(CLOCK) in text
    assert "<tool_call>" in text
    assert text.endswith("|user: hi")
    assert render_chat(Blind(), USER).text == "user: hi"


def test_tools_are_described_to_the_user_where_the_template_refuses_a_systems_message() -> None:
    text = render_chat(Blind("system"), USER, tools=[CLOCK]).text or ""
    assert text.startswith("user: You can call functions")
    assert text.endswith("hi")
    with pytest.raises(InvalidRequest, match="no user"):
        render_chat(Blind("user"), USER, tools=[CLOCK])


def test_calls_and_results_become_text_where_the_template_has_no_place_for_them() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}
    chat = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "12:00"},
    ]
    text = render_chat(Blind("tool"), chat, tools=[CLOCK]).text or ""
    assert '<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call>' in text
    assert text.endswith("user: <tool_response>\n12:00\n</tool_response>")


# --- texts without an engine


def open_codec(path: str | Path) -> Any:
    (spec,) = (spec for spec in sage_infer_backends() if spec.name == "vllm")
    assert spec.tokenizer is not None
    model = ModelDescriptor(model_id="m", model_type="llm", model_path=str(path))
    return load_object(spec.tokenizer, what="the tokenizer")(model=model)


@needs_transformers
def test_a_model_is_tokenized_without_an_engine(smollm2: ModelDescriptor) -> None:
    """By the GGUF file, and by the folder that it is converted to."""
    from sage_infer_vllm.models.prepare import loadable_folder

    folder = loadable_folder(smollm2.model_path, cache_dir=None, progress=lambda stage, share: None)

    async def answers(codec: Any) -> tuple[Any, ...]:
        assert isinstance(codec, TextCodec)
        with pytest.raises(InvalidRequest, match="token id 49152; expected 0 to 49151"):
            await codec.tokenize([49152])
        prompt = await codec.render_chat(USER, tools=[CLOCK])
        return (
            await codec.tokenize("The capital of France is"),
            await codec.detokenize([504, 3575]),
            await codec.tokenize(prompt),
            prompt.text,
        )

    by_file, by_folder = (asyncio.run(answers(open_codec(path))) for path in (smollm2.model_path, folder))
    assert by_file == by_folder
    assert by_file[:2] == ([504, 3575, 282, 4649, 314], "The capital")
    assert json.dumps(CLOCK) in by_file[3]


@needs_transformers
def test_a_model_without_a_tokenizer_is_refused(smollm2: ModelDescriptor, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file or folder"):
        open_codec(tmp_path / "none")
    from sage_infer_vllm.models.prepare import loadable_folder

    folder = loadable_folder(smollm2.model_path, cache_dir=None, progress=lambda stage, share: None)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelFileError, match="the tokenizer or the configuration cannot be read"):
        open_codec(tmp_path)

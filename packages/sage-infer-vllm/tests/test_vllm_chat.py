"""Chats as prompts: tools and calls rendered by the template, or as text without its support."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sage_infer.contracts import TextCodec
from sage_infer.errors import InvalidRequest, ModelFileError, UnsupportedFeature
from sage_infer.factories import load_object
from sage_infer.schemas import ModelDescriptor, Prompt
from sage_infer_vllm.plugin import sage_infer_backends
from sage_infer_vllm.requests.chat import chat_renderer, render_chat
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


def rendered(tokenizer: Any, messages: Any, **options: Any) -> Prompt:
    return render_chat(chat_renderer(tokenizer), messages, **options)


class Tokenizer:
    """Code in place of a template that has a place for tools, or (``reads_tools``) ignores them."""

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
    prompt = rendered(Tokenizer(), messages, tools=[{"type": "function"}])
    assert (prompt.text, prompt.add_special_tokens) == ("<hi 1 tools>A:", False)
    assert rendered(Tokenizer(), messages, add_generation_prompt=False).text == "<hi>"
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert rendered(Tokenizer(), parts).text == "<a\nb>A:"


def test_template_variables_reach_the_template() -> None:
    messages = [{"role": "user", "content": "hi"}]
    prompt = rendered(Tokenizer(), messages, template_variables={"enable_thinking": False})
    assert prompt.text == "<hi>A:enable_thinking=False"
    with pytest.raises(InvalidRequest, match="cannot set tokenize, tools"):
        rendered(Tokenizer(), messages, template_variables={"tools": [], "tokenize": True})


def test_media_in_a_message_are_refused() -> None:
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    with pytest.raises(UnsupportedFeature, match="message 0 has a content part of type 'image_url'"):
        rendered(Tokenizer(), messages)


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
        rendered(Tokenizer(), messages)
    with pytest.raises(UnsupportedFeature, match="no chat template"):
        rendered(SimpleNamespace(chat_template=None), messages)


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
    text = rendered(Blind(), USER, tools=[CLOCK]).text or ""
    assert text.startswith("system: You can call functions")
    assert json.dumps(CLOCK) in text
    assert "<tool_call>" in text
    assert text.endswith("|user: hi")
    assert rendered(Blind(), USER).text == "user: hi"


def test_tools_are_described_to_the_user_where_the_template_refuses_a_systems_message() -> None:
    text = rendered(Blind("system"), USER, tools=[CLOCK]).text or ""
    assert text.startswith("user: You can call functions")
    assert text.endswith("hi")
    with pytest.raises(InvalidRequest, match="no user"):
        rendered(Blind("user"), USER, tools=[CLOCK])


def test_calls_and_results_become_text_where_the_template_has_no_place_for_them() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}
    chat = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "12:00"},
    ]
    text = rendered(Blind("tool"), chat, tools=[CLOCK]).text or ""
    assert '<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call>' in text
    assert text.endswith("user: <tool_response>\n12:00\n</tool_response>")


# --- templates


class Plain:
    """The class of transformers whose tokenizers have a template and no code of their own."""

    __module__ = "transformers.tokenization_utils_base"
    special_tokens_map: Mapping[str, str] = {"eos_token": "</s>"}

    def __init__(self, chat_template: Any) -> None:
        self.chat_template = chat_template

    def apply_chat_template(self, *_: Any, **__: Any) -> str:
        raise AssertionError("transformers renders without a budget")


class Pooled(Plain):
    """vLLM's subclass for several threads, which calls the method of the class that it extends."""

    __module__ = "vllm.tokenizers.hf"

    def apply_chat_template(self, *_: Any, **__: Any) -> str:
        return super().apply_chat_template()


class DeepSeek(Plain):
    __module__ = "vllm.tokenizers.deepseek_v32"

    def apply_chat_template(self, messages: Any, **_: Any) -> str:
        return f"coded {messages[0]['content']}"


SHOWS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.mark.parametrize("kind", [Plain, Pooled])
def test_templates_are_rendered_within_a_budget(kind: type[Plain]) -> None:
    end = "{% if add_generation_prompt %}<assistant>{{ mood }}{% endif %}"
    tokenizer = kind(SHOWS + end)
    assert rendered(tokenizer, USER, template_variables={"mood": "!"}).text == "<user>hi</s><assistant>!"
    assert rendered(tokenizer, USER, add_generation_prompt=False).text == "<user>hi</s>"
    doubling = "{% set n = namespace(x='ab') %}{% for i in range(64) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    for hostile in (doubling, loops, "{{ 'a' * 10000000000 }}"):
        with pytest.raises(InvalidRequest, match="exceeds what a template may compute"):
            rendered(kind(SHOWS + hostile), USER)
    with pytest.raises(ModelFileError, match="chat template is not valid Jinja"):
        chat_renderer(kind("{% for %}"))


def test_named_templates() -> None:
    tokenizer = Plain({"default": "D", "tool_use": "T{{ tools|length }}", "rag": "R"})
    assert (rendered(tokenizer, USER).text, rendered(tokenizer, USER, tools=[CLOCK]).text) == ("D", "T1")
    assert rendered(Plain({"tool_use": "T"}), USER).text == "T"
    assert chat_renderer(Plain({"rag": "R"})) is None


def test_tools_and_calls_become_text_where_a_template_has_no_place_for_them() -> None:
    text = rendered(Plain(SHOWS), USER, tools=[CLOCK]).text or ""
    assert text.startswith("<system>You can call functions")
    assert json.dumps(CLOCK) in text
    call = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    chat = [*USER, {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert '<tool_call>\n{"name": "clock", "arguments": {}}' in (rendered(Plain(SHOWS), chat).text or "")


@pytest.mark.parametrize("pooled", [False, True])
def test_code_in_place_of_a_template_is_called(pooled: bool) -> None:
    kind = type("Pool", (DeepSeek,), {"__module__": "vllm.tokenizers.hf"}) if pooled else DeepSeek
    assert rendered(kind("{{ messages }}"), USER).text == "coded hi"


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


@needs_transformers
def test_renderings_equal_those_of_transformers(smollm2: ModelDescriptor) -> None:
    from sage_infer_vllm.models.gguf_folder import read_tokenizer

    tokenizer = read_tokenizer(Path(smollm2.model_path))
    chats: list[Any] = [
        USER,
        [{"role": "system", "content": "Be brief."}, *USER],
        [*USER, {"role": "assistant", "content": "hello"}, {"role": "user", "content": "again"}],
    ]
    for chat in chats:
        for end in (True, False):
            expected = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=end)
            assert rendered(tokenizer, chat, add_generation_prompt=end).text == expected


@needs_transformers
def test_a_hostile_template_of_a_folder_is_refused(smollm2: ModelDescriptor, tmp_path: Path) -> None:
    from sage_infer_vllm.models.prepare import loadable_folder

    folder = loadable_folder(smollm2.model_path, cache_dir=None, progress=lambda stage, share: None)
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    template = tmp_path / "chat_template.jinja"
    template.unlink(missing_ok=True)
    template.write_text("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
    with pytest.raises(InvalidRequest, match="exceeds what a template may compute"):
        asyncio.run(open_codec(tmp_path).render_chat(USER))
    template.write_text("{% for %}")
    with pytest.raises(ModelFileError, match="not valid Jinja"):
        open_codec(tmp_path)

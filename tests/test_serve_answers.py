"""Thoughts and tool calls through ``sage infer serve`` with a real model: its template may open ``<think>``, and a
constraint makes it write what the test expects.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from openai.lib.streaming.chat import ChatCompletionStreamState
from sage_infer import resolve_model
from sage_infer.discovery import model_specs
from sage_infer.models import add_model

SAGE = [sys.executable, "-m", "sage_infer.cli.main"]
TEMPLATE = (
    "{%for m in messages%}<|im_start|>{{m.role}}\n{{m.content}}<|im_end|>\n{%endfor%}"
    "{%if add_generation_prompt%}<|im_start|>assistant\n{%if enable_thinking%}<think>\n{%endif%}{%endif%}"
)
ASK: Any = [{"role": "user", "content": "What is 2 + 2?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city":  "Paris", "days": 1.50}}\n</tool_call>'


def with_template(source: Path, target: Path, template: str) -> None:
    """A copy of a GGUF with another chat template, padded to the length of its own."""
    data = source.read_bytes()
    key = b"tokenizer.chat_template"
    start = data.index(key) + len(key) + 4  # after the type of the value
    length = int.from_bytes(data[start : start + 8], "little")
    new = template.encode()
    assert len(new) <= length - 5, "the model's own template is shorter"
    new += b"{#" + b" " * (length - len(new) - 4) + b"#}"
    target.write_bytes(data[: start + 8] + new + data[start + 8 + length :])


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    add_model(model_specs()["smollm2-135m"])
    folder = tmp_path_factory.mktemp("thinking")
    path = Path(resolve_model("smollm2-135m").model_path)
    source = path if path.is_file() else next(path.glob("*.gguf"))
    with_template(source, folder / "thinking.gguf", TEMPLATE)
    process = subprocess.Popen(
        [*SAGE, "infer", "serve", "--port", "0", "--json", "--llm", str(folder / "thinking.gguf")],
        cwd=folder, stdout=subprocess.PIPE, stderr=(folder / "errors").open("w"), text=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line == "}\n":
            break
    assert lines, (folder / "errors").read_text()
    yield OpenAI(base_url=json.loads("".join(lines))["url"] + "/v1", api_key="none", max_retries=0)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)


def answers(client: OpenAI, text: str, **options: Any) -> Iterator[Any]:
    """The whole answer with this text, and the streamed one."""
    model = client.models.list().data[0].id
    extra = {"structured_outputs": {"regex": re.escape(text)}, **options.pop("extra_body", {})}
    defaults = {"model": model, "messages": ASK, "max_tokens": 100, "temperature": 0}
    options = {**defaults, **options, "extra_body": extra}
    yield client.chat.completions.create(**options)
    state = ChatCompletionStreamState()
    for chunk in client.chat.completions.create(
        **options, stream=True, stream_options={"include_usage": True}
    ):
        state.handle_chunk(chunk)
    yield state.current_completion_snapshot


def test_thoughts_of_a_real_model(client: OpenAI) -> None:
    for text, thinking in (
        ("A sum.\n</think>\n\nFour.", True),
        ("<think>\nA sum.\n</think>\n\nFour.", False),
    ):
        extra = {"chat_template_kwargs": {"enable_thinking": thinking}}
        for answer in answers(client, text, extra_body=extra):
            message = answer.choices[0].message
            assert (message.content, message.reasoning_content, message.reasoning) == (
                "Four.",
                "A sum.",
                "A sum.",
            )
            assert (
                2 <= answer.usage.completion_tokens_details.reasoning_tokens < answer.usage.completion_tokens
            )
    for answer in answers(client, "Four.", extra_body={"enable_thinking": False}):
        assert answer.choices[0].message.content == "Four."
        assert answer.usage.completion_tokens_details.reasoning_tokens == 0


def test_tool_calls_of_a_real_model(client: OpenAI) -> None:
    thoughts = "<think>It asks for rain.</think>\n"
    for text in (CALL, thoughts + CALL, thoughts + "I look it up. " + CALL + "\n" + CALL):
        for answer in answers(client, text, tools=[WEATHER]):
            choice = answer.choices[0]
            assert choice.finish_reason == "tool_calls"
            assert choice.message.content in (None, "", "I look it up.")
            calls = [call.function for call in choice.message.tool_calls]
            assert [call.name for call in calls] == ["weather"] * text.count("<tool_call>")
            assert {call.arguments for call in calls} == {'{"city":  "Paris", "days": 1.50}'}
    for answer in answers(client, CALL, tools=[WEATHER], max_tokens=25):
        (call,) = answer.choices[0].message.tool_calls
        assert answer.choices[0].finish_reason == "length"
        assert '{"city":  "Paris", "days": 1.50}'.startswith(call.function.arguments)


def test_forced_calls_are_streamed_in_pieces(client: OpenAI) -> None:
    model = client.models.list().data[0].id
    forced: Any = {"type": "function", "function": {"name": "weather"}}
    for choice in (forced, "required"):
        stream = client.chat.completions.create(
            model=model,
            messages=ASK,
            tools=[WEATHER],
            tool_choice=choice,
            stream=True,
            max_tokens=60,
            temperature=0,
        )
        fragments = [call for chunk in stream for call in chunk.choices[0].delta.tool_calls or []]
        assert [fragment.function.name for fragment in fragments if fragment.id] == ["weather"]
        assert len(fragments) > 2
        assert "".join(f.function.arguments for f in fragments).startswith("{")

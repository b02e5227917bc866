"""``sage infer serve`` with real models: from the command to OpenAI's client, and to the end of the process."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, OpenAI
from sage_infer.discovery import model_specs
from sage_infer.models import add_model

SAGE = [sys.executable, "-m", "sage_infer.cli.main"]


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[dict[str, Any], subprocess.Popen[str]]]:
    for name in ("smollm2-135m", "minilm"):
        add_model(model_specs()[name])
        subprocess.run([*SAGE, "infer", "model", "add", name], check=True, capture_output=True)
    folder = tmp_path_factory.mktemp("serve")
    (folder / "sage_infer.yaml").write_text(
        "serve:\n  sharing: time_slice\n  models:\n"
        "    - {model: smollm2-135m, aliases: [gpt-4o-mini], options: {kv_cache_gb: 0.2}}\n"
        "    - {model: minilm, aliases: [text-embedding-3-small]}\n"
    )
    errors = (folder / "errors").open("w")
    process = subprocess.Popen(
        [*SAGE, "infer", "serve", "--port", "0", "--json"],
        cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines = []
    for line in process.stdout:  # indented JSON, whole at its closing brace
        lines.append(line)
        if line == "}\n":
            break
    assert lines, (folder / "errors").read_text()
    yield json.loads("".join(lines)), process
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=300)


def test_answers_after_the_command(served: Any) -> None:
    ready, _ = served
    client = OpenAI(base_url=ready["url"] + "/v1", api_key="none")
    ask: Any = [{"role": "user", "content": "What is the capital of France?"}]
    answer = client.chat.completions.create(model="smollm2-135m", messages=ask, temperature=0, max_tokens=20)
    assert "Paris" in (answer.choices[0].message.content or "")


def test_official_client_on_real_models(served: Any) -> None:
    ready, _ = served
    client = OpenAI(base_url=ready["url"] + "/v1", api_key="none")
    ask: Any = [{"role": "user", "content": "What is the capital of France?"}]
    whole = client.chat.completions.create(model="gpt-4o-mini", messages=ask, temperature=0, max_tokens=20)
    stream = client.chat.completions.create(
        model="gpt-4o-mini", messages=ask, temperature=0, max_tokens=20, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    }
    guided = client.chat.completions.create(
        model="smollm2-135m", messages=ask, temperature=0, max_tokens=40,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema}},
    )  # fmt: skip
    assert set(json.loads(guided.choices[0].message.content or "")) == {"city"}
    tool: Any = {"type": "function", "function": {"name": "look_up", "parameters": schema}}
    forced: Any = {"type": "function", "function": {"name": "look_up"}}
    called = client.chat.completions.create(
        model="smollm2-135m", messages=ask, temperature=0, max_tokens=40, tools=[tool], tool_choice=forced
    )
    calls: Any = called.choices[0].message.tool_calls
    assert set(json.loads(calls[0].function.arguments)) == {"city"}

    texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose in March."]
    vectors = [
        d.embedding for d in client.embeddings.create(model="text-embedding-3-small", input=texts).data
    ]
    cat_kitten, cat_rates = (sum(a * b for a, b in zip(vectors[0], v, strict=True)) for v in vectors[1:])
    assert cat_kitten > 0.6 > 0.2 > cat_rates
    assert {m.id for m in client.models.list()} == {"smollm2-135m", "minilm"}


def test_tokens_of_both_kinds_of_models(served: Any) -> None:
    ready, _ = served
    client = OpenAI(base_url=ready["url"], api_key="none", max_retries=0)
    for model, text in (
        ("smollm2-135m", "A cat sits."),
        ("text-embedding-3-small", "[CLS] a cat sits. [SEP]"),
    ):
        tokens: Any = client.post("/tokenize", body={"model": model, "prompt": "A cat sits."}, cast_to=object)
        assert tokens["count"] == len(tokens["tokens"]) > 2
        assert tokens["max_model_len"] > 100
        given = client.post("/detokenize", body={"model": model, "tokens": tokens["tokens"]}, cast_to=object)
        assert given == {"prompt": text}
    default: Any = client.post("/tokenize", body={"prompt": "A cat sits."}, cast_to=object)
    assert default["count"] == 4


@pytest.mark.parametrize("endpoint", ["chat", "completion"])
def test_requests_with_other_salts_share_no_kv(served: Any, endpoint: str) -> None:
    ready, _ = served
    client = OpenAI(base_url=ready["url"] + "/v1", api_key="none")
    text = f"{endpoint}: " + " ".join(f"Lighthouse number {number} stands on a rock." for number in range(40))

    def cached(salt: str | None) -> int:
        common: Any = {
            "model": "smollm2-135m", "max_tokens": 1, "extra_body": {} if salt is None else {"cache_salt": salt},
        }  # fmt: skip
        if endpoint == "chat":
            found: Any = client.chat.completions.create(
                messages=[{"role": "user", "content": text}], **common
            )
        else:
            found = client.completions.create(prompt=text, **common)
        details = found.usage.prompt_tokens_details
        return 0 if details is None else details.cached_tokens or 0

    first = [cached(salt) for salt in (None, "one", "two")]
    assert max(first) < 128, "KV was shared between salts"
    again = [cached(salt) for salt in (None, "one", "two")]
    assert min(again) >= 128


def test_a_deadline_ends_a_request_in_time(served: Any) -> None:
    """By the engine for a generation, by the hybrid backend for an embedding; afterwards both answer."""
    ready, _ = served
    client = OpenAI(base_url=ready["url"] + "/v1", api_key="none", max_retries=0)
    ask: Any = [{"role": "user", "content": "Count from 1 to 1000."}]
    late = {"x-sage-deadline-ms": "1"}
    for call in (
        lambda: client.chat.completions.create(
            model="smollm2-135m", messages=ask, max_tokens=500, extra_headers=late, extra_body={"ignore_eos": True}
        ),
        lambda: client.embeddings.create(model="minilm", input=["word " * 100] * 200, extra_headers=late),
    ):  # fmt: skip
        with pytest.raises(APIStatusError) as failed:
            call()
        assert failed.value.status_code == 504
        assert failed.value.code == "deadline_exceeded"
    for headers in (late | {"x-sage-deadline-ms": "600000"}, {"x-session-id": "s", "x-sage-chain": "rag"}):
        answer: Any = client.chat.completions.create(
            model="smollm2-135m", messages=ask, max_tokens=2, extra_headers=headers, service_tier="flex"
        )
        assert answer.usage.completion_tokens == 2


def test_tokens_are_those_that_are_counted(served: Any) -> None:
    ready, _ = served
    client = OpenAI(base_url=ready["url"] + "/v1", api_key="none")
    root = OpenAI(base_url=ready["url"], api_key="none")
    ask: Any = [{"role": "user", "content": "What is the capital of France?"}]
    tokens: Any = root.post("/tokenize", body={"model": "smollm2-135m", "messages": ask}, cast_to=object)
    answer = client.chat.completions.create(model="smollm2-135m", messages=ask, max_tokens=1)
    assert answer.usage is not None
    assert tokens["count"] == answer.usage.prompt_tokens
    text: Any = root.post(
        "/detokenize", body={"model": "smollm2-135m", "tokens": tokens["tokens"]}, cast_to=object
    )
    assert "What is the capital of France?" in text["prompt"]


def test_the_memory_plan_is_told(served: Any) -> None:
    ready, _ = served
    assert {m["id"]: m["state"] for m in ready["models"]} == {"smollm2-135m": "ready", "minilm": "ready"}
    for share in ready["memory"]:
        assert share["measured_bytes"] is None or share["measured_bytes"] < 2 * share["planned_bytes"]


def test_sigterm_lets_an_answer_end(served: Any) -> None:
    """The last test of the module: afterwards the server is gone."""
    ready, process = served
    client = OpenAI(base_url=ready["url"] + "/v1", api_key="none", max_retries=0)
    ask: Any = [{"role": "user", "content": "Count from 1 to 100."}]
    stream = client.chat.completions.create(
        model="smollm2-135m", messages=ask, stream=True, max_tokens=60, extra_body={"ignore_eos": True}
    )
    chunks = iter(stream)
    next(chunks)
    process.send_signal(signal.SIGTERM)
    rest = list(chunks)
    assert rest[-1].choices[0].finish_reason == "length"
    assert process.wait(timeout=300) == 0


def free_port() -> int:
    """A port that the system assigns to no other process in the meantime."""
    for port in random.sample(range(20_000, 32_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    pytest.fail("all ports are in use")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("begin", ["while it loads", "once it serves"])
def test_signals_are_heard_after_the_outputs_have_closed(
    tmp_path: Path, number: signal.Signals, begin: str
) -> None:
    add_model(model_specs()["minilm"])
    port = free_port()
    process = subprocess.Popen(
        [*SAGE, "infer", "serve", "--embedding", "minilm", "--port", str(port)],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        if begin == "once it serves":
            assert any("/v1 (API)" in line for line in process.stdout)
        process.stdout.close()
        process.stderr.close()
        while begin == "while it loads" and process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as asking:
                asking.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                if asking.recv(1):  # it hears signals from then on
                    break
        process.send_signal(number)
        assert process.wait(timeout=300) == 0
    finally:
        process.kill()
        process.wait()


def test_mistakes_on_the_command_line(tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        done = subprocess.run(
            [*SAGE, "infer", "serve", *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        return done.stderr.strip().splitlines()[-1]

    assert "use --insecure" in run("--host", "0.0.0.0")
    assert (
        "no such" in run("--llm", "no-such-model", "--port", "0").lower()
        or "no model" in run("--llm", "no-such-model", "--port", "0").lower()
    )
    assert "--llm must be NAME" in run("--llm", "@openvino", "--port", "0")
    assert "--sharing" in run("--sharing", "dice")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "choose another with --port" in run("--port", str(taken.getsockname()[1]))

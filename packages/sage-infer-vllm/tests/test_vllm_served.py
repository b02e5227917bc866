"""``sage infer serve`` with a real vLLM: loading progress on terminal and dashboard, and tool calls over HTTP."""

from __future__ import annotations

import http.client
import json
import os
import pty
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from attrs import define, field
from sage_infer.schemas import ModelDescriptor
from vllm_toys import have_vllm

pytestmark = [
    pytest.mark.vllm_newest,
    pytest.mark.skipif(
        not have_vllm(), reason="vLLM is not installed in this environment; `hatch run vllm:test` has it"
    ),
]

serve = pytest.importorskip("sage_infer_serve", reason="sage-infer-serve is not installed")
pytest.importorskip("sage_infer_hybrid", reason="sage-infer-hybrid is not installed")

CLOCK = {
    "type": "function",
    "function": {
        "name": "clock",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"enum": ["UTC", "CET"]}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
}
QUESTION = {
    "model": "smollm2-135m",
    "messages": [{"role": "user", "content": "What time is it in Greenwich?"}],
    "tools": [CLOCK],
    "max_tokens": 60,
    "temperature": 0,
}
CONFIGURATION = """
serve:
  models:
    - model: smollm2-135m
      backend: vllm
      options: {dtype: float32, eager: true, kv_cache_gb: 0.3, max_sequence_length: 1024, tool_parser: pythonic}
"""


@define
class Served:
    """The command on a terminal of its own, and what was seen of it until it was ready."""

    process: subprocess.Popen[bytes]
    port: int
    terminal: bytearray = field(factory=bytearray)
    loading: list[dict[str, Any]] = field(factory=list)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request(
                method,
                path,
                None if body is None else json.dumps(body),
                {"content-type": "application/json"},
            )
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def chat(self, **fields: Any) -> dict[str, Any]:
        status, body = self.ask("POST", "/v1/chat/completions", {**QUESTION, **fields})
        assert status == 200, body
        found: dict[str, Any] = json.loads(body)
        return found

    def until_ready(self) -> None:
        while True:
            assert self.process.poll() is None, self.terminal.decode(errors="replace")
            with suppress(ConnectionRefusedError):  # it does not listen yet
                (model,) = json.loads(self.ask("GET", "/dashboard/state")[1])["models"]
                if model["loading"] is not None:
                    self.loading.append(model["loading"])
                if self.ask("GET", "/ready")[0] == 200:
                    return


def free_port() -> int:
    """A port that the system assigns to no other process in the meantime."""
    for port in random.sample(range(20_000, 32_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    pytest.fail("all ports are in use")


@pytest.fixture(scope="module")
def served(smollm2: ModelDescriptor, live: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    live.stop()  # one engine at a time
    folder = tmp_path_factory.mktemp("served")
    (folder / "sage_infer.yaml").write_text(CONFIGURATION)
    port = free_port()
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "sage_infer.cli.main", "infer", "serve", "--port", str(port)],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=theirs,
        env={**os.environ, "COLUMNS": "120", "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    running = Served(process, port)

    def read_terminal() -> None:
        with suppress(OSError):  # the other end was closed
            while part := os.read(ours, 65536):
                running.terminal += part

    reader = threading.Thread(target=read_terminal)
    reader.start()
    try:
        running.until_ready()
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=300)
        finally:
            process.kill()
            reader.join()
            os.close(ours)


def test_loading_is_shown_on_the_terminal_and_in_the_dashboard(served: Served) -> None:
    stages = [entry["stage"] for entry in served.loading]
    assert {"importing vLLM", "loading weights", "warming up"} <= set(stages)
    shares = [entry["share"] for entry in served.loading if entry["share"] is not None]
    assert shares == sorted(shares)
    assert len(set(shares)) > 3
    terminal = served.terminal.decode(errors="replace")
    for stage in ("importing vLLM", "loading weights", "allocating the KV cache", "warming up"):
        assert f"smollm2-135m: {stage}" in terminal


FORCED = r"\[clock\(zone=\"UTC\"\)\]"


def test_the_backends_parser_reads_tool_calls(served: Served) -> None:
    """The model is held to write a call as Python, the form of the option ``tool_parser``."""
    for choice in ({}, {"tool_choice": "auto"}):
        (answer,) = served.chat(guided_regex=FORCED, **choice)["choices"]
        assert answer["finish_reason"] == "tool_calls"
        assert not answer["message"]["content"]
        (call,) = answer["message"]["tool_calls"]
        assert call["function"]["name"] == "clock"
        assert json.loads(call["function"]["arguments"]) == {"zone": "UTC"}


def test_streamed_tool_calls_are_those_of_the_backends_parser(served: Served) -> None:
    body = {**QUESTION, "guided_regex": FORCED, "stream": True}
    status, data = served.ask("POST", "/v1/chat/completions", body)
    assert status == 200
    events = [line.removeprefix(b"data: ") for line in data.splitlines() if line.startswith(b"data: ")]
    assert events.pop() == b"[DONE]"
    deltas = [json.loads(event)["choices"][0] for event in events]
    calls = [call for delta in deltas for call in delta["delta"].get("tool_calls") or ()]
    assert calls[0]["function"]["name"] == "clock"
    assert json.loads("".join(call["function"].get("arguments") or "" for call in calls)) == {"zone": "UTC"}
    assert deltas[-1]["finish_reason"] == "tool_calls"
    assert not "".join(delta["delta"].get("content") or "" for delta in deltas)


def test_a_required_call_has_arguments_that_fit_the_tool(served: Served) -> None:
    (answer,) = served.chat(tool_choice="required")["choices"]
    (call,) = answer["message"]["tool_calls"]
    assert call["function"]["name"] == "clock"
    assert json.loads(call["function"]["arguments"])["zone"] in ("UTC", "CET")


def test_an_answer_without_a_call_is_text(served: Served) -> None:
    (answer,) = served.chat(guided_choice=["noon", "midnight"])["choices"]
    assert answer["message"]["content"] in ("noon", "midnight")
    assert not answer["message"].get("tool_calls")

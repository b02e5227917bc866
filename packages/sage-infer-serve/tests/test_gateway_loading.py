"""The server during loading: it listens, reports progress, and rejects work until it is ready."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
from gateway_backend import EchoBackend
from gateway_served import chat_body
from sage_infer.errors import OutOfMemory
from sage_infer_serve import GatewaySettings
from sage_infer_serve.server import listen, run_until_signal
from sage_infer_serve.watch.loading import start_with_progress

Ask = Callable[..., tuple[int, dict[str, str], Any]]


def asked(port: int, method: str, path: str, body: Any = None) -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, json.loads(response.read())
    finally:
        connection.close()


def serve(backend: EchoBackend, client: Callable[[Ask, asyncio.Event], None]) -> list[str]:
    """Serve as the command does, in this process's main thread, with ``client`` in another one."""
    settings = GatewaySettings(port=0)
    listener = listen(settings)
    port = listener.getsockname()[1]
    said: list[str] = []
    failures: list[BaseException] = []

    async def main() -> None:
        backend.start_gate = gate = asyncio.Event()
        loop = asyncio.get_running_loop()

        class Gate(asyncio.Event):
            def set(self) -> None:
                loop.call_soon_threadsafe(gate.set)

        def run_client() -> None:
            try:
                client(lambda *arguments: asked(port, *arguments), Gate())
            except BaseException as error:
                failures.append(error)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=run_client)
        thread.start()
        try:
            await run_until_signal(
                backend, settings, (), listener,
                load=lambda: start_with_progress(backend), on_ready=said.append, on_drain=lambda _: None,
            )  # fmt: skip
        finally:
            await asyncio.to_thread(thread.join)

    previous = signal.signal(
        signal.SIGTERM, signal.SIG_IGN
    )  # one more signal may come after the server's end
    try:
        asyncio.run(asyncio.wait_for(main(), 300))
    finally:
        signal.signal(signal.SIGTERM, previous)
        listener.close()
    if failures:
        raise failures[0]
    return said


@pytest.fixture
def backend() -> EchoBackend:
    made = EchoBackend()
    made.state, made.stage, made.share = "loading", "reading weights", 0.4
    return made


def test_it_answers_while_models_are_loaded_and_works_afterwards(
    backend: EchoBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    def client(ask: Ask, gate: asyncio.Event) -> None:
        status, _, health = ask("GET", "/health")
        assert (status, health["status"]) == (503, "loading")
        assert "echo: reading weights (40%)" in health["reason"]
        assert ask("GET", "/ready")[0] == 503
        state = ask("GET", "/dashboard/state")[2]
        assert state["models"][0]["loading"] == {"stage": "reading weights", "share": 0.4}
        for path, body in (
            ("/v1/chat/completions", chat_body()),
            ("/v1/embeddings", {"input": "x"}),
        ):
            status, headers, answer = ask("POST", path, body)
            assert (status, answer["error"]["code"]) == (503, "loading")
            assert int(headers["retry-after"]) >= 1
        assert not backend.calls
        gate.set()
        while ask("GET", "/ready")[0] != 200:
            pass
        assert ask("GET", "/health")[2]["status"] == "ok"
        assert ask("POST", "/v1/chat/completions", chat_body())[0] == 200

    assert len(serve(backend, client)) == 1
    assert "echo: reading weights" in capsys.readouterr().err


def test_a_signal_ends_loading(backend: EchoBackend) -> None:
    assert serve(backend, lambda ask, gate: ask("GET", "/health") and None) == []


def test_a_load_that_fails_ends_the_server(backend: EchoBackend) -> None:
    backend.start_error = OutOfMemory("no room for echo")

    def client(ask: Ask, gate: asyncio.Event) -> None:
        assert ask("GET", "/health")[0] == 503
        gate.set()

    with pytest.raises(OutOfMemory, match="no room for echo"):
        serve(backend, client)

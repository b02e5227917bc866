"""Without keys, addresses share the engine: many long streams of one do not make another wait for their ends."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from sage_infer.discovery import model_specs
from sage_infer.models import add_model

SAGE = [sys.executable, "-m", "sage_infer.cli.main"]
WAIT_S = 600
STREAMS, BATCH = 5, 2


@pytest.fixture
def address(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """Of a server whose engine runs two sequences at a time."""
    add_model(model_specs()["smollm2-135m"])
    options = json.dumps({"kv_cache_gb": 0.2, "max_batch_size": BATCH})
    (tmp_path / "sage_infer.yaml").write_text(
        f"serve:\n  models:\n    - {{model: smollm2-135m, options: {options}}}\n"
    )
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(
            [*SAGE, "infer", "serve", "--port", "0", "--json"],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line == "}\n":
                break
        assert lines, (tmp_path / "errors").read_text()
        parts = urlsplit(json.loads("".join(lines))["url"])
        yield parts.hostname or "", parts.port or 0
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=WAIT_S)


def chat(address: tuple[str, int], source: str, **fields: object) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(*address, timeout=WAIT_S, source_address=(source, 0))
    body = {"model": "smollm2-135m", "messages": [{"role": "user", "content": f"Hello {fields}"}], **fields}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    return connection


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all addresses of 127.0.0.0/8")
def test_long_streams_of_an_address_give_way(address: tuple[str, int]) -> None:
    begun, ended = threading.Semaphore(0), threading.Event()

    def read(connection: http.client.HTTPConnection) -> None:
        with suppress(OSError, ValueError, AttributeError, http.client.HTTPException):  # closed below
            response = connection.getresponse()
            response.readline()
            begun.release()
            while line := response.readline():
                if b"[DONE]" in line:
                    ended.set()

    many = [
        chat(address, "127.0.0.9", stream=True, max_tokens=1500, ignore_eos=True, seed=seed)
        for seed in range(STREAMS)
    ]
    readers = [threading.Thread(target=read, args=(connection,), daemon=True) for connection in many]
    try:
        for reader in readers:
            reader.start()
        for _ in range(BATCH):  # the batch is full
            assert begun.acquire(timeout=WAIT_S)
        for _ in range(2):
            connection = chat(address, "127.0.0.1", max_tokens=3, ignore_eos=True)
            response = connection.getresponse()
            answer = json.loads(response.read())
            connection.close()
            assert response.status == 200, answer
            assert answer["usage"]["completion_tokens"] == 3
            assert not ended.is_set(), "it waited for a stream of the other address to end"
    finally:
        for connection in many:
            if (
                connection.sock is not None
            ):  # closing would leave the stream open: its reader holds the socket too
                with suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)
            connection.close()

"""`sage llm serve --gateways 2` on real replicas: drains, killed gateways, and one view of all for the operator."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sage_infer_serve.http.auth import KeyLimits, add_key
from sage_llm.replicas.run_folder import RUN_FOLDER_VARIABLE
from served_command import GUARD_S, SAGE, served

pytestmark = pytest.mark.long

TOKENS = 32
LIMIT = 4  # requests per minute of a key


class Server:
    """A running control plane with several gateways."""

    def __init__(self, ready: Any, environment: dict[str, str], folder: Path, keys: tuple[str, str]) -> None:
        self.url: str = ready["url"]
        self.key, self.limited_key = keys
        self.ready, self._environment, self._folder = ready, environment, folder

    def command(self, *arguments: str) -> Any:
        """The JSON output of an operator's command."""
        done = subprocess.run(
            [*SAGE, "llm", *arguments, "--json"],
            capture_output=True,
            text=True,
            env=self._environment,
            cwd=self._folder,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def chat(self, max_tokens: int = 4) -> Any:
        """A chat on a connection of its own."""
        body = {
            "model": "smollm2-135m", "messages": [{"role": "user", "content": "Count to ten."}], "temperature": 0,
            "max_tokens": max_tokens,
        }  # fmt: skip
        with self.open("/v1/chat/completions", json.dumps(body).encode()) as answer:
            return json.load(answer)

    def open(self, path: str, body: bytes | None = None) -> Any:
        headers = {"content-type": "application/json", "authorization": f"Bearer {self.key}"}
        return urllib.request.urlopen(urllib.request.Request(self.url + path, body, headers), timeout=GUARD_S)

    def accepted(self) -> int:
        """How many requests of the limited key one connection gets answered until its limit is reached."""
        body = json.dumps({"model": "smollm2-135m", "prompt": "One", "max_tokens": 1})
        headers = {"content-type": "application/json", "authorization": f"Bearer {self.limited_key}"}
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=GUARD_S)
        accepted = 0
        while True:
            connection.request("POST", "/v1/completions", body, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
            if answer.status == 200:
                accepted += 1
            elif f"limit of {LIMIT} requests a minute" in text:
                return accepted
            else:
                assert "this gateway's part of its limits; try again in 0." in text, text

    def text(self, max_tokens: int = 4) -> str:
        return str(self.chat(max_tokens)["choices"][0]["message"]["content"])

    def pids(self) -> list[int]:
        return [gateway["pid"] for gateway in self.command("status")["gateways"]]


@contextmanager
def serving(folder: Path, run: Path) -> Iterator[Server]:
    environment = {**os.environ, RUN_FOLDER_VARIABLE: str(run)}
    keys = tuple(
        add_key(folder / "keys", name, limits)
        for name, limits in (("free", KeyLimits()), ("few", KeyLimits(requests_per_minute=LIMIT)))
    )
    words = [
        "llm",
        "serve",
        "-m",
        "smollm2-135m",
        "--replicas",
        "2",
        "--gateways",
        "2",
        "-o",
        "kv_cache_gb=0.25",
        "--keys-file",
        str(folder / "keys"),
    ]
    with served(folder, *words, environment=environment) as (process, ready):
        yield Server(ready, environment, folder, (keys[0], keys[1]))
        process.send_signal(signal.SIGTERM)
        assert process.wait(GUARD_S) == 0, (folder / "errors").read_text()


def test_two_gateways(smollm2: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    run = tmp_path_factory.mktemp("run")
    run.chmod(0o700)
    with serving(tmp_path, run) as server:
        assert len(server.ready["gateways"]) == 2
        expected = server.text(TOKENS)

        # Both answer: the system spreads connections. The operator sees one cluster.
        seen: set[str] = set()
        sent = 1
        while len(seen) < 2:
            assert expected.startswith(server.text())
            sent += 1
            with server.open("/metrics") as answer:
                lines = answer.read().decode().splitlines()
            seen = {
                line.partition('gateway="')[2][:1]
                for line in lines
                if line.startswith("sage_llm_ended_requests_total{")
            }
        while (status := server.command("status"))["requests"]["finished"] < sent:
            pass  # a gateway that answers late on a busy machine is left out
        assert status["requests"]["finished"] == sent
        assert [row["state"] for row in status["replicas"]] == ["ready", "ready"]
        assert server.command("explain")["policy"] == "kv-cost"

        # A single connection, which has one gateway only, has the whole limit of its key.
        assert server.accepted() >= LIMIT

        # A drain moves the requests of both; their texts are those of an undisturbed run.
        with ThreadPoolExecutor(4) as pool:
            texts = [pool.submit(server.text, TOKENS) for _ in range(4)]
            drained = server.command("drain", "smollm2-135m/0")
            assert [text.result() for text in texts] == [expected] * 4
        assert drained["replica_id"] == "smollm2-135m/0"
        assert server.command("status")["requests"]["failed"] == 0
        assert server.command("scale", "smollm2-135m", "2")["changed"] == ["smollm2-135m/0"]
        with ThreadPoolExecutor(4) as pool:
            texts = [pool.submit(server.text, TOKENS) for _ in range(4)]
            server.command("restart")
            assert [text.result() for text in texts] == [expected] * 4

        # A gateway that is killed is started again; the other one, and the replicas, do not notice.
        before = server.command("status")
        victim, other = server.pids()
        os.kill(victim, signal.SIGKILL)
        while victim in (now := server.pids()) or len(now) < 2:
            pass
        assert other in now
        after = server.command("status")
        assert [row["pid"] for row in after["replicas"]] == [row["pid"] for row in before["replicas"]]
        assert server.text(TOKENS) == expected
    assert not list(run.glob("*.sock"))

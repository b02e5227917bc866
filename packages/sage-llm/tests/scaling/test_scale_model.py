"""`sage llm serve --autoscale` on real replicas: from zero and back, and a drain under streams that loses nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sage_llm.commands.control import ask
from sage_llm.replicas.run_folder import RUN_FOLDER_VARIABLE
from served_command import GUARD_S, SAGE, served

pytestmark = pytest.mark.long

MODEL = "smollm2-135m"
BOUNDS = "0:2,interval_s=0.1,idle_s=0.2,down_s=0.2,smooth_s=0.2"
# The first replica is there when the server says that it is ready.
AT_FIRST = BOUNDS.replace("idle_s=0.2", "idle_s=600")


class Server:
    """A running control plane that scales its model."""

    def __init__(self, url: str, port: int, log: Path) -> None:
        self._url, self.port, self._log = url, port, log

    def ask(self, method: str, **arguments: Any) -> Any:
        return ask(self.port, method, **arguments)

    @property
    def scaling(self) -> dict[str, Any]:
        (row,) = self.ask("status")["scaling"]
        return dict(row)

    def until(self, condition: Any) -> None:
        """Wait until a condition on the state of scaling holds."""
        ends = time.monotonic() + GUARD_S
        while not condition(self.scaling):
            assert time.monotonic() < ends, (self.scaling, self._log.read_text())
            time.sleep(0.02)

    def text(self, max_tokens: int) -> str:
        body = {
            "model": MODEL, "messages": [{"role": "user", "content": "Count to one hundred."}], "temperature": 0,
            "max_tokens": max_tokens, "ignore_eos": True,
        }  # fmt: skip
        request = urllib.request.Request(
            f"{self._url}/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=GUARD_S) as answer:
            found = json.load(answer)
        assert found["usage"]["completion_tokens"] == max_tokens
        return str(found["choices"][0]["message"]["content"])


def asleep(row: dict[str, Any]) -> bool:
    return row["desired"] == row["actual"] == row["starting"] == 0 and row["events"][-1]["kind"] == "stopped"


def test_from_zero_and_back(
    smollm2: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path_factory.mktemp("run")
    run.chmod(0o700)
    monkeypatch.setenv(RUN_FOLDER_VARIABLE, str(run))
    # On a busy machine, reports are late.
    (tmp_path / "quick.yaml").write_text(
        "llm: {drain_s: 0, suspect_s: 60, lost_s: 90, stuck_s: 90, revive_s: 120}"
    )
    words = ["--config", str(tmp_path / "quick.yaml"), "llm", "serve", "-m", MODEL, "--autoscale", AT_FIRST]
    # Without cached prefixes, equal prompts are spread over the replicas.
    options = ["-o", "kv_cache_gb=0.25", "-o", "max_sequence_length=1024", "-o", "prefix_caching=false"]
    with served(tmp_path, *words, *options) as (process, ready):
        assert [row["state"] for row in ready["replicas"]] == ["ready"]
        server = Server(ready["url"], int(ready["url"].rpartition(":")[2]), tmp_path / "errors")

        # Two replicas, each with a stream; one is stopped, and its stream continues on the other one.
        server.ask("scale", model=MODEL, replicas=BOUNDS.replace("0:2", "2:2"))
        server.until(lambda row: row["actual"] == 2)
        expected = server.text(200)
        with ThreadPoolExecutor(2) as pool:
            texts = [pool.submit(server.text, 200) for _ in range(2)]
            while not all(
                row.get("running") for row in server.ask("status")["replicas"] if row["state"] == "ready"
            ):
                assert not any(text.done() for text in texts)
            server.ask("scale", model=MODEL, replicas=BOUNDS.replace("0:2", "0:1"))
            assert [text.result() for text in texts] == [expected] * 2
        server.until(
            lambda row: any("0 requests ended, 1 migrated" in event["text"] for event in row["events"])
        )

        # Nobody asks: no replica, no process, and the server is healthy.
        server.until(asleep)
        assert [path.name for path in run.glob("*.sock")] == [f"control-{server.port}.sock"]
        for path in ("health", "ready"):
            with urllib.request.urlopen(f"{ready['url']}/{path}", timeout=GUARD_S) as answer:
                assert answer.status == 200

        # The first request waits for a replica and is answered.
        assert expected.startswith(server.text(8))
        assert "a request waits and no replica runs" in str(server.scaling["events"])
        server.until(asleep)
        status = server.ask("status")
        assert (status["requests"]["failed"], status["requests"]["migrations"]) == (0, 1)
        shown = subprocess.run([*SAGE, "llm", "status"], capture_output=True, text=True, check=True).stdout
        assert f"scaling {MODEL} 0:1: " in shown
        with urllib.request.urlopen(f"{ready['url']}/metrics", timeout=GUARD_S) as answer:
            metrics = answer.read().decode()
        assert f'sage_llm_scale_desired_replicas{{model="{MODEL}"}} ' in metrics
        process.send_signal(signal.SIGTERM)
        assert process.wait(GUARD_S) == 0, (tmp_path / "errors").read_text()
    log = (tmp_path / "errors").read_text()
    assert f"{MODEL}: ready:" in log

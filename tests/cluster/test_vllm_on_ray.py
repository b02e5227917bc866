"""``sage llm serve --backend vllm --executor ray``: vLLM in an actor answers, and its processes end with it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sage_infer_testing.waiting import eventually
from served_command import GUARD_S, SAGE, served

pytest.importorskip("ray")
pytest.importorskip("vllm")
from ray.cluster_utils import Cluster

MODEL = "smollm2-135m"
# float32, so that equal requests have equal answers; eager, because compiling takes longer than the test.
OPTIONS = ("dtype=float32", "eager=true", "kv_cache_gb=0.5", "max_sequence_length=512")
# A busy machine starts slowly.
SETTINGS = {"llm": {"suspect_s": 60, "lost_s": 120, "max_early_failures": 1000}}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    node = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=node)
    yield made
    made.shutdown()


def answer(url: str) -> str:
    body: dict[str, Any] = {
        "model": MODEL, "messages": [{"role": "user", "content": "Name three rivers."}],
        "temperature": 0, "max_tokens": 24,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=GUARD_S) as found:
        return str(json.load(found)["choices"][0]["message"]["content"])


def descendants(pid: int) -> dict[int, str]:
    """The start times of the processes below a process, by their ids."""
    parents, started = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (fields := status_of(int(entry.name))):
            parents[int(entry.name)], started[int(entry.name)] = int(fields[1]), fields[19]
    found: set[int] = set()
    while more := {child for child, parent in parents.items() if parent in {pid, *found}} - found:
        found |= more
    return {child: started[child] for child in found}


def status_of(pid: int) -> list[str]:
    """The fields of a process after its name; none if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [] if fields[0] == "Z" else fields


def have_ended(processes: dict[int, str]) -> bool:
    return all((status_of(pid) or [""] * 20)[19] != started for pid, started in processes.items())


def test_vllm_in_an_actor_answers_and_leaves_no_process(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "sage_infer.yaml").write_text(json.dumps(SETTINGS))
    subprocess.run([*SAGE, "infer", "model", "add", MODEL], check=True, capture_output=True)
    command = ("--config", "sage_infer.yaml", "llm", "serve", "-m", MODEL, "--backend", "vllm")
    flags = ("--executor", "ray", "--ray-address", cluster.address)
    options = [word for option in OPTIONS for word in ("-o", option)]
    with served(tmp_path, *command, *flags, *options) as (server, status):
        url, (first,) = status["url"], status["replicas"]
        raylet = cluster.head_node.all_processes["raylet"][0].process.pid
        assert first["pid"] in descendants(raylet), "not an actor of the node"
        assert answer(url)
        processes = descendants(first["pid"])
        assert processes, "vLLM's engine runs in a process of its own"
        processes[first["pid"]] = status_of(first["pid"])[19]
        server.send_signal(signal.SIGTERM)
        assert server.wait(GUARD_S) == 0
    asyncio.run(eventually(lambda: have_ended(processes), "processes are left", within_s=GUARD_S))

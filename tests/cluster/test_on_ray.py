"""``sage llm serve --executor ray`` on a cluster of three nodes: faults, drain, scale, and killed control planes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sage_infer.discovery import model_specs
from sage_infer.models import add_model
from sage_infer_testing.waiting import eventually
from served_command import GUARD_S, SAGE, served

pytest.importorskip("ray")
from ray.cluster_utils import Cluster

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
MODEL = "smollm2-135m"
NODE = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Three nodes with one CPU each, so that a replica of a lost node finds room."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    made = Cluster(initialize_head=True, head_node_args=NODE)
    made.add_node(**NODE)
    made.add_node(**NODE)
    yield made
    made.shutdown()


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module with streams over HTTP of ``benchmarks/failures.py``."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    from failing import streams

    return streams


@contextmanager
def serving(
    folder: Path, address: str, *flags: str
) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A running ``sage llm serve``, and what it has printed."""
    config = folder / "sage_infer.yaml"
    # Faults come faster than in life, and a busy machine starts slowly.
    config.write_text(
        json.dumps({"llm": {"outlive_s": GUARD_S, "max_early_failures": 1000, "suspect_s": 30, "lost_s": 60}})
    )
    command = [
        "--config",
        str(config),
        "llm",
        "serve",
        "-m",
        MODEL,
        "--executor",
        "ray",
        "--ray-address",
        address,
    ]
    with served(folder, *command, *flags) as running:
        yield running


def sage(url: str, *command: str) -> Any:
    """What a command prints about the server."""
    done = subprocess.run(
        [*SAGE, *command, "--port", url.rpartition(":")[2], "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def rows(url: str) -> dict[str, dict[str, Any]]:
    found = sage(url, "llm", "status")["replicas"]
    return {row["instance"]: row for row in found if row["state"] != "gone"}


def node_of(cluster: Any, pid: int) -> Any:
    """The node whose raylet has started a process."""
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    for node in cluster.list_all_nodes():
        if any(process.process.pid == parent for process in node.all_processes["raylet"]):
            return node
    raise AssertionError(f"process {pid} belongs to no node")


def identities(status: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {row["instance"]: (row["pid"], row["generation"]) for row in status["replicas"]}


FLAGS = ("--replicas", "2", "-o", "kv_cache_gb=0.25", "-o", "max_sequence_length=512")


@pytest.fixture
def model() -> None:
    """SmolLM2, prepared for the engine."""
    add_model(model_specs()[MODEL])
    subprocess.run([*SAGE, "infer", "model", "add", MODEL], check=True, capture_output=True)


def now(url: str) -> dict[str, tuple[int, int]]:
    return {name: (row["pid"], row["generation"]) for name, row in rows(url).items()}


async def undisturbed(streams: Any, url: str) -> list[Any]:
    found: list[Any] = await streams.Streams(url, 16, 40).end()
    assert streams.differences(found, found) == []
    return found


async def while_open(streams: Any, url: str, event: Callable[[], object]) -> list[Any]:
    """16 streams, with an event while they run."""
    running = streams.Streams(url, 16, 40)
    await running.reach(4)
    assert running.is_open
    await asyncio.to_thread(event)
    found: list[Any] = await running.end()
    return found


async def disturbed(streams: Any, url: str, reference: list[Any], fault: Callable[[], object]) -> None:
    """16 streams, with a fault while they run; they end as if there was none."""
    assert streams.differences(await while_open(streams, url, fault), reference) == []
    await eventually(
        lambda: all(row["state"] in ("ready", "probation") for row in rows(url).values()),
        "no return",
        within_s=GUARD_S,
    )


@pytest.mark.usefixtures("model")
def test_streams_survive_the_loss_of_a_process_and_of_a_node(
    cluster: Any, streams: Any, tmp_path: Path
) -> None:
    with serving(tmp_path, cluster.address, *FLAGS) as (_, status):
        url, first = status["url"], identities(status)
        assert len(first) == 2
        reference = asyncio.run(undisturbed(streams, url))
        pid, generation = first[f"{MODEL}/0"]
        asyncio.run(disturbed(streams, url, reference, lambda: os.kill(pid, signal.SIGKILL)))
        second = now(url)
        assert second[f"{MODEL}/0"][1] > generation, "it was not restarted"
        assert second[f"{MODEL}/1"] == first[f"{MODEL}/1"]

        on_head = {name for name, (pid, _) in second.items() if node_of(cluster, pid) is cluster.head_node}
        lost = min(set(second) - on_head)
        node = node_of(cluster, second[lost][0])
        asyncio.run(
            disturbed(streams, url, reference, lambda: cluster.remove_node(node, allow_graceful=False))
        )
        third = now(url)
        assert third[lost][1] > second[lost][1]
        assert node_of(cluster, third[lost][0]) is not node


@pytest.mark.usefixtures("model")
def test_replicas_are_drained_scaled_and_taken_over(cluster: Any, streams: Any, tmp_path: Path) -> None:
    with serving(tmp_path, cluster.address, *FLAGS) as (server, status):
        url, results = status["url"], []
        reference = asyncio.run(undisturbed(streams, url))
        drained = f"{MODEL}/1"
        asyncio.run(
            disturbed(streams, url, reference, lambda: results.append(sage(url, "llm", "drain", drained)))
        )
        assert results[0]["open"] == results[0]["ended"] + results[0]["migrated"]
        assert list(rows(url)) == [f"{MODEL}/0"]
        assert sage(url, "llm", "scale", MODEL, "2")["changed"]
        last = now(url)
        assert len(last) == 2
        server.kill()
        server.wait()
    with serving(tmp_path, cluster.address, *FLAGS) as (server, status):
        assert identities(status) == last, "the replicas were not taken over"
        found = asyncio.run(while_open(streams, status["url"], lambda: server.send_signal(signal.SIGTERM)))
        assert streams.differences(found, reference) == []
        assert server.wait(GUARD_S) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid, _ in last.values())


@pytest.mark.usefixtures("model")
def test_streams_of_two_gateways_survive_the_loss_of_the_clusters_client(
    cluster: Any, streams: Any, tmp_path: Path
) -> None:
    """The owner of the replicas, which alone is connected to Ray, is killed; the next one takes them over."""
    flags = (*FLAGS, "--gateways", "2")
    with serving(tmp_path, cluster.address, *flags) as (server, status):
        reference = asyncio.run(undisturbed(streams, status["url"]))
        found = asyncio.run(while_open(streams, status["url"], server.kill))
        assert streams.differences(found, reference) == []
        first = identities(status)
    with serving(tmp_path, cluster.address, *flags) as (server, status):
        assert identities(status) == first, "the replicas were not taken over"
        assert streams.differences(asyncio.run(undisturbed(streams, status["url"])), reference) == []
        server.send_signal(signal.SIGTERM)
        assert server.wait(GUARD_S) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid, _ in first.values())

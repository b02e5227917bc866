"""A control plane that was killed: the next one takes over the replicas that fit, and kills the others."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import plane
import pytest
from sage_infer.schemas import ModelDescriptor, ReplicaSpec
from sage_llm.replicas.adoption import adopted
from sage_llm.replicas.local import LocalExecutor
from sage_llm.replicas.record import Lease, started_at
from sage_llm.replicas.run_folder import RUN_FOLDER_VARIABLE, run_folder
from served_command import served

pytestmark = pytest.mark.long


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The run folder; children that a failed test has left are killed."""
    made = tmp_path_factory.mktemp("run")
    made.chmod(0o700)
    monkeypatch.setenv(RUN_FOLDER_VARIABLE, str(made))
    yield made
    for path in made.glob("*.json"):
        if lease := Lease.take(path):
            if pid := lease.process():
                os.killpg(pid, signal.SIGKILL)
            lease.remove()


@contextmanager
def controlled(folder: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A running ``sage llm serve``, and what it printed."""
    config = folder / "sage_infer.yaml"  # a busy machine may need longer than 30 s to start a server
    config.write_text(f"llm: {{outlive_s: {plane.GUARD_S}}}")
    with served(folder, "--config", str(config), "llm", "serve", "-m", "smollm2-135m", *flags) as running:
        yield running


def ask(url: str) -> str:
    body = {
        "model": "smollm2-135m", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "temperature": 0,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=plane.GUARD_S) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


def identities(status: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {row["instance"]: (row["pid"], row["generation"]) for row in status["replicas"]}


def test_a_killed_server_is_followed_by_one_with_its_replicas(
    smollm2: str, minilm: str, folder: Path
) -> None:
    """The next server wants one of the two replicas, and another model."""
    options = ("-o", "kv_cache_gb=0.25", "-o", "threads=1")
    with controlled(folder, *options, "--replicas", "2") as (server, status):
        before, text = identities(status), ask(status["url"])
        server.kill()
        server.wait()
    with controlled(folder, *options, "--embedding", "minilm") as (server, status):
        after = identities(status)
        assert sorted(after) == ["minilm/0", "smollm2-135m/0"]
        assert after["smollm2-135m/0"] == before["smollm2-135m/0"]
        (row,) = (row for row in status["replicas"] if row["instance"] == "smollm2-135m/0")
        assert row["state"] == "ready"
        assert "taken over" in row["reason"]
        assert not started_at(before["smollm2-135m/1"][0]), "a replica that nobody wants still runs"
        assert ask(status["url"]) == text
        server.send_signal(signal.SIGTERM)
        assert server.wait(plane.GUARD_S) == 0
    assert not any(started_at(pid) for pid, _ in (*before.values(), *after.values()))
    assert {path.name for path in folder.iterdir()} == {"sage_infer.yaml", "errors"}


# --- parts, with processes that are no replicas


class Adopts:
    """An executor that finds replicas; ``killed`` has the ids of those that were killed."""

    def __init__(self, specs: list[ReplicaSpec], generation: int) -> None:
        self.specs, self.generation, self.killed = specs, generation, list[str]()

    async def adopt(self) -> list[Any]:
        return [self.handle(spec) for spec in self.specs]

    def handle(self, spec: ReplicaSpec) -> Any:
        async def kill() -> None:
            self.killed.append(spec.replica_id)

        @attrs.define
        class Handle:
            spec: ReplicaSpec
            descriptor: Any
            kill: Any

        @attrs.define
        class Descriptor:
            generation: int

        return Handle(spec, Descriptor(self.generation), kill)


def spec(number: int, model: Path, **options: Any) -> ReplicaSpec:
    descriptor = ModelDescriptor(model_id="m", model_type="llm", model_path=str(model))
    return ReplicaSpec(replica_id=f"m/{number}", backend="openvino", model=descriptor, options=options)


def test_what_fits_is_adopted_and_the_rest_is_killed(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.write_text("weights")
    changed = model.stat().st_mtime_ns
    wanted = [spec(0, model, sizes=(1, 2)), spec(1, model)]

    def find(found: list[ReplicaSpec], generation: int) -> tuple[list[str], list[str]]:
        executor: Any = Adopts(found, generation)
        return sorted(asyncio.run(adopted(executor, wanted))), executor.killed

    stored = spec(0, model, sizes=[1, 2])  # as it is read from a record
    assert find([stored, spec(1, model)], changed + 1) == (["m/0", "m/1"], [])
    assert find([stored, spec(1, model, threads=2), spec(2, model)], changed + 1) == (["m/0"], ["m/1", "m/2"])
    assert find([stored], changed - 1) == ([], ["m/0"])  # the file was written since
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("new")
    wanted = [spec(0, folder)]
    assert find([spec(0, folder)], (folder / "weights").stat().st_mtime_ns - 1) == ([], ["m/0"])


def test_a_replica_whose_starter_died_is_killed_and_its_record_deleted(folder: Path) -> None:
    process = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        starting = Lease.new(run_folder())
        starting.write_process(process.pid)
        starting.release()
        torn = Lease.new(run_folder())
        torn.path.write_text('{"pid": 1')
        torn.release()

        async def main() -> None:
            assert await LocalExecutor().adopt() == []

        asyncio.run(main())
        assert process.wait(plane.GUARD_S) == -signal.SIGKILL
        assert not list(folder.iterdir())
    finally:
        process.kill()
        process.wait()

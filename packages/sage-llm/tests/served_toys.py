"""The backends of ``served_plugin``, and a server of one in this process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from kit_reference.embedding import ReferenceEmbedder
from kit_reference.llm import ReferenceLLM
from sage_infer.compat import timeout
from sage_infer.errors import BackendUnavailable, OutOfMemory
from sage_infer.schemas import ModelDescriptor, ReplicaSpec
from sage_infer_transport import LocalTransport, SharedMemoryEndpoint
from sage_llm.replicas.backends import InferenceReplica
from sage_llm.replicas.server import ReplicaServer, describe

GUARD_S = 300
MODEL = ModelDescriptor(model_id="reference", model_type="llm", model_path="/")
WORDS = ModelDescriptor(model_id="words", model_type="embedding", model_path="/")


def llm_spec(replica_id: str = "reference/0", **changes: Any) -> ReplicaSpec:
    return ReplicaSpec(**{"replica_id": replica_id, "backend": "reference", "model": MODEL, **changes})


def words_spec(replica_id: str = "words/0", **changes: Any) -> ReplicaSpec:
    return ReplicaSpec(**{"replica_id": replica_id, "backend": "words", "model": WORDS, **changes})


class SlowLLM(ReferenceLLM):
    """Pauses between steps."""

    pause_s = 0.0

    async def run(self) -> None:
        while True:
            if not self.running and not self.waiting:
                self.work.clear()
                await self.work.wait()
            self.expire()
            self.admit()
            self.counts["steps"] += 1
            for request in list(self.running):
                self.step(request)
            await asyncio.sleep(self.pause_s)


def make_llm(model: ModelDescriptor, pause_s: float = 0.0) -> ReferenceLLM:
    made = SlowLLM()
    made.pause_s = pause_s
    print("stdout of an engine is not the protocol")
    return made


def make_embedder(model: ModelDescriptor) -> ReferenceEmbedder:
    return ReferenceEmbedder()


class Full(ReferenceLLM):
    def __init__(self, model: ModelDescriptor) -> None:
        super().__init__()

    async def start(self) -> None:
        raise OutOfMemory("the model needs 80 GiB, and 24 GiB are free; use a smaller one")


class Crashing(ReferenceLLM):
    def __init__(self, model: ModelDescriptor) -> None:
        super().__init__()

    async def start(self) -> None:
        print("engine says: bad weights", file=sys.stderr, flush=True)
        os._exit(3)


class Stuck(ReferenceLLM):
    def __init__(self, model: ModelDescriptor) -> None:
        super().__init__()

    async def start(self) -> None:
        await asyncio.Event().wait()


class Parent(ReferenceLLM):
    """Has a worker process, whose pid it writes to a file."""

    def __init__(self, model: ModelDescriptor, pid_file: str) -> None:
        super().__init__()
        self.pid_file = pid_file

    async def start(self) -> None:
        worker = subprocess.Popen(["sleep", "1000"])  # noqa: ASYNC220 - a toy
        with open(self.pid_file, "w") as file:  # noqa: ASYNC230 - a toy
            file.write(str(worker.pid))
        await super().start()


PIGEONS = "SAGE_TEST_PIGEONS"
"""Variable with the file in which transports and endpoints write what they do."""


def note(line: str) -> None:
    with open(os.environ[PIGEONS], "a") as file:
        file.write(line + "\n")


class Pigeon(LocalTransport):
    async def execute(self, plan: Any, *, on_step: Any = None) -> Any:
        report = await super().execute(plan, on_step=on_step)
        note(f"moved {report.moved_bytes} bytes, up to {self.settings.max_in_flight} chunks simultaneously")
        return report


class Dovecote(SharedMemoryEndpoint):
    def __init__(self) -> None:
        super().__init__(capacity_bytes=1 << 20)
        note("opened")

    def close(self) -> None:
        super().close()
        note("closed")


def no_dovecote() -> None:
    note("not opened")
    raise BackendUnavailable("the pigeons are ill; feed them")


async def freeze(pid: int) -> None:
    """Stop a process; until it has stopped, it may answer."""
    os.kill(pid, signal.SIGSTOP)
    async with timeout(GUARD_S):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "T":  # noqa: ASYNC110, ASYNC240 - it has no event
            await asyncio.sleep(0.001)


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[tuple[SlowLLM, str]]:
    """A served reference engine and its address."""
    engine = options.pop("engine", None) or SlowLLM()
    engine.pause_s = options.pop("pause_s", 0.0)
    await engine.start()
    with tempfile.TemporaryDirectory(prefix="sage-") as folder:
        path = Path(folder) / "r.sock"
        address = f"unix:{path}"
        server = ReplicaServer(engine, describe(engine, llm_spec(), address), report_s=0.02, **options)
        await server.start(path)
        try:
            yield engine, address
        finally:
            await server.close()
            await engine.close()


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[InferenceReplica]:
    client = InferenceReplica(address)
    await client.start()
    try:
        yield client
    finally:
        await client.close()

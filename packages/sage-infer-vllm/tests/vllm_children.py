"""What the processes of ``test_vllm_process`` run; a module of its own, because they import it."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from multiprocessing import shared_memory
from multiprocessing.connection import Connection
from types import SimpleNamespace

__all__ = ["ToyWorker", "fail", "fork_failing_worker", "hold_shared_memory", "say_group"]


def say_group(writer: Connection) -> None:
    """Send process id, group, and the module that runs as the main one."""
    spec = sys.modules["__main__"].__spec__
    writer.send((os.getpid(), os.getpgid(0), spec.name if spec is not None else ""))


def hold_shared_memory(writer: Connection) -> None:
    """Send the name of a block of shared memory and the id of a child; then wait for ever, with a semaphore too."""
    block = shared_memory.SharedMemory(create=True, size=64)
    lock = multiprocessing.get_context("spawn").Lock()
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    writer.send((block.name, child.pid))
    with lock:
        threading.Event().wait()


def fail() -> None:
    raise ValueError("there is no room")


def fork_failing_worker() -> None:
    """As a forked engine core does whose worker fails."""
    worker = multiprocessing.get_context("fork").Process(target=fail, name="VllmWorker-0")
    worker.start()
    worker.join()
    raise RuntimeError("a worker failed")


class ToyWorker:
    """The methods of a vLLM worker that are reported."""

    def __init__(self) -> None:
        spec = SimpleNamespace(
            block_size=16, num_kv_heads=2, head_size=8, dtype="torch.bfloat16", page_size_bytes=1024
        )
        group = SimpleNamespace(
            backend=SimpleNamespace(get_name=lambda: "TOY"), metadata_builders=[SimpleNamespace(isa="vec")],
            layer_names=["layers.0.attn", "layers.10.attn", "layers.2.attn"],
        )  # fmt: skip
        self.model_runner = SimpleNamespace(
            get_kv_cache_spec=lambda: dict.fromkeys(group.layer_names, spec), attn_groups=[[group]]
        )

    def load_model(self) -> str:
        return "loaded"

    def determine_available_memory(self) -> int:
        raise ValueError("no memory")

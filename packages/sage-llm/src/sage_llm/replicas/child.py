"""The process of a replica: ``python -m sage_llm.replicas.child``, started by ``LocalExecutor``.

It reads one line of JSON from its standard input and answers with one line on its standard output. Its standard error
is a log file. If the starting process dies, nobody holds the lock of the record; the replica waits for adoption, and
ends when nobody has adopted it within its grace time.
"""

from __future__ import annotations

import asyncio
import fcntl
import inspect
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import msgspec
from sage_infer.backends import open_backend
from sage_infer.compat import Runner
from sage_infer.factories import load_object
from sage_infer.names import GENERATING
from sage_infer.schemas import ReplicaSpec
from sage_infer.schemas.codec import from_dict, to_dict

from sage_llm.replicas.server import describe, served, stop_serving
from sage_llm.replicas.spans import export_spans
from sage_llm.replicas.wire_errors import to_wire

__all__ = ["main"]

_LOOK_S = 0.25
_CLOSE_S = 10.0


def main() -> None:
    """Run the replica until it is told to stop."""
    orders, answers = _private_streams()
    first = orders.readline()
    if not first:
        return
    order = json.loads(first)
    spec = from_dict(order["spec"], ReplicaSpec)

    def answer(data: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):  # nobody waits any more
            answers.write(json.dumps(data).encode() + b"\n")
            answers.flush()

    def watch(stop: Callable[[], object]) -> None:
        watcher = threading.Thread(
            target=_watch_owner, args=(orders, Path(order["record"]), order["grace_s"], stop), daemon=True
        )
        watcher.start()

    exporter = None
    try:
        exporter = export_spans()
        with Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_run(spec, answer, watch))
    except Exception as error:
        answer({"failed": msgspec.to_builtins(to_wire(error))})
        raise
    finally:
        if exporter is not None:
            exporter.shutdown()


async def _run(
    spec: ReplicaSpec,
    answer: Callable[[dict[str, Any]], None],
    watch: Callable[[Callable[[], object]], None],
) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    watch(lambda: loop.call_soon_threadsafe(stop.set))
    ready = asyncio.Event()
    serving = loop.create_task(_serve(spec, answer, ready, stop))
    stopping = loop.create_task(stop.wait())
    await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not ready.is_set():
        serving.cancel()  # it is still loading, or has failed
    with suppress(asyncio.CancelledError):
        await serving


async def _serve(
    spec: ReplicaSpec, answer: Callable[[dict[str, Any]], None], ready: asyncio.Event, stop: asyncio.Event
) -> None:
    model = attrs.evolve(spec.model, device_ids=spec.device_ids) if spec.device_ids else spec.model
    serves: Any = "llm" if model.model_type in GENERATING else model.model_type
    async with open_backend(spec.backend, model=model, serves=serves, **spec.options) as backend:
        assert spec.server is not None
        server = load_object(spec.server, what=f"server of replica {spec.replica_id}")
        address = server(backend, spec)
        if inspect.isawaitable(address):
            address = await address
        descriptor = served(address) or describe(backend, spec, address)
        ready.set()
        answer({"ready": to_dict(descriptor)})
        await stop.wait()
        await backend.close()  # ends open requests, which clients shall still hear
        await stop_serving(address)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's event loop, if available."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _private_streams() -> tuple[Any, Any]:
    """Return the pipes to the starting process; engines that read or print get other streams."""
    orders, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return os.fdopen(orders, "rb"), os.fdopen(answers, "wb")


def _watch_owner(orders: Any, record: Path, grace_s: float, stop: Callable[[], object]) -> None:
    """Stop the replica when nobody has owned it for ``grace_s`` seconds. Runs in a thread."""
    while orders.read(1):
        pass  # the pipe is open while the starting process lives
    free_since: float | None = None
    while True:
        if _is_owned(record):
            free_since = None
        elif free_since is None:
            free_since = time.monotonic()
        if free_since is not None and time.monotonic() - free_since >= grace_s:
            break
        time.sleep(_LOOK_S)
    for path in (record, record.with_suffix(".log")):
        with suppress(FileNotFoundError):
            path.unlink()
    stop()
    time.sleep(_CLOSE_S)
    os.killpg(0, signal.SIGKILL)  # the close hangs


def _is_owned(record: Path) -> bool:
    try:
        file = os.open(record, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


if __name__ == "__main__":
    main()

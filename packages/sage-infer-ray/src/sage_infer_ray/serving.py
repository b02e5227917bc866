"""A backend and its server, on an event loop in a thread of an actor's process."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from sage_infer.backends import open_backend
from sage_infer.compat import Runner
from sage_infer.factories import load_object
from sage_infer.names import GENERATING
from sage_infer.schemas import InstanceDescriptor, ReplicaSpec

__all__ = ["Serving"]

_CLOSE_S = 10.0
_FLUSH_S = 0.2  # for clients to read what the close of the backend has sent


class Serving:
    """One start of a replica: its backend, and the server that the spec names.

    Args:
        spec: the replica; its environment is set in this process.
        labels: labels of the descriptor.
    """

    def __init__(self, spec: ReplicaSpec, labels: dict[str, str]) -> None:
        self.spec, self._labels = spec, labels
        self._ready: Future[InstanceDescriptor] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name=spec.replica_id, daemon=True)
        os.environ.update(spec.environment)
        self._thread.start()

    @property
    def descriptor(self) -> InstanceDescriptor | None:
        """The replica's identity; None until it is ready."""
        return self._ready.result() if self._ready.done() and self._ready.exception() is None else None

    def until_ready(self) -> InstanceDescriptor:
        """Wait until the replica accepts connections; raises what the backend or the server raised."""
        return self._ready.result()

    def stop(self) -> None:
        """Close the backend, and wait for it for some seconds. Safe to call twice."""
        if self._loop is not None and self._stop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        try:
            with Runner(loop_factory=_loop_factory()) as runner:
                runner.run(self._serve())
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)

    async def _serve(self) -> None:
        spec = self.spec
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        serves: Any = "llm" if spec.model.model_type in GENERATING else spec.model.model_type
        async with open_backend(spec.backend, model=spec.model, serves=serves, **spec.options) as backend:
            assert spec.server is not None
            address = load_object(spec.server, what=f"server of replica {spec.replica_id}")(backend, spec)
            if inspect.isawaitable(address):
                address = await address
            self._ready.set_result(
                InstanceDescriptor(
                    instance_id=spec.replica_id,
                    generation=time.time_ns(),
                    model_ids=(spec.model.model_id,),
                    capability=backend.get_capability(),
                    addresses=(address,),
                    labels=self._labels,
                )
            )
            await self._stop.wait()
            await backend.close()
            await asyncio.sleep(_FLUSH_S)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's event loop, if available."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop

"""Questions to an engine about texts, such as tokenization: asked the least loaded instance, then others."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from sage_infer.compat import TaskCancelled, result_of
from sage_infer.errors import Overloaded, SageInferError

from sage_llm.manager.classify import as_sage_error, meaning
from sage_llm.manager.live_instance import LiveInstance
from sage_llm.manager.placing import Placement

__all__ = ["BatchCalls"]

T = TypeVar("T")
_MOST = 3
_LOOK_S = 0.02


class BatchCalls:
    """Runs calls on the instances of a model.

    Args:
        on_lost: called with an instance and the reason when a call shows that it has ended.
        stranded: returns the error of a call that has waited so long without an instance of a model; None if it may
            continue to wait.
        wait_s: maximum time to wait for one of several busy instances.

    Attributes:
        waiting: number of calls that wait for an instance, by model.
    """

    def __init__(
        self,
        placement: Placement,
        *,
        on_lost: Callable[[LiveInstance, str], object],
        stranded: Callable[[str, float], SageInferError | None],
        wait_s: float = 60.0,
    ) -> None:
        self._placement, self._on_lost, self._stranded, self._wait_s = placement, on_lost, stranded, wait_s
        self.waiting: Counter[str] = Counter()

    @property
    def version(self) -> int:
        """Changes whenever an instance is added, removed or changes its state."""
        return self._placement.registry.version

    async def run(self, model_id: str, call: Callable[[Any], Awaitable[T]]) -> T:
        """Await ``call(backend)`` on an instance; on another one if that instance is lost or fails.

        Raises:
            SageInferError: of the call, of its last instance, or because there is no instance.
        """
        excluded: set[LiveInstance] = set()
        started = time.monotonic()
        while True:
            instance = await self._instance(model_id, excluded, started)
            task = asyncio.ensure_future(_awaited(call, instance.backend))
            instance.add_call(task)
            try:
                result = await result_of(task)
                instance.produced()
                return result
            except TaskCancelled:
                pass  # the instance was lost, and its calls were cancelled
            except asyncio.CancelledError:
                raise
            except BaseException as found:
                error = as_sage_error(found, instance.instance_id)
                kind = meaning(error)
                if kind == "final":
                    raise error from None
                if kind == "lost":
                    self._on_lost(instance, error.message)
                elif kind == "busy":
                    assert isinstance(error, Overloaded)
                    instance.refused(error, time.monotonic())
                else:
                    instance.failed(time.monotonic())
                others = [i for i in self._placement.instances(model_id) if i.is_open and i not in excluded]
                if len(excluded) + 1 >= _MOST or (kind != "lost" and others in ([], [instance])):
                    raise error from None
            finally:
                instance.calls.discard(task)
                instance.left()
            excluded.add(instance)

    async def _instance(self, model_id: str, excluded: set[LiveInstance], started: float) -> LiveInstance:
        """The least loaded instance; waits while none has room."""
        while True:
            now = time.monotonic()
            fitting = [
                i for i in self._placement.instances(model_id) if i.has_room(now) and i not in excluded
            ]
            if fitting:
                chosen = min(fitting, key=lambda i: (len(i.calls) + len(i.attempts), i.served))
                chosen.breaker.sent(now)
                return chosen
            is_busy = any(i.is_open for i in self._placement.instances(model_id))
            if not is_busy or now - started > self._wait_s:
                error = self._stranded(model_id, now - started)
                if error is not None:
                    raise error
            self.waiting[model_id] += 1
            try:
                await asyncio.sleep(_LOOK_S)
            finally:
                self.waiting[model_id] -= 1


async def _awaited(call: Callable[[Any], Awaitable[T]], backend: Any) -> T:
    return await call(backend)

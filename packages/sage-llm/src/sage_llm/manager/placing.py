"""Placement of waiting requests on instances."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Iterator

from sage_llm.manager.live_instance import LiveInstance
from sage_llm.manager.request import ManagedRequest

__all__ = ["Placement"]


class Placement:
    """The instances by model, and the requests that wait for them."""

    def __init__(self) -> None:
        self._instances: dict[str, list[LiveInstance]] = {}
        self._queues: dict[str, list[tuple[int, float, int, ManagedRequest]]] = {}
        self._numbers = itertools.count()
        self._last_open: dict[str, float] = {}

    # --- instances

    def add(self, instance: LiveInstance) -> None:
        self._instances.setdefault(instance.model_id, []).append(instance)

    def remove(self, instance: LiveInstance) -> None:
        self._last_open[instance.model_id] = time.monotonic()
        self._instances[instance.model_id].remove(instance)

    def instances(self, model_id: str) -> list[LiveInstance]:
        return self._instances.get(model_id, [])

    def last_open(self, model_id: str) -> float:
        return self._last_open.get(model_id, 0.0)

    # --- requests

    def enqueue(self, request: ManagedRequest, now: float) -> None:
        band = -1 if request.ledger.has_started else request.options.priority
        queue = self._queues.setdefault(request.model_id, [])
        heapq.heappush(queue, (band, request.arrived, next(self._numbers), request))

    def waiting(self) -> Iterator[ManagedRequest]:
        for queue in self._queues.values():
            yield from (entry[-1] for entry in queue if entry[-1].outcome is None)

    def next(self, now: float) -> tuple[ManagedRequest, LiveInstance] | None:
        """The next waiting request that can be dispatched, with its instance; it no longer waits."""
        for model_id, queue in self._queues.items():
            found = self._next_of(model_id, queue, now)
            if found is not None:
                return found
        return None

    def _next_of(
        self, model_id: str, queue: list[tuple[int, float, int, ManagedRequest]], now: float
    ) -> tuple[ManagedRequest, LiveInstance] | None:
        rooms = [i for i in self.instances(model_id) if i.has_room(now)]
        skipped, found = [], None
        while queue and rooms and found is None:
            entry = heapq.heappop(queue)
            request = entry[-1]
            fitting = [i for i in rooms if i not in request.excluded]
            if request.outcome is not None:
                continue
            if fitting:
                found = request, min(fitting, key=lambda i: (i.queued_tokens, len(i.attempts), i.slot))
            else:
                skipped.append(entry)
        for entry in skipped:
            heapq.heappush(queue, entry)
        return found

    def release(self, instance: LiveInstance) -> list[ManagedRequest]:
        return []

    def started(self, request: ManagedRequest, instance: LiveInstance) -> None: ...

    def left(self, request: ManagedRequest) -> None: ...

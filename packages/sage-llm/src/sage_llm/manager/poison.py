"""Requests that crash their instances: they are found by running suspects alone, and refused for an hour."""

from __future__ import annotations

import bisect
import time
from collections.abc import Iterator

from sage_llm.manager.live_instance import LiveInstance
from sage_llm.manager.migration import PoisonRequest
from sage_llm.manager.placing import Placement
from sage_llm.manager.request import ManagedRequest

__all__ = ["Quarantine", "Trials"]

_KEPT_S = 3600.0
_MOST = 1024


class Quarantine:
    """Hashes of poison requests."""

    def __init__(self) -> None:
        self._until: dict[int, float] = {}

    def add(self, request: ManagedRequest) -> None:
        while len(self._until) >= _MOST:
            self._until.pop(next(iter(self._until)))
        self._until[_hash(request)] = time.monotonic() + _KEPT_S

    def check(self, request: ManagedRequest) -> None:
        """Refuse a request like one that crashed several instances.

        Raises:
            PoisonRequest: it is one.
        """
        if not self._until:
            return
        until = self._until.get(_hash(request))
        if until is not None and time.monotonic() < until:
            raise PoisonRequest(
                f"request {request.request_id} was refused, because an equal one crashed several instances of model "
                f"{request.model_id!r} within the last hour"
            )


class Trials:
    """Requests that ran on two instances that crashed, and run alone next.

    The first ones are those that had got least far when their instance crashed. A request that gets further is no
    suspect any more; until all are tried, its instance is kept for the next ones. So trials also end on busy instances.

    Attributes:
        waiting: the requests that wait for an instance.
    """

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self.waiting: list[ManagedRequest] = []
        self._kept: dict[LiveInstance, ManagedRequest | None] = {}  # instances with the request on trial

    def add(self, request: ManagedRequest) -> None:
        bisect.insort(self.waiting, request, key=lambda other: other.crash_tokens)

    def start(self) -> Iterator[tuple[ManagedRequest, LiveInstance]]:
        """The requests that can run now, each with its instance."""
        for request in list(self.waiting):
            instances = self._placement.instances(request.model_id)
            instance = next(filter(self._may_try, instances), None)
            if instance is not None:
                self.waiting.remove(request)
                self._kept[instance] = request
                instance.isolate()
                yield request, instance

    def _may_try(self, instance: LiveInstance) -> bool:
        if instance in self._kept:
            return self._kept[instance] is None and instance.word in ("ready", "probation")
        return instance.is_open and not instance.attempts

    def passed(self, request: ManagedRequest, instance: LiveInstance) -> None:
        """A request has got further than before the crash, or has left its instance."""
        if self._kept.get(instance) is request:
            self._kept[instance] = None
            self._release()

    def ended(self, request: ManagedRequest) -> None:
        """A request has ended, perhaps while it waited."""
        if request in self.waiting:
            self.waiting.remove(request)
            self._release()

    def acquit(self, culprit: ManagedRequest) -> list[ManagedRequest]:
        """Take out the requests that crashed only together with the culprit; returns those that were not on trial."""
        found = [request for request in self.waiting if request.excluded <= culprit.excluded]
        for request in found:
            self.waiting.remove(request)
            request.crashes = 0
        for instance, tried in self._kept.items():
            if tried is not None and tried.excluded <= culprit.excluded:
                self._kept[instance], tried.crashes = None, 0
        self._release()
        return found

    def _release(self) -> None:
        """Open the instances that no waiting request needs."""
        needed = {request.model_id for request in self.waiting}
        for instance, request in list(self._kept.items()):
            if request is None and instance.model_id not in needed:
                del self._kept[instance]
                instance.is_isolated = False


def _hash(request: ManagedRequest) -> int:
    params = request.params
    return hash(
        (request.model_id, request.prompt, params.max_tokens, params.temperature, params.n, params.stop)
    )

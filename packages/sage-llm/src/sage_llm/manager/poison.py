"""Requests that crash their instances: they are remembered, and refused for an hour."""

from __future__ import annotations

import time

from sage_llm.manager.migration import PoisonRequest
from sage_llm.manager.request import ManagedRequest

__all__ = ["Quarantine"]

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


def _hash(request: ManagedRequest) -> int:
    params = request.params
    return hash(
        (request.model_id, request.prompt, params.max_tokens, params.temperature, params.n, params.stop)
    )

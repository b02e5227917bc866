"""Hints to instances about requests that wait for them, so that stored KV of their prompts moves up meanwhile."""

from __future__ import annotations

import time
from collections import Counter

from sage_infer.contracts import KVPrefetching
from sage_infer.errors import SageInferError, UnsupportedFeature

from sage_llm.manager.live_instance import LiveInstance
from sage_llm.manager.placing import Placement
from sage_llm.manager.request import ManagedRequest
from sage_llm.tasks import Tasks
from sage_llm.types import Snapshot

__all__ = ["KVHints"]

_AHEAD = 4  # waiting requests per instance whose KV may move up, so that they do not push each other out
_LOOKS = 16  # requests that are placed in one look
_PATIENCE = 8  # hints in a row for which an instance had no page
_QUIET_S = 10.0  # for which it then gets none


class KVHints:
    """Sends each waiting request's prompt to the instance that it would be placed on now, once.

    Attributes:
        sent: number of hints.
        pages: pages that instances had in the fastest tier, or moved there, because of hints.
    """

    def __init__(self, placement: Placement, tasks: Tasks) -> None:
        self.sent = self.pages = 0
        self._placement, self._tasks = placement, tasks
        self._hinted: dict[str, str] = {}  # instances by id of the request, while it waits
        self._misses: Counter[str] = Counter()
        self._quiet_until: dict[str, float] = {}  # by instance

    def send(self, now: float) -> None:
        """Look for waiting requests without a hint."""
        waiting = {request.request_id: request for request in self._placement.waiting()}
        self._hinted = {name: where for name, where in self._hinted.items() if name in waiting}
        new = [
            request
            for name, request in waiting.items()
            if name not in self._hinted and isinstance(request, ManagedRequest) and _has_known_keys(request)
        ]
        if not new:
            return
        ahead, snapshot = Counter(self._hinted.values()), self._placement.builder.snapshot(now)
        for request in new[:_LOOKS]:
            instance = self._probable(request, snapshot)
            if instance is None or ahead[instance.instance_id] >= _AHEAD or not self._listens(instance, now):
                continue
            ahead[instance.instance_id] += 1
            self._hinted[request.request_id] = instance.instance_id
            self._tasks.spawn(self._hint(instance, request))

    def _probable(self, request: ManagedRequest, snapshot: Snapshot) -> LiveInstance | None:
        """The instance that the request would be placed on, although it has no room now."""
        if request.view is None:
            return None
        return self._placement.at(self._placement.policy.place(request.view, snapshot).slot)

    def _listens(self, instance: LiveInstance, now: float) -> bool:
        return instance.is_open and now >= self._quiet_until.get(instance.instance_id, 0.0)

    async def _hint(self, instance: LiveInstance, request: ManagedRequest) -> None:
        backend, name = instance.backend, instance.instance_id
        tokens = (*(request.ledger.prompt or ()), *request.ledger.records[0].token_ids)
        pages, is_deaf = 0, not isinstance(backend, KVPrefetching)
        if not is_deaf:
            try:
                pages = await backend.prefetch_kv(tokens, cache_salt=request.options.cache_salt)
            except UnsupportedFeature:
                is_deaf = True
            except SageInferError:
                return
        self.sent, self.pages = self.sent + (not is_deaf), self.pages + pages
        self._misses[name] = 0 if pages else self._misses[name] + 1
        if is_deaf or self._misses[name] >= _PATIENCE:
            self._misses[name], self._quiet_until[name] = 0, time.monotonic() + _QUIET_S
        if pages:
            request.prefetched = name, pages
            self._placement.receipts.prefetched(request.request_id, name, pages)


def _has_known_keys(request: ManagedRequest) -> bool:
    """Whether its KV is named by its tokens alone, and no client reads it yet."""
    ledger, params = request.ledger, request.params
    return ledger.prompt is not None and params.n == 1 and not params.adapter and not request.prompt.media

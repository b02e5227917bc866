"""Requests of one model that wait in the control plane, in the order of a policy."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator

from attrs import define, field

from sage_llm.policies.base import OrderPolicy
from sage_llm.tenants import TenantTable
from sage_llm.types import Decision, RequestView, Snapshot

__all__ = ["HELD", "WaitingQueue"]

HELD = Decision("wait", "", reason="quota")
"""A request waits because of its tenant's quota, so that others of the tenant wait as well."""

_LOOK = 16
_MOST_ASIDE = 256
_Entry = tuple[float, int]  # key or arrival, and number


@define
class _Lane:
    """Waiting requests of one band and tenant: by key, and by arrival."""

    band: int
    tenant: str
    by_key: list[_Entry] = field(factory=list)
    by_arrival: list[_Entry] = field(factory=list)


class WaitingQueue:
    """Waiting requests by bands, tenants and keys of an order policy.

    Bands are strict, but a request moves up by one band for each ``ageing_s`` of waiting, at most to the first band
    in which requests wait. Within a band, the tenant with the least service is next. Within a tenant, the request
    with the smallest key is next, or the oldest one if it has moved up.

    A request that does not fit anywhere is passed by others only until it has waited for ``ageing_s``, so that a large
    request is not starved by small ones.
    """

    def __init__(self, order: OrderPolicy, tenants: TenantTable) -> None:
        self._order, self._tenants = order, tenants
        self._lanes: dict[tuple[int, str], _Lane] = {}
        self._live: dict[int, RequestView] = {}
        self._numbers: dict[str, int] = {}
        self._next = 0
        self._aside: set[int] = set()  # during ``take``: requests that did not fit
        self._back: list[tuple[list[_Entry], _Entry]] = []  # and their entries
        self._shut: set[tuple[int, str]] = set()  # and lanes of tenants whose quota holds

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._numbers

    def __iter__(self) -> Iterator[RequestView]:
        return iter(self._live.values())

    def push(self, request: RequestView, snapshot: Snapshot) -> None:
        """Add a request.

        Raises:
            ValueError: a request with this id waits already.
        """
        if request.id in self._numbers:
            raise ValueError(f"request {request.id!r} waits already")
        number, self._next = self._next, self._next + 1
        band = request.band if self._order.by_band else 0
        tenant = request.tenant if self._order.by_tenant else ""
        lane = self._lanes.setdefault((band, tenant), _Lane(band, tenant))
        key = self._order.key(request, snapshot)
        heapq.heappush(lane.by_key, (key, number))
        heapq.heappush(lane.by_arrival, (request.arrived, number))
        if len(lane.by_key) > 2 * len(self._live) + 64:  # most of them were removed
            for heap in (lane.by_key, lane.by_arrival):
                heap[:] = [entry for entry in heap if entry[-1] in self._live or entry[-1] == number]
                heapq.heapify(heap)
        self._live[number] = request
        self._numbers[request.id] = number
        self._tenants.queued(request.tenant)

    def remove(self, request_id: str) -> RequestView | None:
        """Remove a waiting request, for example because it was cancelled. Returns None if it does not wait."""
        request = self._drop(request_id)
        if request is not None:
            self._tenants.left(request.tenant)
        return request

    def take(
        self, now: float, place: Callable[[RequestView], Decision], *, first: Iterable[RequestView] = ()
    ) -> tuple[RequestView, Decision] | None:
        """Remove and return the next request that can be dispatched or must be refused, with its decision.

        Args:
            place: placement of a request. If it decides to wait, later requests are tried, at most 16 in all; those
                that are ``HELD`` by a quota do not count, and no later ones of their tenant and band are tried.
            first: waiting requests that are tried before all others.

        Returns:
            None if nothing can be dispatched now. The service of the request's tenant grows by its expected work.
        """
        found = next((one for one in self._of(first, place) if one[1].kind != "wait"), None)
        looks = 0
        while found is None and looks < _LOOK and len(self._aside) < _MOST_ASIDE:
            lane, aged = self._pick(now)
            if lane is None:
                break
            number = (lane.by_arrival if aged else lane.by_key)[0][-1]
            request = self._live[number]
            decision = self._decided(request, place)
            if decision.kind != "wait":
                found = request, decision
                break
            if decision.slot >= 0 and now - request.arrived >= self._order.ageing_s:
                break  # nothing passes it any more
            self._aside.add(number)
            if decision.reason != "quota":
                looks += 1
            elif self._order.by_tenant:
                self._shut.add((lane.band, lane.tenant))
        self._restore()
        if found is not None:
            request, decision = found
            self._drop(request.id)
            if decision.kind == "dispatch":
                self._tenants.dispatched(request.tenant, decision.uncached + request.out_q50)
            else:
                self._tenants.left(request.tenant)
        return found

    def _of(
        self, requests: Iterable[RequestView], place: Callable[[RequestView], Decision]
    ) -> Iterator[tuple[RequestView, Decision]]:
        """The decisions about those of the requests that wait here."""
        for request in requests:
            if request.id in self._numbers:
                yield request, self._decided(request, place)

    def _decided(self, request: RequestView, place: Callable[[RequestView], Decision]) -> Decision:
        return place(request) if self._tenants.may_open(request.tenant) else HELD

    # --- lanes

    def _pick(self, now: float) -> tuple[_Lane | None, bool]:
        """The next lane, and whether its oldest request has moved up."""
        open_lanes = [lane for of, lane in self._lanes.items() if of not in self._shut]
        lanes = [lane for lane in open_lanes if self._clean(lane)]
        if not lanes:
            return None, False
        top = min(lane.band for lane in lanes)
        best: tuple[tuple[float, float, float], _Lane, bool] | None = None
        for lane in lanes:
            moved = int((now - lane.by_arrival[0][0]) / self._order.ageing_s)
            band = max(top, lane.band - moved)
            aged = band < lane.band
            service = self._tenants.service(lane.tenant) if self._order.by_tenant else 0.0
            key = (lane.by_arrival if aged else lane.by_key)[0][0]
            rank = (float(band), service, key)
            if best is None or rank < best[0]:
                best = rank, lane, aged
        assert best is not None  # there are lanes
        return best[1], best[2]

    def _clean(self, lane: _Lane) -> bool:
        """Drop removed requests from the heads of a lane, and take those set aside out of it for now.

        Returns whether any request is left.
        """
        for heap in (lane.by_key, lane.by_arrival):
            while heap and (heap[0][-1] not in self._live or heap[0][-1] in self._aside):
                entry = heapq.heappop(heap)
                if entry[-1] in self._live:
                    self._back.append((heap, entry))
        return bool(lane.by_key)

    def _restore(self) -> None:
        for heap, entry in self._back:
            heapq.heappush(heap, entry)
        self._back.clear()
        self._aside.clear()
        self._shut.clear()

    def _drop(self, request_id: str) -> RequestView | None:
        number = self._numbers.pop(request_id, None)
        if number is None:
            return None
        request = self._live.pop(number)
        if not self._live:
            self._lanes.clear()
        return request

"""Placement of waiting requests on instances, by the policies."""

from __future__ import annotations

import heapq
import itertools
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
from sage_infer.errors import EngineDead, InvalidRequest, Overloaded, RequestCancelled, SageInferError
from sage_infer.schemas import InstanceReport

from sage_llm.manager.live_instance import LiveInstance
from sage_llm.manager.request import ManagedRequest
from sage_llm.policies import KVCost
from sage_llm.policies.base import AdmissionPolicy, OrderPolicy, PlacementPolicy
from sage_llm.registry import Instance, InstanceRegistry
from sage_llm.snapshot import SnapshotBuilder
from sage_llm.types import Decision, RequestView, State

__all__ = ["Placement"]

_STATES: Mapping[str, State] = {
    "ready": "ready", "probation": "probation", "suspect": "suspect", "lost": "suspect", "draining": "draining",
    "dead": "dead",
}  # fmt: skip
_EXAMINED = 32  # waiting requests examined for one that can be dispatched
_MIGRATED = -1_000_000  # band of requests that continue; ahead of all new ones
_UNKNOWN_OUTPUT = 256  # tokens reserved for a request without max_tokens
_RECEIPTS = 4096
_RETRY_S = 1.0


class Placement:
    """The instances by model, the requests that wait for them, and the decisions.

    Args:
        place: placement policy.
        order: order of waiting requests; None for order of arrival.
        admission: refuses requests on arrival; None accepts all.
    """

    def __init__(
        self,
        place: PlacementPolicy | None = None,
        order: OrderPolicy | None = None,
        admission: AdmissionPolicy | None = None,
    ) -> None:
        self.policy: PlacementPolicy = place or KVCost()
        self.order, self.admission = order, admission
        self.registry = InstanceRegistry()
        self.builder = SnapshotBuilder(self.registry)
        self.receipts: OrderedDict[str, list[dict[str, Any]]] = OrderedDict()
        self._instances: dict[str, list[LiveInstance]] = {}
        self._by_slot: dict[int, tuple[LiveInstance, Instance]] = {}
        self._queues: dict[str, list[tuple[float, float, int, ManagedRequest]]] = {}
        self._numbers = itertools.count()
        self._last_open: dict[str, float] = {}

    # --- instances

    def add(self, instance: LiveInstance) -> None:
        """Register a connected instance."""
        now = time.monotonic()
        record = self.registry.add(instance.descriptor, now, _STATES[instance.word])
        self._instances.setdefault(instance.model_id, []).append(instance)
        self._by_slot[record.slot] = instance, record
        instance.slot = record.slot
        instance.on_move = self._moved
        if instance.report is not None:
            self.report(instance, instance.report)

    def remove(self, instance: LiveInstance) -> None:
        self._last_open[instance.model_id] = time.monotonic()
        self._instances[instance.model_id].remove(instance)
        _, record = self._by_slot.pop(instance.slot)
        self.registry.remove(record)

    def report(self, instance: LiveInstance, report: InstanceReport) -> None:
        self.builder.report(report, time.monotonic())

    def instances(self, model_id: str) -> list[LiveInstance]:
        return self._instances.get(model_id, [])

    def last_open(self, model_id: str) -> float:
        """When an instance of the model was last removed."""
        return self._last_open.get(model_id, 0.0)

    def _moved(self, instance: LiveInstance) -> None:
        _, record = self._by_slot.get(instance.slot, (None, None))
        if record is not None:
            self.registry.change(record, _STATES[instance.word], time.monotonic(), instance.reason)
            self.registry.limit(record, instance.allowance if instance.word == "probation" else 0)

    # --- requests

    def admit(self, request: ManagedRequest) -> None:
        """Refuse a new request that could not be served in time.

        Raises:
            SageInferError: it is refused; the message says what was expected.
        """
        if self.admission is not None:
            snapshot = self.builder.snapshot(time.monotonic())
            decision = self.admission.admit(self._view(request), snapshot)
            if decision.kind == "refuse":
                self._note(request, decision)
                raise refusal(decision)

    def enqueue(self, request: ManagedRequest, now: float) -> None:
        """Let a request wait for an instance."""
        view = request.view = self._view(request)
        self.builder.waits(view, now)
        key = view.arrived if self.order is None else self.order.key(view, self.builder.snapshot(now))
        queue = self._queues.setdefault(request.model_id, [])
        heapq.heappush(queue, (float(view.band), key, next(self._numbers), request))

    def waiting(self) -> Iterator[ManagedRequest]:
        for queue in self._queues.values():
            yield from (entry[-1] for entry in queue if entry[-1].outcome is None)

    def next(self, now: float) -> tuple[ManagedRequest, LiveInstance] | None:
        """The next waiting request that can be dispatched, with its instance; it no longer waits."""
        for model_id, queue in self._queues.items():
            found = self._next_of(model_id, queue, now) if queue else None
            if found is not None:
                return found
        return None

    def _next_of(
        self, model_id: str, queue: list[tuple[float, float, int, ManagedRequest]], now: float
    ) -> tuple[ManagedRequest, LiveInstance] | None:
        full = [i for i in self.instances(model_id) if not i.has_room(now)]
        if len(full) == len(self.instances(model_id)):
            return None
        skipped: list[tuple[float, float, int, ManagedRequest]] = []
        found = None
        while queue and found is None and len(skipped) < _EXAMINED:
            entry = heapq.heappop(queue)
            if entry[-1].outcome is not None:
                continue
            found = self._placed(entry[-1], full, now)
            if found is None and entry[-1].outcome is None:
                skipped.append(entry)
        for entry in skipped:
            heapq.heappush(queue, entry)
        return found

    def _placed(
        self, request: ManagedRequest, full: list[LiveInstance], now: float
    ) -> tuple[ManagedRequest, LiveInstance] | None:
        assert request.view is not None
        view = request.view
        excluded = self._mask(request, full)
        if excluded != view.excluded:
            view = request.view = attrs.evolve(view, excluded=excluded)
        decision = self.policy.place(view, self.builder.snapshot(now))
        if decision.kind == "refuse":
            self._note(request, decision)
            request.fail(refusal(decision))
            return None
        if decision.kind == "wait":
            return None
        try:
            self.builder.dispatched(view, decision, now)
        except ValueError:  # the blocks were taken since
            return None
        self._note(request, decision)
        return request, self._by_slot[decision.slot][0]

    def isolated(self, request: ManagedRequest, instance: LiveInstance, now: float) -> None:
        """Record that a request is sent to an instance without a decision."""
        view = request.view = self._view(request)
        decision = Decision(
            "dispatch", view.id, instance.slot, policy="isolation", uncached=view.prompt_tokens
        )
        self.builder.dispatched(view, decision, now)
        self._note(request, decision)

    def started(self, request: ManagedRequest) -> None:
        """The first token of an attempt has arrived."""
        self.builder.first_token(request.request_id)

    def left(self, request: ManagedRequest) -> None:
        """A request has ended, or has left its instance."""
        if request.view is not None:
            self.builder.ended(request.view)

    def _mask(self, request: ManagedRequest, full: list[LiveInstance]) -> int:
        mask = 0
        for instance in full:
            mask |= 1 << instance.slot
        for instance in request.excluded:
            if instance.word != "dead":
                mask |= 1 << instance.slot
        return mask

    def _view(self, request: ManagedRequest) -> RequestView:
        options, params = request.options, request.params
        done = request.ledger.tokens
        longest = min(
            (i.descriptor.capability.max_sequence_length for i in self.instances(request.model_id)), default=0
        )
        tokens = request.prompt_tokens + done
        wanted = _UNKNOWN_OUTPUT if params.max_tokens is None else params.max_tokens - done
        room = max(longest - tokens, 0) if longest else wanted
        slo = options.slo
        return RequestView(
            request.request_id,
            request.model_id,
            prompt_tokens=tokens,
            max_tokens=max(min(wanted, room), 0),
            arrived=request.arrived,
            band=_MIGRATED if done else options.priority,
            tenant=options.tenant,
            session=options.session,
            service_class=options.service_class,
            deadline=None if options.deadline is None else request.arrived + options.deadline,
            slo_ttft=None if slo is None else slo.ttft_s,
            slo_tpot=None if slo is None else slo.tpot_s,
            adapter=params.adapter or "",
            chain=options.chain,
            attempts=request.number,
        )

    # --- receipts

    def _note(self, request: ManagedRequest, decision: Decision) -> None:
        """Keep a decision, for ``sage llm explain``."""
        if request.request_id not in self.receipts and len(self.receipts) >= _RECEIPTS:
            self.receipts.popitem(last=False)
        names = {slot: live.instance_id for slot, (live, _) in self._by_slot.items()}
        self.receipts.setdefault(request.request_id, []).append(
            {
                **attrs.asdict(decision),
                "instance": names.get(decision.slot),
                "candidates": [
                    {**attrs.asdict(candidate), "instance": names.get(candidate.slot)}
                    for candidate in decision.candidates
                ],
                "prompt_tokens": request.prompt_tokens,
                "generated": request.ledger.tokens,
                "at_s": time.monotonic() - request.arrived,
            }
        )


def refusal(decision: Decision) -> SageInferError:
    """The error of a refused request."""
    if decision.reason in ("overloaded", "quota"):
        return Overloaded(decision.message, retry_after=decision.retry_after or _RETRY_S)
    if decision.reason == "too_large":
        return InvalidRequest(decision.message)
    if decision.reason == "late":
        return RequestCancelled(decision.message, by="deadline")
    return EngineDead(decision.message)

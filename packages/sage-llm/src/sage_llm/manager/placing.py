"""Placement of waiting requests on instances, by the policies."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

import attrs
from sage_infer.contracts import KVEvents, KVSnapshot
from sage_infer.schemas import InstanceReport, Usage

from sage_llm import policies
from sage_llm.classifier import RequestClassifier
from sage_llm.index.kv_index import KVIndex
from sage_llm.manager.calls.call import ManagedCall
from sage_llm.manager.kv.quota_gate import QuotaGate
from sage_llm.manager.live_instance import LiveInstance
from sage_llm.manager.request import ManagedRequest
from sage_llm.manager.telemetry.interruptions import Interruptions
from sage_llm.manager.views import beyond_expected, call_view, refusal, request_view
from sage_llm.policies.base import AdmissionPolicy, OrderPolicy, PlacementPolicy
from sage_llm.queue import HELD, WaitingQueue
from sage_llm.quota_tree import KVQuota
from sage_llm.quotas import QuotaTable, TenantQuota
from sage_llm.receipts import Receipts
from sage_llm.registry import Instance, InstanceRegistry
from sage_llm.snapshot import SnapshotBuilder
from sage_llm.tenants import TenantTable
from sage_llm.types import Decision, RequestView, Snapshot, State

__all__ = ["Placement"]

log = logging.getLogger(__name__)

_STATES: Mapping[str, State] = {
    "ready": "ready", "probation": "probation", "suspect": "suspect", "lost": "suspect", "draining": "draining",
    "dead": "dead",
}  # fmt: skip

Placed = ManagedRequest | ManagedCall
Found = tuple[Placed, LiveInstance, LiveInstance | None]
"""A request to dispatch, its instance, and the instance that computes its prompt if that is another one."""


class Placement:
    """The instances by model, the requests that wait for them, and the decisions.

    Args:
        place: placement policy.
        order: order of waiting requests.
        admission: refuses requests on arrival; None accepts all.
        quotas: quotas of tenants by name.
        kv_quotas: quotas of KV by tenant, model and class.
    """

    def __init__(
        self,
        place: PlacementPolicy | None = None,
        order: OrderPolicy | None = None,
        admission: AdmissionPolicy | None = None,
        quotas: Mapping[str, TenantQuota] | None = None,
        kv_quotas: Mapping[str, KVQuota] | None = None,
    ) -> None:
        self.policy, self.admission = place or policies.placement(), admission
        self.registry, self.index, self.quotas = InstanceRegistry(), KVIndex(), QuotaTable(quotas)
        self.gate = QuotaGate(kv_quotas)
        self.tenants = TenantTable({name: quota.weight for name, quota in self.quotas.quotas.items()})
        self.builder = SnapshotBuilder(
            self.registry, self.index.device, kv_valid=self.index.valid, tenants=self.tenants
        )
        self.classifier, self.receipts = RequestClassifier(), Receipts()
        self.interruptions = Interruptions(self.receipts)
        self._order = order or policies.order()
        self._instances: dict[str, list[LiveInstance]] = {}
        self._doubtful: dict[str, set[LiveInstance]] = {}  # those that may have no room; others have some
        self._by_slot: dict[int, tuple[LiveInstance, Instance]] = {}
        self._queues: dict[str, WaitingQueue] = {}
        self._waiting: dict[str, Placed] = {}
        self._dispatched: set[str] = set()
        self._last_open: dict[str, float] = {}
        self._longest: dict[str, int] = {}  # length limits by model

    # --- instances

    def add(self, instance: LiveInstance) -> None:
        """Register a connected instance."""
        now, descriptor = time.monotonic(), instance.descriptor
        record = self.registry.add(descriptor, now, _STATES[instance.word])
        self._instances.setdefault(instance.model_id, []).append(instance)
        self._longest.pop(instance.model_id, None)
        self._by_slot[record.slot] = instance, record
        instance.slot = record.slot
        instance.on_move, instance.on_doubt = self._moved, self._doubted
        schema = descriptor.capability.kv_schema
        if schema is not None and descriptor.capability.supports("prefix_caching"):
            self.index.add(
                record.slot, descriptor.generation, instance.model_id, schema.page_size,
                key_space=descriptor.key_space, events="kv_events" in instance.features,
            )  # fmt: skip
        if instance.report is not None:
            self.report(instance, instance.report)
        self._moved(instance)

    def remove(self, instance: LiveInstance) -> None:
        self._last_open[instance.model_id] = time.monotonic()
        self._instances[instance.model_id].remove(instance)
        self._doubtful[instance.model_id].discard(instance)
        self._longest.pop(instance.model_id, None)
        _, record = self._by_slot.pop(instance.slot)
        self.index.remove(record.slot)
        self.registry.remove(record)

    def report(self, instance: LiveInstance, report: InstanceReport) -> None:
        self.builder.report(report, time.monotonic())

    def kv(self, instance: LiveInstance, news: KVSnapshot | KVEvents) -> None:
        """Take over blocks that an instance reports."""
        if self._by_slot.get(instance.slot, (None, None))[0] is not instance:
            return
        if isinstance(news, KVSnapshot):
            self.index.apply(instance.slot, news)
        else:
            self.index.events(instance.slot, news)

    def out_of_sync(self) -> list[LiveInstance]:
        """Instances whose snapshot of blocks is needed; call it between requests."""
        self.index.sweep()
        return [self._by_slot[slot][0] for slot in self.index.resync() if slot in self._by_slot]

    def at(self, slot: int) -> LiveInstance | None:
        """The instance of a slot; None if it has gone."""
        return self._by_slot.get(slot, (None, None))[0]

    def instances(self, model_id: str) -> list[LiveInstance]:
        return self._instances.get(model_id, [])

    def last_open(self, model_id: str) -> float:
        """When an instance of the model was last removed."""
        return self._last_open.get(model_id, 0.0)

    def _doubted(self, instance: LiveInstance) -> None:
        live, _ = self._by_slot.get(instance.slot, (None, None))
        if live is instance:
            self._doubtful.setdefault(instance.model_id, set()).add(instance)

    def _moved(self, instance: LiveInstance) -> None:
        live, record = self._by_slot.get(instance.slot, (None, None))
        if record is not None and live is instance:
            self._doubted(instance)
            self.registry.change(record, _STATES[instance.word], time.monotonic(), instance.reason)
            self.registry.limit(record, instance.allowance if instance.word == "probation" else 0)

    # --- requests

    def admit(self, request: Placed) -> None:
        """Refuse a new request that could not be served in time.

        Raises:
            SageInferError: it is refused; the message says what was expected.
        """
        self._check(request, self._view(request), self.builder.snapshot(time.monotonic()))

    def _check(self, request: Placed, view: RequestView, snapshot: Snapshot) -> None:
        decision = self.quotas.admit(view) or self.gate.tree.admit(view)
        is_open = decision is None and bool(self.instances(request.model_id))
        if is_open and self.admission is not None and not self.gate.tree.is_entitled(view, on_arrival=True):
            decision = self.admission.admit(view, snapshot)
        if decision is not None and decision.kind == "refuse":
            raise refusal(decision)

    def arrive(self, request: Placed, now: float, *, may_send: bool) -> Found | None:
        """Admit a new request. Returns it with its instances if nothing waits and one has room, otherwise it waits.

        Raises:
            SageInferError: it is refused; the message says what was expected.
        """
        view, snapshot = self._view(request), self.builder.snapshot(now)
        self._check(request, view, snapshot)
        request.view = view
        self.quotas.enters(view, now)
        queue = self._queue(request.model_id)
        if may_send and not queue and self.tenants.may_open(view.tenant):
            full = self.full(request.model_id, now)
            decision = HELD if full is None else self._decide(request, view, full, snapshot)
            if decision.kind == "refuse":
                raise refusal(decision)
            if decision.kind == "dispatch":
                self.tenants.queued(view.tenant)
                self.tenants.dispatched(view.tenant, decision.uncached + view.out_q50)
                return self._dispatch(request, view, decision, snapshot)
        self._wait(request, view, queue, snapshot, now)
        return None

    def enqueue(self, request: Placed, now: float) -> None:
        """Let a request wait for an instance."""
        view = request.view = self._view(request)
        self.quotas.enters(view, now)
        self._wait(request, view, self._queue(request.model_id), self.builder.snapshot(now), now)

    def _wait(
        self, request: Placed, view: RequestView, queue: WaitingQueue, snapshot: Snapshot, now: float
    ) -> None:
        queue.push(view, snapshot)
        self.builder.waits(view, now)
        self.gate.waits(view, now)
        self._waiting[view.id] = request

    def _queue(self, model_id: str) -> WaitingQueue:
        queue = self._queues.get(model_id)
        if queue is None:
            queue = self._queues[model_id] = WaitingQueue(self._order, self.tenants)
        return queue

    @property
    def has_waiting(self) -> bool:
        return bool(self._waiting)

    def waiting(self) -> list[Placed]:
        return list(self._waiting.values())

    def next(self, now: float) -> Found | None:
        """The next waiting request that can be dispatched, with its instance; it no longer waits.

        The third element is the instance that computes its prompt, if that is another one.
        """
        for model_id, queue in self._queues.items():
            while len(queue) and (found := self._next_of(model_id, queue, now)) is not None:
                if found[1] is not None:
                    return found[0], found[1], found[2]
        return None

    def _next_of(
        self, model_id: str, queue: WaitingQueue, now: float
    ) -> tuple[Placed, LiveInstance | None, LiveInstance | None] | None:
        """The next request with its instances, or with None if it was refused."""
        full = self.full(model_id, now)
        if full is None:
            return None
        snapshot = self.builder.snapshot(now)

        def place(view: RequestView) -> Decision:
            return self._decide(self._waiting[view.id], view, full, snapshot)

        owners = self.gate.tree.first_entitled(model_id)
        found = queue.take(now, place, first=owners)
        if found is None:
            return None
        view, decision = found
        request = self._waiting.pop(view.id)
        if decision.kind == "refuse":
            request.fail(refusal(decision))
            return request, None, None
        return self._dispatch(request, view, decision, snapshot)

    def full(self, model_id: str, now: float) -> list[LiveInstance] | None:
        """The instances of a model without room; None if none has any.

        The policy would refuse a request for a model whose only instance restarts.
        """
        instances, doubtful = self.instances(model_id), self._doubtful.get(model_id)
        if not doubtful:
            return [] if instances else None
        full = []
        for instance in tuple(doubtful):
            if not instance.has_room(now):
                full.append(instance)
            elif instance.keeps_room:
                doubtful.discard(instance)
        return None if len(full) == len(instances) else full

    def _decide(
        self, request: Placed, view: RequestView, full: list[LiveInstance], snapshot: Snapshot
    ) -> Decision:
        group = snapshot.groups.get(request.model_id)
        if group is not None and not (
            self.quotas.has_room(view, group, snapshot.instances)
            and self.gate.lets(request, view, group, snapshot, self.instances(request.model_id))
        ):
            return HELD
        excluded = self._mask(request, full)
        seen = view if excluded == view.excluded else attrs.evolve(view, excluded=excluded)
        try:
            return self.receipts.place(self.policy, seen, snapshot)
        except Exception as error:  # it would be asked again for ever, and nothing else be dispatched
            log.exception("placement policy %s failed", self.policy.name)
            told = f"placement policy {self.policy.name!r} failed: {type(error).__name__}: {error}"
            return Decision("refuse", view.id, policy=self.policy.name, reason="fault", message=told)

    def _dispatch(self, request: Placed, view: RequestView, decision: Decision, snapshot: Snapshot) -> Found:
        """Account for a decision to dispatch."""
        instance, now = self._by_slot[decision.slot][0], snapshot.now
        self.gate.dispatched(request, view, snapshot, self.receipts)
        if isinstance(request, ManagedRequest) and request.prefetched is not None:
            self.receipts.prefetched(view.id, *request.prefetched)
        self.builder.dispatched(view, decision, now)
        self._dispatched.add(view.id)
        self.quotas.runs(view.id, runs=True)
        if view.keys:
            self.index.touch(view.keys)
            capacity = instance.report.kv_blocks_total if instance.report is not None else 0
            self.index.predict(decision.slot, view.keys, capacity)
        prefill = None
        if decision.prefill_slot >= 0:
            prefill = self._by_slot[decision.prefill_slot][0]
            self.builder.prefills(view, decision, now)
        return request, instance, prefill

    def isolated(self, request: ManagedRequest, instance: LiveInstance, now: float) -> None:
        """Record that a request is sent to an instance without a decision."""
        view = request.view = self._view(request)
        decision = Decision(
            "dispatch", view.id, instance.slot, policy="isolation", uncached=view.prompt_tokens
        )
        self.gate.tree.runs(view)
        self.builder.dispatched(view, decision, now)

    def started(self, request: ManagedRequest) -> None:
        """The first token of an attempt has arrived."""
        self.builder.first_token(request.request_id)
        self.interruptions.continued(request)
        if request.number == 1 and request.first_at is not None:
            self.receipts.first_token(request.request_id, request.first_at - request.arrived)

    def prefilled(self, request: ManagedRequest) -> None:
        """The instance that computed the prompt for another one is done with it."""
        self.builder.prefilled(request.request_id)

    def computes_itself(self, request: ManagedRequest) -> None:
        """The request's instance computes the prompt after all."""
        if request.view is not None:
            self.builder.computes_itself(request.view)

    def finished(self, request: ManagedRequest, usage: Usage | None) -> None:
        """Learn from a request that has ended normally."""
        self.classifier.ended(
            request.model_id,
            request.ledger.tokens or (0 if usage is None else usage.completion_tokens),
            service_class=request.options.service_class,
            prompt_tokens=request.prompt_tokens,
        )
        if usage is not None and request.number == 1:
            self.receipts.ended(request.request_id, usage.cached_tokens)

    def computed(self, call: ManagedCall) -> None:
        """An embedding or reranking request has its result, which counts as its first token."""
        if call.number == 1:
            self.receipts.first_token(call.request_id, time.monotonic() - call.arrived)

    def left(self, request: Placed) -> None:
        """A request has ended, or has left its instance; a second call has no effect."""
        view, request.view = request.view, None
        if view is None:
            return
        self.builder.ended(view)
        self.quotas.runs(view.id, runs=False)
        self.gate.left(view.id)
        if self._waiting.pop(view.id, None) is not None:
            self._queues[request.model_id].remove(view.id)
        if view.id in self._dispatched:
            self._dispatched.discard(view.id)
            self.tenants.ended(view.tenant, beyond_expected(request, view))

    def ended(self, request: Placed) -> None:
        """A request has ended, wherever it was."""
        self.left(request)
        self.interruptions.ended(request.request_id)
        self.quotas.leaves(request.request_id, time.monotonic())

    def _mask(self, request: Placed, full: list[LiveInstance]) -> int:
        mask = 0
        for instance in full:
            mask |= 1 << instance.slot
        for instance in request.excluded:
            if instance.word != "dead":
                mask |= 1 << instance.slot
        return mask

    def _view(self, request: Placed) -> RequestView:
        if isinstance(request, ManagedCall):
            return call_view(request, self.classifier)
        longest = self._longest.get(request.model_id, -1)
        if longest < 0:
            limits = [i.descriptor.capability.max_sequence_length for i in self.instances(request.model_id)]
            longest = self._longest[request.model_id] = min(limits, default=0)
        return request_view(request, longest, self.classifier, self.index)

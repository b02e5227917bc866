"""Snapshots of the cluster, built from the registry, reports and our own open requests.

Building one costs what has changed since the last one: views of unchanged instances are shared.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

from sage_infer.schemas import InstanceReport

from sage_llm.groups import Members
from sage_llm.loads import InstanceLoad, OpenRequest
from sage_llm.registry import Instance, InstanceRegistry
from sage_llm.speeds import Speeds
from sage_llm.types import Decision, InstanceView, KVView, RequestView, Snapshot, TenantView

__all__ = ["SnapshotBuilder"]

_MAX_PLACES = 65_536  # sessions whose last instance is remembered
_PLACEABLE = ("ready", "probation")


class SnapshotBuilder:
    """Keeps the load of every registered instance and builds snapshots of it.

    Args:
        registry: the instances; the builder notices changes by its version.
        kv: holders of blocks in device memory, and in lower tiers; usually of a ``KVIndex``.
        kv_valid: returns the mask of instances whose bits in ``kv`` can be trusted; None trusts all.
        tenants: tenants with requests; usually of a ``WaitingQueue``.
        rate: prefill rate in tokens per second of an instance before it is measured.
        chunk: prompt tokens per engine step.
    """

    def __init__(
        self,
        registry: InstanceRegistry,
        kv: KVView | None = None,
        *,
        lower: tuple[KVView, ...] = (),
        kv_valid: Callable[[], int] | None = None,
        tenants: Mapping[str, TenantView] | None = None,
        rate: float = 2000.0,
        chunk: int = 2048,
    ) -> None:
        self._registry = registry
        self._kv: KVView = kv if kv is not None else {}
        self._lower = lower
        self._valid = kv_valid
        self._tenants: Mapping[str, TenantView] = tenants if tenants is not None else {}
        self._rate, self._chunk = rate, chunk
        self._speeds: dict[tuple[str, tuple[str, ...]], Speeds] = {}  # by role and models
        self._loads: list[InstanceLoad | None] = []
        self._views: list[InstanceView | None] = []
        self._tuple: tuple[InstanceView | None, ...] = ()
        self._models: dict[str, Members] = {}
        self._dirty: set[int] = set()
        self._version = -1
        self._where: dict[str, int] = {}
        self._prefills: dict[str, int] = {}
        self._places: OrderedDict[str, int] = OrderedDict()
        self._decisions = 0

    # --- events

    def report(self, report: InstanceReport, now: float) -> bool:
        """Take over a report. Returns False if it is from an earlier generation or an unknown instance."""
        instance = self._registry.current(report.instance_id, report.generation)
        if instance is None:
            return False
        self._load(instance).reports(report, now)
        self._dirty.add(instance.slot)
        return True

    def measured(self, slot: int, tokens: int, seconds: float) -> None:
        """Count a prefill that was measured from outside, for instances without reports."""
        load = self._loads[slot] if slot < len(self._loads) else None
        if load is not None and tokens > 0 and seconds > 0:
            load.measured_rate(tokens / seconds)
            self._dirty.add(slot)

    def waits(self, request: RequestView, now: float, slot: int = -1) -> None:
        """A request waits in the control plane, for the instance at ``slot`` or for any (-1)."""
        self._unbind(request.id)
        in_chain = request.chain_since is not None and request.deadline is not None
        self._members(request.model).waits(request.id, request.prompt_tokens, now, in_chain=in_chain)
        if slot >= 0:
            instance = self._registry.at(slot)
            if instance is not None:
                self._load(instance).bound[request.id] = request.prompt_tokens
                self._where[request.id] = slot
                self._dirty.add(slot)

    def dispatched(self, request: RequestView, decision: Decision, now: float) -> None:
        """A request was sent to the instance of a decision.

        Raises:
            ValueError: the instance is gone, or has fewer unreserved KV blocks than the decision reserves: the
                decision is older than the present state, and must be made again.
        """
        instance = self._registry.at(decision.slot)
        if instance is None:
            raise ValueError(
                f"slot {decision.slot} of request {request.id!r} is free; place the request again"
            )
        load = self._load(instance)
        total = load.report.kv_blocks_total if load.report is not None else 0
        if decision.blocks and load.reserved + decision.blocks > total:
            raise ValueError(
                f"request {request.id!r} needs {decision.blocks} KV blocks on {instance.instance_id!r}, which has "
                f"{total - load.reserved} of {total} unreserved; place the request again"
            )
        self._leave(request, now)
        load.dispatched(
            request.id,
            OpenRequest(
                now,
                float(decision.uncached) if decision.prefill_slot < 0 else 1.0,
                request.prompt_tokens + int(request.out_q50),
                decision.blocks,
                request.slo_tpot or 0.0,
            ),
        )
        self._where[request.id] = instance.slot
        self._dirty.add(instance.slot)
        self._decisions += 1
        work = min((c.uncached for c in decision.candidates), default=decision.uncached)
        self._members(request.model).worked(work, now)
        if request.session:
            self._places[request.session] = instance.slot
            self._places.move_to_end(request.session)
            if len(self._places) > _MAX_PLACES:
                self._places.popitem(last=False)

    def prefills(self, request: RequestView, decision: Decision, now: float) -> None:
        """The prompt of a dispatched request is computed on ``decision.prefill_slot``."""
        instance = self._registry.at(decision.prefill_slot)
        if instance is not None:
            load, tokens = self._load(instance), request.prompt_tokens
            page = load.view().page if load.report is not None and load.report.kv_blocks_total else 0
            blocks = -(-tokens // page) if page else 0
            load.dispatched(request.id, OpenRequest(now, float(decision.uncached), tokens, blocks))
            self._prefills[request.id] = instance.slot
            self._dirty.add(instance.slot)

    def prefilled(self, request_id: str) -> None:
        """The prefill instance has handed a request over, or is not needed any more; a second call has no effect."""
        slot = self._prefills.pop(request_id, -1)
        load = self._loads[slot] if slot >= 0 else None
        if load is not None and load.ended(request_id):
            self._dirty.add(slot)

    def computes_itself(self, request: RequestView) -> None:
        """The instance of a dispatched request computes its prompt, although another one was to do that."""
        self.prefilled(request.id)
        slot = self._where.get(request.id, -1)
        load = self._loads[slot] if slot >= 0 else None
        if load is not None:
            load.computes_itself(request.id, float(request.prompt_tokens))
            self._dirty.add(slot)

    def first_token(self, request_id: str) -> None:
        """The first token of a request has arrived."""
        slot = self._where.get(request_id, -1)
        load = self._loads[slot] if slot >= 0 else None
        if load is not None:
            load.first_token(request_id)
            self._dirty.add(slot)

    def ended(self, request: RequestView) -> None:
        """A request has ended, wherever it was; a second call has no effect."""
        self._leave(request, None)
        if self._prefills:
            self.prefilled(request.id)
        slot = self._where.pop(request.id, -1)
        load = self._loads[slot] if slot >= 0 else None
        if load is not None and load.ended(request.id):
            self._dirty.add(slot)

    def leaves(self, request: RequestView) -> None:
        """A request no longer waits in the control plane."""
        self._leave(request, None)

    def _leave(self, request: RequestView, now: float | None) -> None:
        self._unbind(request.id)
        members = self._models.get(request.model)
        if members is not None:
            members.leaves(request.id, now)

    def reserved(self, slot: int, request_id: str) -> int:
        """Return the number of KV blocks that an instance reserves for one of our requests."""
        load = self._loads[slot] if slot < len(self._loads) else None
        opened = load.open.get(request_id) if load is not None else None
        return opened.blocks if opened is not None else 0

    # --- snapshots

    def snapshot(self, now: float) -> Snapshot:
        """Return the state at ``now``."""
        if self._registry.version != self._version:
            self._membership()
        for speeds in self._speeds.values():
            if speeds.changed:
                self._dirty |= speeds.changed
                speeds.changed.clear()
        if self._dirty:
            for slot in self._dirty:
                load = self._loads[slot]
                self._show(slot, None if load is None else load.view())
            self._dirty.clear()
            self._tuple = tuple(self._views)
        return Snapshot(
            now,
            self._tuple,
            {model: members.group(now) for model, members in self._models.items()},
            self._kv,
            self._lower,
            -1 if self._valid is None else self._valid(),
            self._tenants,
            self._decisions,
            self._places,
        )

    def _membership(self) -> None:
        self._version = self._registry.version
        for slot in range(max(self._registry.slots, len(self._loads))):
            instance = self._registry.at(slot)
            if instance is not None:
                self._load(instance)
            elif slot < len(self._loads):
                gone, self._loads[slot] = self._loads[slot], None
                if gone is not None:
                    self._speeds_of(gone.instance).remove(slot)
            self._dirty.add(slot)

    def _show(self, slot: int, view: InstanceView | None) -> None:
        before = self._views[slot]
        self._views[slot] = view
        models = dict.fromkeys((*(before.models if before else ()), *(view.models if view else ())))
        usable = view is not None and view.state in _PLACEABLE
        for model in models:
            listed = usable and view is not None and model in view.models
            self._members(model).put(slot, view if listed else None)

    def _load(self, instance: Instance) -> InstanceLoad:
        while len(self._loads) <= instance.slot:
            self._loads.append(None)
            self._views.append(None)
        load = self._loads[instance.slot]
        if load is None or load.instance is not instance:
            if load is not None:
                self._speeds_of(load.instance).remove(instance.slot)
            load = InstanceLoad(instance, speeds=self._speeds_of(instance), chunk=self._chunk)
            self._loads[instance.slot] = load
        return load

    def _speeds_of(self, instance: Instance) -> Speeds:
        key = instance.role, instance.descriptor.model_ids
        found = self._speeds.get(key)
        if found is None:
            found = self._speeds[key] = Speeds(self._rate)
        return found

    def _members(self, model: str) -> Members:
        found = self._models.get(model)
        if found is None:
            found = self._models[model] = Members()
        return found

    def _unbind(self, request_id: str) -> None:
        slot = self._where.get(request_id, -1)
        load = self._loads[slot] if slot >= 0 else None
        if load is not None and load.bound.pop(request_id, None) is not None:
            del self._where[request_id]
            self._dirty.add(slot)

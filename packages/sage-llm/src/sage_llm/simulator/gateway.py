"""One simulated gateway: the registry, snapshots, queue and policies of the control plane, unchanged.

What it knows of the instances comes from their reports and from its own requests, as in ``sage llm serve``. Only the
engines, the network and the clock are models.
"""

from __future__ import annotations

from collections.abc import Callable

from sage_infer.schemas import CapabilityDescriptor, InstanceDescriptor, InstanceReport, KVCacheSchema

from sage_llm.manager.views import MIGRATED
from sage_llm.policies.base import OrderPolicy, PlacementPolicy
from sage_llm.queue import WaitingQueue
from sage_llm.registry import Instance, InstanceRegistry
from sage_llm.simulator.directory import Directory
from sage_llm.simulator.engine_model import EngineModel
from sage_llm.simulator.job import Job
from sage_llm.snapshot import SnapshotBuilder
from sage_llm.tenants import TenantTable
from sage_llm.types import Decision, InstanceView, RequestView, State

__all__ = ["MODEL", "Gateway", "descriptor"]

MODEL = "model"


def descriptor(instance_id: str, generation: int, model: EngineModel, block: int) -> InstanceDescriptor:
    """Return the identity of a simulated instance."""
    capability = CapabilityDescriptor(
        backend_name="simulated",
        instance_type="general",
        hardware_backend="cpu",
        max_batch_size=model.max_batch,
        max_sequence_length=model.blocks * block,
        supported_precisions=("fp16",),
        kv_schema=KVCacheSchema(dtype="fp16", page_size=block, num_layers=1, num_heads=1, head_dim=1),
    )
    return InstanceDescriptor(
        instance_id=instance_id, generation=generation, model_ids=(MODEL,), capability=capability
    )


class Gateway:
    """Requests that wait, and the decisions about them.

    Args:
        place: placement policy.
        order: order of waiting requests.
        model: speed and memory of the instances.
        block: tokens per key.
        directory: holders of blocks.
        send: called with a job and its decision when it is sent to an instance, or with a refusal.
    """

    def __init__(
        self,
        place: PlacementPolicy,
        order: OrderPolicy,
        model: EngineModel,
        block: int,
        directory: Directory,
        send: Callable[[Job, Decision], None],
    ) -> None:
        self._place, self._block, self._send = place, block, send
        self._registry = InstanceRegistry()
        tenants = TenantTable()
        self._builder = SnapshotBuilder(
            self._registry,
            directory.tiers[0],
            lower=directory.tiers[1:],
            tenants=tenants,
            rate=model.rate,
            chunk=model.chunk,
        )
        self._directory = directory
        self._queue = WaitingQueue(order, tenants)
        self._tenants = tenants
        self._jobs: dict[str, tuple[Job, RequestView]] = {}
        self._instances: dict[int, Instance] = {}
        self._placeable = 0
        self.decisions = 0

    def __len__(self) -> int:
        return len(self._queue)

    # --- instances

    def add(self, identity: InstanceDescriptor, now: float, state: State) -> None:
        record = self._registry.add(identity, now, state)
        self._instances[record.slot] = record
        self._count()

    def change(self, slot: int, state: State, now: float, open_limit: int = 0) -> None:
        record = self._instances[slot]
        self._registry.change(record, state, now)
        self._registry.limit(record, open_limit)
        self._count()

    def _count(self) -> None:
        self._placeable = sum(1 for one in self._instances.values() if one.state in ("ready", "probation"))

    def report(self, report: InstanceReport, now: float) -> None:
        self._builder.report(report, now)

    def seen(self, now: float) -> tuple[list[InstanceView], float]:
        """The instances as this gateway sees them, and the prompt tokens that wait in it."""
        snapshot = self._builder.snapshot(now)
        group = snapshot.groups.get(MODEL)
        waiting = 0.0 if group is None else group.waiting_tokens
        return [view for view in snapshot.instances if view is not None], waiting

    # --- requests

    def enqueue(self, job: Job, request_id: str, now: float) -> None:
        """Let a request wait for an instance, for the first time or again."""
        left = job.output_tokens - job.done
        view = RequestView(
            id=request_id,
            model=MODEL,
            prompt_tokens=job.prompt_tokens + job.done,
            max_tokens=left,
            arrived=job.arrived,
            band=MIGRATED if job.done else 0,
            session=job.session,
            out_q50=float(left),
            out_q90=float(left),
            keys=job.keys,
            block=self._block,
            attempts=job.attempts,
        )
        self._directory.advance(now)
        self._jobs[request_id] = job, view
        self._queue.push(view, self._builder.snapshot(now))
        self._builder.waits(view, now)

    def pump(self, now: float) -> None:
        """Send waiting requests to instances until none can be sent."""
        if not self._queue or not self._placeable:
            return  # without an instance, policies refuse what could wait for its restart
        self._directory.advance(now)
        while len(self._queue):
            snapshot = self._builder.snapshot(now)

            def place(view: RequestView) -> Decision:
                self.decisions += 1
                return self._place.place(view, snapshot)  # noqa: B023

            found = self._queue.take(now, place)
            if found is None:
                return
            view, decision = found
            job = self._jobs[view.id][0]
            if decision.kind == "refuse":
                self._builder.ended(view)
                del self._jobs[view.id]
            else:
                self._builder.dispatched(view, decision, now)
            self._send(job, decision)

    def first_token(self, request_id: str) -> None:
        self._builder.first_token(request_id)

    def left(self, request_id: str) -> None:
        """A request has ended, or has lost its instance."""
        _, view = self._jobs.pop(request_id)
        self._builder.ended(view)
        self._tenants.ended(view.tenant)

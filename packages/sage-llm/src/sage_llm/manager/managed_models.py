"""The models of a control plane, and the operations on their replicas."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from functools import partial
from typing import Any

import attrs
from sage_infer.contracts import Executor, ModelStatus
from sage_infer.errors import BackendUnavailable, EngineDead, InvalidRequest, ModelNotFound, SageInferError
from sage_infer.names import GENERATING, ModelType
from sage_infer.schemas import (
    CapabilityDescriptor,
    HybridCapabilityDescriptor,
    ModelDescriptor,
    RequestOptions,
)
from sage_infer.sdk.open_requests import OpenRequests
from sage_infer_planning.registry import ModelEntry, ModelRegistry
from sage_infer_planning.router import ModelRouter

from sage_llm import policies
from sage_llm.chains import ChainStep, ChainTable
from sage_llm.manager import reports
from sage_llm.manager.calls.call import ManagedCall
from sage_llm.manager.calls.questions import BatchCalls
from sage_llm.manager.dispatch import Dispatcher
from sage_llm.manager.fleet import Fleet
from sage_llm.manager.models import ServedModel, with_autoscale
from sage_llm.manager.placing import Placement
from sage_llm.manager.replica import Drained, Replica
from sage_llm.manager.request import ManagedRequest
from sage_llm.manager.scaling.autoscaler import Autoscaler
from sage_llm.manager.settings import ControlPlaneSettings
from sage_llm.manager.texts import ModelTexts
from sage_llm.replicas.spans import Spans
from sage_llm.scaling.settings import Autoscale

__all__ = ["ManagedModels"]


class ManagedModels:
    """Part of ``ControlPlaneManager``: its models by name, and their replicas.

    Attributes:
        settings: policies and limits.
        served: the models by id.
        dispatcher: runs generating requests.
        fleet: the replicas.
        chains: chains of requests under one deadline.
        scaling: lets numbers of replicas follow the load.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        executor: Executor,
        settings: ControlPlaneSettings | None = None,
    ) -> None:
        self.settings = settings or ControlPlaneSettings()
        self._registry = ModelRegistry()
        self._router = ModelRouter(self._registry)
        self.served: dict[str, ServedModel] = {}
        self._texts: dict[str, ModelTexts] = {}
        self._capabilities: dict[str, CapabilityDescriptor] = {}
        self.dispatcher = Dispatcher(
            Placement(
                policies.placement(self.settings.policy),
                policies.order(self.settings.order),
                None
                if self.settings.target_wait_s is None
                else policies.admission(target_s=self.settings.target_wait_s),
                quotas=self.settings.tenants,
                kv_quotas=self.settings.quotas,
            ),
            on_lost=lambda instance, reason: self.fleet.lose(instance, reason),
            stranded=self._stranded,
            limits=self.settings.recovery,
            batches=self.settings.batches,
            hand_over=self.settings.hand_over,
            spans=Spans() if self.settings.tracing else None,
        )
        self.fleet = Fleet(
            executor, self.dispatcher, health=self.settings.health, restarts=self.settings.restarts
        )
        self._calls = BatchCalls(
            self.dispatcher.placement,
            on_lost=self.fleet.lose,
            stranded=self._stranded,
            wait_s=self.settings.recovery.wait_s,
        )
        self.scaling = Autoscaler(
            self.fleet,
            self.dispatcher,
            self._calls,
            restarts=self.settings.restarts,
            drain_s=self.settings.drain_s,
        )
        self._requests = OpenRequests()
        self.chains = ChainTable()
        self._started = self._closed = False
        for model in models:
            self._register(model)

    def _register(self, model: ServedModel) -> ModelEntry:
        model_id = model.descriptor.model_id
        if model_id in self.served:
            raise InvalidRequest(
                f"model {model_id!r} is already served; give one of the two another model_id"
            )
        entry = self._registry.register(model.descriptor, model.aliases)
        self.served[model_id] = model
        self._texts[model_id] = ModelTexts(model.descriptor, model.backend, self._calls)
        return entry

    async def _start(self, entries: Sequence[ModelEntry | None]) -> None:
        found = [entry for entry in entries if entry is not None]
        specs, begun = [], time.monotonic()
        for entry in found:
            self._registry.move(entry, "loading")
            model = self.served[entry.descriptor.model_id]
            specs += model.specs
        if any(spec.role == "prefill" and spec.server is not None for spec in specs):
            await self.dispatcher.hand_overs.check_transport()
        try:
            await asyncio.gather(
                self.fleet.start(specs),
                *(
                    self._texts[e.descriptor.model_id].load()
                    for e in found
                    if e.descriptor.model_type in GENERATING
                ),
            )
        except BaseException as error:
            for entry in found:
                self._registry.move(entry, "failed", str(error))
            raise
        for entry in found:
            self._registry.move(entry, "ready")
            name = entry.descriptor.model_id
            if self.served[name].autoscale is not None:
                self.scaling.add(partial(self.served.__getitem__, name), time.monotonic() - begun)

    # --- models

    def list_models(self) -> list[ModelDescriptor]:
        return [entry.descriptor for entry in self._registry.entries()]

    def get_model_status(self, model_id: str) -> ModelStatus:
        entry = self._named(model_id)
        return self.scaling.status(reports.model_status(entry, self.fleet, self.dispatcher.placement))

    def get_model_capability(self, model_id: str) -> CapabilityDescriptor:
        entry = self._named(model_id)
        capability = self._capability(entry.descriptor.model_id)
        if capability is None:
            raise BackendUnavailable(f"model {model_id!r} is {entry.state}, no instance has been ready")
        return capability

    def get_model_settings(self, model_id: str) -> dict[str, Any]:
        model = self.served[self._named(model_id).descriptor.model_id]
        return {"backend": model.backend, "options": dict(model.options), "replicas": model.replicas}

    def get_hybrid_capability(self) -> HybridCapabilityDescriptor:
        self._check_open()
        ready = [
            e
            for e in self._registry.entries()
            if self.get_model_status(e.descriptor.model_id).state == "ready"
        ]
        kinds = sorted(
            {c.hardware_backend for e in ready if (c := self._capability(e.descriptor.model_id))} - {"cpu"}
        )
        return HybridCapabilityDescriptor(
            backend_name="llm",
            hardware_backend=kinds[0] if kinds else "cpu",
            loaded_models=tuple(entry.descriptor for entry in ready),
            gpu_sharing_mode="exclusive",
            memory_isolation=True,
        )

    def load_model(self, model: ModelDescriptor) -> Awaitable[None]:
        """Serve another model with one replica, on the configured backend for its type."""
        self._check_open()
        served = ServedModel(descriptor=model, backend=self.settings.backend_for(model.model_type))
        entry = self._register(served)
        if not self._started:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done
        return asyncio.ensure_future(self._start([entry]))

    async def unload_model(self, model_id: str) -> None:
        entry = self._named(model_id)
        name = entry.descriptor.model_id
        self._registry.move(entry, "draining")
        await self.scaling.remove(name)
        await asyncio.gather(*(self.fleet.stop(r) for r in self.fleet.of(name)))
        self._registry.move(entry, "registered")
        del self.served[name], self._texts[name]

    # --- operation, for the commands

    async def drain(self, replica_id: str, deadline_s: float = 1.0) -> Drained:
        """Stop a replica; its requests end in time or move to other instances."""
        return await self.fleet.drain(self.fleet.find(replica_id), deadline_s)

    async def restart(self, name: str | None = None, deadline_s: float = 0.0) -> list[Drained]:
        """Restart one replica, all replicas of a model, or of all models, one after another.

        A replica that is starting is left alone.

        Raises:
            ModelNotFound: there is no such model or replica.
        """
        replicas = self._replicas_of(name)
        return [await self.fleet.restart(r, deadline_s) for r in replicas if r.word != "starting"]

    def _replicas_of(self, name: str | None) -> list[Replica]:
        if name is None:
            return [replica for model_id in self.served for replica in self.fleet.of(model_id)]
        if name in self.fleet.replicas:
            return [self.fleet.find(name)]
        try:
            return self.fleet.of(self._named(name).descriptor.model_id)
        except ModelNotFound as error:
            known = ", ".join(r.replica_id for model_id in self.served for r in self.fleet.of(model_id))
            raise ModelNotFound(f"{error.message}; replicas: {known}") from None

    async def scale(self, model_id: str, replicas: int) -> list[str]:
        """Start or drain replicas of a model until ``replicas`` generate; return the ids of the changed ones.

        From now on, the number does not follow the load.
        """
        name = self._named(model_id).descriptor.model_id
        if replicas < 1:
            raise InvalidRequest(f"the number of replicas must be at least 1, got {replicas}")
        await self.scaling.remove(name)
        self.served[name] = attrs.evolve(self.served[name], autoscale=None)
        running = [replica for replica in self.fleet.of(name) if replica.spec.role != "prefill"]
        if len(running) > replicas:
            surplus = running[replicas:]
            await asyncio.gather(*(self.fleet.drain(replica) for replica in surplus))
            changed = [replica.replica_id for replica in surplus]
        else:
            used = {replica.replica_id for replica in running}
            free = (
                s
                for n in range(len(running) + replicas)
                if (s := self.served[name].spec(n)).replica_id not in used
            )
            specs = [next(free) for _ in range(replicas - len(running))]
            await self.fleet.start(specs)
            changed = [spec.replica_id for spec in specs]
        self.served[name] = attrs.evolve(self.served[name], replicas=replicas)
        return changed

    def autoscale(self, model_id: str, settings: Autoscale) -> None:
        """Let the number of a model's replicas follow its load.

        Raises:
            InvalidRequest: replicas of the model cannot be started or stopped.
        """
        name = self._named(model_id).descriptor.model_id
        self.served[name] = with_autoscale(self.served[name], settings)
        self.scaling.add(partial(self.served.__getitem__, name))

    def _stranded(self, model_id: str, waited_s: float) -> SageInferError | None:
        """The error of a request that has waited so long without an instance; None if it may continue to wait."""
        is_started, error = self.scaling.stranded(model_id, waited_s)
        if is_started:
            return error
        if self.fleet.expects(model_id) and waited_s <= self.settings.recovery.wait_s:
            return None
        return EngineDead(f"no instance of model {model_id!r} is running; `sage llm status` says why")

    # --- chains

    def in_chain(self, model_id: str, options: RequestOptions) -> tuple[RequestOptions, ChainStep | None]:
        """The options of a request with the deadline, class and priority of its chain, and its place in the chain."""
        if not options.chain:
            return options, None
        now = time.monotonic()
        step = self.chains.begin(
            options.tenant,
            options.chain,
            model_id,
            now,
            deadline=None if options.deadline is None else now + options.deadline,
            service_class=options.service_class,
            priority=options.priority,
        )
        left = None if step.deadline is None else step.deadline - now
        return (
            attrs.evolve(options, deadline=left, service_class=step.service_class, priority=step.priority),
            step,
        )

    def left_chain(self, request: ManagedRequest | ManagedCall) -> None:
        """A request has ended; learn how long its step in a chain took."""
        if request.step is None:
            return
        now = time.monotonic()
        is_measured = request.outcome == "finished" and request.dispatched_at is not None
        service_s = now - (request.dispatched_at or now) if is_measured else None
        self.chains.ended(request.step, now, service_s)

    # --- look-ups

    def _check_open(self) -> None:
        if self._closed:
            raise EngineDead("the control plane was closed; open a new one")

    def _route(self, name: str | None, types: Sequence[ModelType]) -> ModelEntry:
        self._check_open()
        if not self._started:
            raise EngineDead("the control plane is not started; call start() first")
        return self._router.route(name, types)

    def _named(self, name: str) -> ModelEntry:
        entry = self._router.named(name)
        assert entry is not None
        return entry

    def _texts_of(self, name: str | None, types: Sequence[ModelType]) -> ModelTexts:
        return self._texts[self._route(name, types).descriptor.model_id]

    def _capability(self, model_id: str) -> CapabilityDescriptor | None:
        """Capability of the model's instances, also while none runs."""
        for instance in self.dispatcher.placement.instances(model_id):
            self._capabilities[model_id] = instance.descriptor.capability
            break
        return self._capabilities.get(model_id)

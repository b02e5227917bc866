"""Loads, keeps and unloads the models of a hybrid instance."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sage_infer.backends import create_backend, find_backend
from sage_infer.contracts.hybrid import ModelState
from sage_infer.errors import BackendUnavailable, EngineDead, InvalidRequest, Overloaded
from sage_infer.models import resolve_model
from sage_infer.names import ModelType
from sage_infer.schemas import HardwareProfile
from sage_infer.schemas.capability import SharingMode

from sage_infer_hybrid.config import ModelConfig
from sage_infer_hybrid.estimate import GIB, Demand
from sage_infer_hybrid.loaded import GENERATES, LoadedModel
from sage_infer_hybrid.machine import machine_devices
from sage_infer_hybrid.memory_planner import Device, MemoryPlan, Share, corrected, plan_memory
from sage_infer_hybrid.placement import KV_OPTION, demand_of
from sage_infer_hybrid.process_memory import resident_bytes
from sage_infer_hybrid.registry import ModelEntry, ModelRegistry
from sage_infer_hybrid.router import ModelRouter

__all__ = ["ModelHost", "Progress"]

Progress = Callable[[str, str, float], None]
"""Called with a model's id, what is being done, and how much of it is done, 0 to 1."""


class ModelHost:
    """The models of one instance: what is known of each, and the backends of those that answer.

    ``profile`` is the machine, None to ask it when it is first needed.
    """

    def __init__(self, mode: SharingMode, profile: HardwareProfile | None) -> None:
        self.mode: SharingMode = mode
        self.registry = ModelRegistry()
        self.router = ModelRouter(self.registry)
        self.loaded: dict[str, LoadedModel] = {}
        self.on_progress: Progress | None = None
        self.closed = False
        self._profile = profile
        self._devices: tuple[Device, ...] | None = None
        self._configs: dict[str, ModelConfig] = {}
        self._demands: dict[str, Demand] = {}
        self._coming: set[str] = set()  # what is loaded sooner or later without being asked for
        self._loading = asyncio.Lock()  # one at a time: what loading adds to the process is that model's

    async def close(self) -> None:
        self.closed = True
        loaded, self.loaded = list(self.loaded.values()), {}
        for model in loaded:
            await model.backend.close()

    def check_open(self) -> None:
        """Raises ``EngineDead`` after ``close``."""
        if self.closed:
            raise EngineDead("the backend was closed; open a new one")

    def plan(self) -> MemoryPlan:
        """Who has what of which device, of the models that are loaded."""
        shares = tuple(model.share for model in self.loaded.values())
        return MemoryPlan(mode=self.mode, devices=self._known_devices(), shares=shares)

    # --- models

    def register(self, config: ModelConfig, kind: ModelType | None) -> ModelEntry:
        model = config.model
        if isinstance(model, str):
            model = resolve_model(model, model_type=kind)
        elif kind is not None and model.model_type != kind:
            raise InvalidRequest(f"model {model.model_id!r} is of type {model.model_type}, expected {kind}")
        entry = self.registry.register(model, config.aliases)
        self._configs[model.model_id] = config
        self._demands.pop(model.model_id, None)
        return entry

    def named(self, name: str) -> ModelEntry:
        entry = self.router.named(name)
        assert entry is not None
        return entry

    async def load_registered(self) -> None:
        """Load every model that is only registered; each is planned for before the first one is loaded.

        Raises:
            OutOfMemory: they do not fit together.
        """
        coming = [entry for entry in self.registry.entries() if entry.state == "registered"]
        for entry in coming:
            self._demand(entry)
        self._coming.update(entry.descriptor.model_id for entry in coming)
        try:
            for entry in coming:
                await self.load(entry)
        finally:
            self._coming.clear()

    async def load(self, entry: ModelEntry, *, again: bool = False) -> None:
        """Load a model, unless it is loaded when its turn comes; one that failed is tried ``again`` or refused.

        Raises:
            EngineDead: it has failed.
            OutOfMemory: it does not fit beside what is loaded and what is registered.
            BackendUnavailable: no backend for it is ready.
        """
        async with self._loading:
            self.check_open()
            if entry.state == "ready":
                return
            if entry.state == "failed" and not again:
                raise _failed(entry)
            model_id = entry.descriptor.model_id
            self.registry.move(entry, "loading")
            backend = None
            try:
                if dead := self.loaded.pop(model_id, None):
                    await dead.backend.close()
                share = self._planned(entry)
                backend = self._created(entry, share)
                before = resident_bytes()
                await backend.start()
                after = resident_bytes()
                self.check_open()  # it may have been closed meanwhile
            except BaseException as error:
                self.registry.move(entry, "failed", str(error) or type(error).__name__)
                if backend is not None:
                    await backend.close()
                raise
            measured = None if before is None or after is None else max(after - before, 0)
            self.loaded[model_id] = LoadedModel(entry, self._configs[model_id], backend, share, measured)
            self.registry.move(entry, "ready")
            self._tell(model_id, "ready", 1.0)

    def _planned(self, entry: ModelEntry) -> Share:
        loaded = [self._fixed(model) for model in self.loaded.values()]
        names = [e for e in self.registry.entries() if e.descriptor.model_id in self._coming]
        coming = [self._demand(e) for e in names if e.state == "registered"]
        plan = plan_memory(self._known_devices(), [*loaded, self._demand(entry), *coming], self.mode)
        share = plan.share_of(entry.descriptor.model_id)
        assert share is not None
        return share

    def _created(self, entry: ModelEntry, share: Share) -> Any:
        """The backend, not started, with the KV cache that the plan has for it."""
        model = entry.descriptor
        name, options = self._backend_of(entry), dict(self._options_of(entry))
        spec = find_backend(name).spec
        if share.kv and spec is not None and KV_OPTION in spec.options:
            options.setdefault(KV_OPTION, share.kv / GIB)
        kind: Any = model.model_type
        backend = create_backend(name, model=model, serves=kind, **options)
        self._tell(model.model_id, "loading", 0.0)
        if hasattr(backend, "on_progress"):
            backend.on_progress = lambda stage, done: self._tell(model.model_id, stage, done)
        return backend

    def _tell(self, model_id: str, stage: str, share: float) -> None:
        if self.on_progress is not None:
            self.on_progress(model_id, stage, share)

    async def unload(self, entry: ModelEntry, state: ModelState) -> None:
        """Let the model's open requests end and free it; ``state`` is what it becomes.

        Raises:
            InvalidRequest: it is not loaded.
        """
        model_id = entry.descriptor.model_id
        model = self.loaded.get(model_id)
        if model is None or entry.state != "ready":
            raise InvalidRequest(f"model {model_id!r} is {entry.state}, and only a ready one can be unloaded")
        self.registry.move(entry, "draining")
        try:
            await model.drained()
        except BaseException:  # whoever waited for it no longer does
            self.registry.move(entry, "ready")
            raise
        self.loaded.pop(model_id, None)
        await model.backend.close()
        self.registry.move(entry, state)

    async def ready(self, name: str | None, types: Sequence[ModelType]) -> LoadedModel:
        """The model for a request, loaded; waits for one that is being loaded, and wakes one that sleeps."""
        self.check_open()
        entry = self.router.route(name, types)
        model_id = entry.descriptor.model_id
        if entry.state in ("loading", "sleeping") or model_id in self._coming:
            await self.load(entry)  # behind the load that is under way, after which it has nothing to do
        if entry.state == "draining":
            raise Overloaded(f"model {model_id!r} is being unloaded; try again later", retry_after=1.0)
        model = self.loaded.get(model_id)
        if entry.state == "failed":
            raise _failed(entry)
        if model is None:
            raise BackendUnavailable(
                f"model {model_id!r} is {entry.state}, not loaded; call load_model first"
            )
        return model

    # --- what it is reckoned with

    def _demand(self, entry: ModelEntry) -> Demand:
        model_id = entry.descriptor.model_id
        if model_id not in self._demands:
            config = self._configs[model_id]
            spec = find_backend(self._backend_of(entry)).spec
            if spec is None:
                raise BackendUnavailable(
                    f"backend {self._backend_of(entry)!r} cannot be used; `sage infer doctor`"
                )
            weight = config.weight or (3.0 if entry.descriptor.model_type in GENERATES else 1.0)
            self._demands[model_id] = demand_of(
                entry.descriptor, spec, self._options_of(entry), self._known_devices(), weight=weight
            )
        return self._demands[model_id]

    def _backend_of(self, entry: ModelEntry) -> str:
        from sage_infer.config import load_config

        config = self._configs[entry.descriptor.model_id]
        settings = load_config().config.inference
        default = settings.backend if entry.descriptor.model_type in GENERATES else settings.embedding_backend
        return config.backend or default

    def _options_of(self, entry: ModelEntry) -> Mapping[str, Any]:
        from sage_infer.config import load_config

        config = self._configs[entry.descriptor.model_id]
        if config.backend is not None:
            return config.options
        settings = load_config().config.inference
        generates = entry.descriptor.model_type in GENERATES
        return {**(settings.options if generates else settings.embedding_options), **config.options}

    def _fixed(self, model: LoadedModel) -> Demand:
        """A loaded model as a demand that is met exactly: it has its device and its KV cache."""
        share = model.share
        fixed = Demand(
            model_id=share.model_id,
            weights=share.weights,
            kv_least=share.kv,
            kv_wanted=share.kv,
            activations=share.activations,
            overhead=share.overhead,
            weight=model.weight,
            devices=(share.device,),
        )
        in_memory = model.measured if share.device == "cpu" else None
        # KV is touched as it is used, so what is seen now is the model without it.
        return (
            fixed if in_memory is None else corrected(fixed, in_memory + share.kv + share.activations, share)
        )

    def _known_devices(self) -> tuple[Device, ...]:
        if self._devices is None:
            self._devices = machine_devices(self._profile)
        return self._devices


def _failed(entry: ModelEntry) -> EngineDead:
    return EngineDead(f"model {entry.descriptor.model_id!r} failed: {entry.reason}; load it again")

"""Loading and unloading of a hybrid instance's models."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from attrs import evolve, fields
from sage_infer.contracts import EngineStats, ProgressReporting
from sage_infer.errors import BackendUnavailable, EngineDead, InvalidRequest, OutOfMemory, Overloaded
from sage_infer.names import ModelType
from sage_infer.schemas import HardwareProfile
from sage_infer.schemas.capability import SharingMode
from sage_infer_planning.estimate import Demand
from sage_infer_planning.memory_planner import MemoryPlan, Share
from sage_infer_planning.registry import ModelEntry, ModelRegistry
from sage_infer_planning.router import ModelRouter

from sage_infer_hybrid.config import ModelConfig
from sage_infer_hybrid.engines import Engine, described
from sage_infer_hybrid.loaded import LoadedModel
from sage_infer_hybrid.memory import InstanceMemory

__all__ = ["ModelHost"]

_LOOK_S = 0.01  # polling interval of a draining model
_COUNTERS = ("finished", "prompt_tokens", "output_tokens", "prefix_hit_tokens", "steps")  # monotonic counters
_LARGEST = ("oldest_wait_s", "step_s")  # gauges combined by maximum, not by sum


class ModelHost:
    """The models of one instance, and the backends of loaded ones.

    ``profile`` is the machine; None: detect it on first use.
    """

    def __init__(self, mode: SharingMode, profile: HardwareProfile | None) -> None:
        self.registry = ModelRegistry()
        self.router = ModelRouter(self.registry)
        self.loaded: dict[str, LoadedModel] = {}
        self.closed = False
        self.memory = InstanceMemory(mode, profile, self.loaded)
        self._engines: dict[str, Engine] = {}
        self.coming: set[str] = set()  # models that will be loaded without a request
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._loading = asyncio.Lock()  # one at a time, so that the measured memory belongs to that model
        self._starting: Any = None  # the starting backend
        self._ending: set[asyncio.Task[None]] = set()  # closing engines
        self._past = EngineStats(running=0, waiting=0)  # counters of unloaded models

    async def close(self) -> None:
        self.closed = True
        backends = [model.backend for model in self.loaded.values()]
        if self._starting is not None:
            backends.append(self._starting)
        self.loaded.clear()
        ended = await asyncio.gather(
            *(backend.close() for backend in backends), *self._ending, return_exceptions=True
        )
        for error in ended:
            if isinstance(error, BaseException):
                raise error

    def check_open(self) -> None:
        """Raises ``EngineDead`` after ``close``."""
        if self.closed:
            raise EngineDead("the backend was closed; open a new one")

    def stats(self) -> EngineStats:
        """Combined gauges of all models, and counters including unloaded ones."""
        each = [self._past, *(model.backend.stats() for model in self.loaded.values())]
        values: dict[str, Any] = {}
        for name in (attribute.name for attribute in fields(EngineStats) if attribute.name != "extensions"):
            known = [value for stats in each if (value := getattr(stats, name)) is not None]
            values[name] = max(known, default=None) if name in _LARGEST else sum(known)
        return EngineStats(**values)

    # --- models

    def register(self, config: ModelConfig, kind: ModelType | None) -> ModelEntry:
        model = described(config, kind)
        known = self._engines.get(model.model_id)
        if known is not None and (known.config, known.model) == (config, model):
            entry = self.registry.find(model.model_id)
            assert entry is not None
            return entry
        entry = self.registry.register(model, config.aliases)
        self._engines[model.model_id] = Engine(config, model)
        return entry

    def settings_of(self, entry: ModelEntry) -> dict[str, Any]:
        """How a model is run, JSON-ready."""
        config = self._engines[entry.descriptor.model_id].config
        profile = config.quant_profile
        return {
            "backend": config.backend,
            "options": dict(config.options),
            "quant_profile": None if profile is None else profile.profile_id,
        }

    def add(self, config: ModelConfig, *, may_be_registered: bool) -> ModelEntry:
        """Register a model that is new, has failed, or was unloaded.

        Raises:
            InvalidRequest: a model with that id exists.
        """
        model = described(config, None)
        known = self.registry.find(model.model_id)
        if known is not None and not (may_be_registered and known.state in ("registered", "failed")):
            raise InvalidRequest(
                f"model {model.model_id!r} is already {known.state}; unload it first, or use another model_id"
            )
        return self.register(evolve(config, model=model), model.model_type)

    def named(self, name: str) -> ModelEntry:
        entry = self.router.named(name)
        assert entry is not None
        return entry

    async def ready(self, name: str | None, types: Sequence[ModelType]) -> LoadedModel:
        """The loaded model for a request; waits while it is loading, and wakes it if it sleeps."""
        self.check_open()
        entry = self.router.route(name, types)
        model_id = entry.descriptor.model_id
        if entry.state == "sleeping" or model_id in self.coming or model_id in self._loads:
            await self.load(entry)
        model = self.loaded.get(model_id)
        if entry.state == "draining" and model is not None and model.may_sleep:
            self.registry.move(entry, "ready")  # cancels draining, like sleep and wake
        if entry.state == "draining":
            raise Overloaded(f"model {model_id!r} is being unloaded; retry later", retry_after=1.0)
        if entry.state == "failed":
            raise _failed(entry)
        if model is None:
            raise BackendUnavailable(
                f"model {model_id!r} is {entry.state}, not loaded; call load_model first"
            )
        return model

    @contextmanager
    def call(self, model: LoadedModel) -> Iterator[Any]:
        """Context of one call of the model's backend; the model cannot be unloaded during it."""
        model.calls += 1
        try:
            yield model.backend
        except EngineDead as error:
            self.lost(model, error.message)
            raise
        finally:
            model.calls -= 1

    def lost(self, model: LoadedModel, reason: str) -> None:
        """Mark the model as failed after its engine has died, and clean up."""
        model_id = model.descriptor.model_id
        if self.closed or self.loaded.get(model_id) is not model:
            return
        self.registry.move(model.entry, "failed", reason)
        self._clear_away(model)

    def _clear_away(self, model: LoadedModel) -> asyncio.Task[None]:
        """Close the model's engine; the task is done when its memory is freed."""
        del self.loaded[model.descriptor.model_id]
        stats = model.backend.stats()
        self._past = evolve(
            self._past, **{name: getattr(self._past, name) + getattr(stats, name) for name in _COUNTERS}
        )
        task: asyncio.Task[None] = asyncio.ensure_future(model.backend.close())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    # --- loading

    async def load_registered(self) -> None:
        """Load all registered models, after planning them together.

        Raises:
            OutOfMemory: they do not fit together.
        """
        await asyncio.to_thread(lambda: self.memory.devices)  # detection takes time
        coming = self._registered()
        for entry in coming:
            self._demand(entry)
        self.coming.update(entry.descriptor.model_id for entry in coming)
        try:
            for entry in coming:
                await self.load(entry)
        finally:
            self.coming.clear()

    async def load(self, entry: ModelEntry, *, again: bool = False) -> None:
        """Load a model unless it is loaded; load a failed model only if ``again``.

        Concurrent requests for a loading model share one load, which continues if a request is cancelled.

        Raises:
            EngineDead: the model has failed.
            OutOfMemory: the model does not fit in addition to loaded and registered models.
            BackendUnavailable: its backend is not ready.
        """
        self.check_open()
        model_id = entry.descriptor.model_id
        task = self._loads.get(model_id)
        if task is None and entry.state == "ready":
            return
        if task is None and entry.state == "failed" and not again:
            raise _failed(entry)
        if task is None:
            task = self._loads[model_id] = asyncio.ensure_future(self._load(entry))
            task.add_done_callback(lambda task: self._load_ended(model_id, task))
        await asyncio.shield(task)

    def _load_ended(self, model_id: str, task: asyncio.Task[None]) -> None:
        del self._loads[model_id]
        if not task.cancelled():
            task.exception()  # retrieve the exception, even without a waiting caller

    async def _load(self, entry: ModelEntry) -> None:
        async with self._loading:
            self.check_open()
            slept = entry.state == "sleeping"
            self.registry.move(entry, "loading")
            try:
                shares = self._planned(entry)
            except OutOfMemory as error:  # it may fit later
                self.registry.move(entry, "sleeping" if slept else "failed", error.message)
                raise
            except BaseException as error:
                self.registry.move(entry, "failed", str(error) or type(error).__name__)
                raise
            await asyncio.gather(*self._ending, return_exceptions=True)
            await self._start(entry, shares)

    async def _start(self, entry: ModelEntry, shares: tuple[Share, ...]) -> None:
        model_id, engine = entry.descriptor.model_id, self._engines[entry.descriptor.model_id]
        backend = None
        try:
            self._tell(entry, "loading", None)
            await asyncio.to_thread(engine.import_code)
            self.check_open()
            before = self.memory.held()
            backend = self._starting = engine.create(shares, self.memory.devices)
            if isinstance(backend, ProgressReporting):
                backend.on_progress(lambda stage, share: self._tell(entry, stage, share))
            await backend.start()
            after = self.memory.held()
            self.check_open()  # it may have been closed meanwhile
        except BaseException as error:
            self.registry.move(entry, "failed", str(error) or type(error).__name__)
            if backend is not None:
                await backend.close()
            raise
        finally:
            self._starting = None
        measured = None if before is None or after is None else max(after - before, 0)
        features = frozenset(backend.get_capability().features)
        self.loaded[model_id] = LoadedModel(
            entry, backend, shares, engine.weight, engine.config.memory_fraction, features, measured
        )
        self.registry.move(entry, "ready")

    def _planned(self, entry: ModelEntry) -> tuple[Share, ...]:
        names = [e for e in self._registered() if e.descriptor.model_id in self.coming]
        coming = [self._demand(e) for e in names]
        return self.memory.shares_for(self._demand(entry), coming)

    def plan(self) -> MemoryPlan:
        """The plan of loaded and registered models.

        Raises:
            OutOfMemory: they do not fit together.
        """
        return self.memory.plan_with([self._demand(entry) for entry in self._registered()])

    def _registered(self) -> list[ModelEntry]:
        return [entry for entry in self.registry.entries() if entry.state == "registered"]

    def _demand(self, entry: ModelEntry) -> Demand:
        engine = self._engines[entry.descriptor.model_id]
        demand = engine.demand(self.memory.devices)
        if engine.sizes is not None and entry.descriptor.embedding_dim is None:
            entry.descriptor = evolve(entry.descriptor, embedding_dim=engine.sizes.embedding_dim)
        return demand

    @staticmethod
    def _tell(entry: ModelEntry, stage: str, share: float | None) -> None:
        """Report loading progress. Thread-safe, as engines report from their own threads."""
        if entry.state == "loading":
            entry.stage, entry.share = stage, share

    # --- unloading

    async def unload(self, entry: ModelEntry, state: Literal["registered", "sleeping"]) -> None:
        """Wait for the model's open requests and unload it; ``state`` is its next state.

        A request that arrives before the model sleeps cancels the draining, and the model stays ready.

        Raises:
            InvalidRequest: it is not loaded.
        """
        model_id = entry.descriptor.model_id
        model = self.loaded.get(model_id)
        if entry.state == "sleeping" and state == "registered":
            self.registry.move(entry, state)
            return
        if model is None or entry.state != "ready":
            raise InvalidRequest(f"model {model_id!r} is {entry.state}; only a ready model can be unloaded")
        self.registry.move(entry, "draining")
        model.may_sleep = state == "sleeping"

        def drains() -> bool:
            return entry.status.state == "draining"

        try:
            while drains() and model.is_busy:  # noqa: ASYNC110 - no engine tells when it is idle
                await asyncio.sleep(_LOOK_S)
        except BaseException:  # the waiting caller was cancelled
            if drains():
                self.registry.move(entry, "ready")
            raise
        if drains() and not self.closed:
            self.registry.move(entry, state)
            await asyncio.shield(self._clear_away(model))


def _failed(entry: ModelEntry) -> EngineDead:
    return EngineDead(f"model {entry.descriptor.model_id!r} failed: {entry.reason}; load it again")

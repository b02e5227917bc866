"""The engine of one model: which backend, with which options, and what the memory plan makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import define, evolve, field
from sage_infer.backends import create_backend, find_backend
from sage_infer.config import load_config
from sage_infer.errors import BackendUnavailable
from sage_infer.factories import call_path
from sage_infer.names import GENERATING
from sage_infer.schemas import ModelDescriptor
from sage_infer.specs import BackendSpec, EngineMemory
from sage_infer_planning.estimate import GIB, Demand
from sage_infer_planning.memory_planner import Device, Share
from sage_infer_planning.placement import FRACTION_OPTION, KV_OPTION, candidates, demand_of, kind_of

from sage_infer_hybrid.config import ModelConfig
from sage_infer_hybrid.loaded import default_weight

__all__ = ["Engine"]


@define
class Engine:
    """How a registered model is run."""

    config: ModelConfig
    model: ModelDescriptor
    _demand: Demand | None = field(default=None, init=False, eq=False)

    @property
    def weight(self) -> float:
        return self.config.weight or default_weight(self.model)

    @property
    def backend_name(self) -> str:
        settings = load_config().config.inference
        default = settings.backend if self._generates else settings.embedding_backend
        return self.config.backend or default

    @property
    def options(self) -> dict[str, Any]:
        """The user's for this model; over those of the configuration where the backend is its own choice."""
        if self.config.backend is not None:
            return dict(self.config.options)
        settings = load_config().config.inference
        return {
            **(settings.options if self._generates else settings.embedding_options),
            **self.config.options,
        }

    @property
    def _generates(self) -> bool:
        return self.model.model_type in GENERATING

    def demand(self, devices: Sequence[Device]) -> Demand:
        """What it wants of memory, reckoned once.

        Raises:
            BackendUnavailable: there is no such backend.
            ModelFileError: the model's files do not say how large it is.
        """
        if self._demand is None:
            names = candidates(self.model, self._spec(), devices)
            self._demand = demand_of(
                self.model, self.memory(kind_of(names[0])), self.options, names, devices, weight=self.weight
            )
        return self._demand

    def memory(self, hardware: str) -> EngineMemory:
        """What the backend itself says of its use of memory on a kind of device."""
        info = find_backend(self.backend_name)
        spec = self._spec()
        if spec.memory is None:
            return EngineMemory()
        try:
            found = call_path(
                spec.memory, what=info.title, model=self.model, options=self.options, hardware=hardware
            )
        except BackendUnavailable as error:
            if self.options and isinstance(error.__cause__, AttributeError | TypeError):
                return EngineMemory()  # an option of the wrong type: the backend itself says what is wrong
            raise
        if not isinstance(found, EngineMemory):
            raise BackendUnavailable(
                f"{info.title}: {spec.memory} returned a {type(found).__name__}, not an EngineMemory"
            )
        return found

    def create(self, shares: Sequence[Share], devices: Sequence[Device]) -> Any:
        """The backend, not started, on the devices and with the memory that the plan has for it."""
        first, options, model, spec = shares[0], self.options, self.model, self._spec()
        kind = kind_of(first.device)
        if first.kv and KV_OPTION in spec.options:
            options.setdefault(KV_OPTION, first.kv / GIB)
        if kind != "cpu":
            if (
                FRACTION_OPTION in spec.options
            ):  # an engine asks whether so much is free, whatever its KV cache
                total = min(device.total for device in devices if device.name == first.device)
                options.setdefault(FRACTION_OPTION, round(first.total / total, 3))
            if sum(kind_of(device.name) == kind for device in devices) > len(shares):
                numbers = tuple(int(share.device.partition(":")[2]) for share in shares)
                model = evolve(model, device_ids=numbers)
        serves: Any = model.model_type
        return create_backend(self.backend_name, model=model, serves=serves, **options)

    def _spec(self) -> BackendSpec:
        spec = find_backend(self.backend_name).spec
        if spec is None:
            raise BackendUnavailable(f"backend {self.backend_name!r} cannot be used; `sage infer doctor`")
        return spec

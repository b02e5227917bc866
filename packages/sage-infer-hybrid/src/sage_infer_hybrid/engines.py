"""The engine of one model: backend, options and memory demand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import define, evolve, field
from sage_infer.backends import create_backend, find_backend
from sage_infer.config import load_config
from sage_infer.errors import BackendUnavailable, InvalidRequest, UnsupportedFeature
from sage_infer.factories import call_path, load_object
from sage_infer.models import is_model_name, resolve_model
from sage_infer.names import GENERATING, ModelType
from sage_infer.schemas import ModelDescriptor
from sage_infer.specs import BackendSpec, EngineMemory, ModelSizes
from sage_infer_planning.estimate import GIB, Demand
from sage_infer_planning.memory_planner import Device, Share
from sage_infer_planning.placement import (
    FRACTION_OPTION,
    KV_OPTION,
    SPREAD_OPTION,
    candidates,
    demand_of,
    kind_of,
)

from sage_infer_hybrid.config import ModelConfig
from sage_infer_hybrid.loaded import default_weight

__all__ = ["Engine", "described"]


@define
class Engine:
    """The engine settings of a registered model."""

    config: ModelConfig
    model: ModelDescriptor
    sizes: ModelSizes | None = field(default=None, init=False, eq=False)
    _demand: Demand | None = field(default=None, init=False, eq=False)

    @property
    def weight(self) -> float:
        return self.config.weight or default_weight(self.model)

    @property
    def backend_name(self) -> str:
        return self.config.backend or _default_backend(self.model.model_type)

    @property
    def options(self) -> dict[str, Any]:
        """The user's options for this model, merged over the configured ones if the backend is the configured one."""
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
        """The memory demand, estimated once.

        Raises:
            BackendUnavailable: there is no such backend.
            ModelFileError: the model's files lack its sizes.
            InvalidRequest: it specifies devices that do not exist.
            UnsupportedFeature: the backend cannot divide a model over devices.
        """
        if self._demand is None:
            spec = self._spec()
            names = candidates(self.model, spec, devices)
            self.sizes = self._sizes()
            demand = demand_of(
                self.model,
                self.memory(kind_of(names[0])),
                self.options,
                names,
                devices,
                weight=self.weight,
                sizes=self.sizes,
            )
            if demand.spread > 1 and SPREAD_OPTION not in spec.options:
                raise UnsupportedFeature(
                    f"backend {spec.name!r} cannot divide model {self.model.model_id!r} over {demand.spread} devices; "
                    "specify one device, or use another backend"
                )
            self._demand = evolve(demand, fraction=self.config.memory_fraction)
        return self._demand

    def memory(self, hardware: str) -> EngineMemory:
        """The backend's memory requirements on a type of device."""
        info = find_backend(self.backend_name)
        spec = self._spec()
        if spec.memory is None:
            return self._with_profile(EngineMemory())
        try:
            found = call_path(
                spec.memory, what=info.title, model=self.model, options=self.options, hardware=hardware
            )
        except BackendUnavailable as error:
            if self.options and isinstance(error.__cause__, AttributeError | TypeError):
                return EngineMemory()  # an option has the wrong type; the backend will report it
            raise
        if not isinstance(found, EngineMemory):
            raise BackendUnavailable(
                f"{info.title}: {spec.memory} returned a {type(found).__name__}, not an EngineMemory"
            )
        return self._with_profile(found)

    def _with_profile(self, memory: EngineMemory) -> EngineMemory:
        """The engine's memory requirements, with the profile's bits if they are lower."""
        profile = self.config.quant_profile
        if profile is None:
            return memory
        most, kv = memory.most_weight_bits, max(profile.kv_bits_prefill, profile.kv_bits_decode)
        bits = profile.weight_bits if most is None else min(most, profile.weight_bits)
        least = None if memory.least_weight_bits is None else min(memory.least_weight_bits, bits)
        return evolve(memory, most_weight_bits=bits, least_weight_bits=least, kv_bits=min(memory.kv_bits, kv))

    def _sizes(self) -> ModelSizes | None:
        """Sizes that the backend reads from its own file format; None if not applicable."""
        info, spec = find_backend(self.backend_name), self._spec()
        if spec.sizes is None:
            return None
        found = call_path(spec.sizes, what=info.title, model=self.model)
        if not isinstance(found, ModelSizes):
            raise BackendUnavailable(
                f"{info.title}: {spec.sizes} returned a {type(found).__name__}, not ModelSizes"
            )
        return found

    def import_code(self) -> None:
        """Import the backend's libraries, which may take seconds, outside of the event loop's thread."""
        info, spec = find_backend(self.backend_name), self._spec()
        load_object(spec.factory, what=info.title)

    def create(self, shares: Sequence[Share], devices: Sequence[Device]) -> Any:
        """Create the backend with its planned devices and memory, without starting it.

        Raises:
            UnsupportedFeature, CapabilityMismatch: it cannot use the quantization profile.
        """
        first, options, model, spec = shares[0], self.options, self.model, self._spec()
        kind = kind_of(first.device)
        if first.kv and KV_OPTION in spec.options:
            options.setdefault(KV_OPTION, first.kv / GIB)
        if kind == "cpu":
            model = evolve(model, device_ids=())  # main memory is one device
        else:
            if len(shares) > 1:
                options.setdefault(SPREAD_OPTION, len(shares))
            if FRACTION_OPTION in spec.options:
                # The engine checks that this share is free, independent of its KV cache.
                total = min(device.total for device in devices if device.name == first.device)
                options.setdefault(FRACTION_OPTION, round(first.total / total, 3))
            if sum(kind_of(device.name) == kind for device in devices) > len(shares):
                numbers = tuple(int(share.device.partition(":")[2]) for share in shares)
                model = evolve(model, device_ids=numbers)
        serves: Any = model.model_type
        if self.config.quant_profile is not None:
            options["quant_profile"] = self.config.quant_profile
        return create_backend(self.backend_name, model=model, serves=serves, **options)

    def _spec(self) -> BackendSpec:
        spec = find_backend(self.backend_name).spec
        if spec is None:
            raise BackendUnavailable(f"backend {self.backend_name!r} cannot be used; `sage infer doctor`")
        return spec


def described(config: ModelConfig, kind: ModelType | None) -> ModelDescriptor:
    """The model of a configuration, resolved to files; ``kind`` is the required type.

    Raises:
        ModelNotFound, ModelFileError: there are no files, or they contain no model.
        InvalidRequest: the model has another type.
    """
    model = config.model
    if isinstance(model, str):
        spec = _spec_of(config, kind)
        any_format = spec is not None and spec.sizes is not None
        if any_format and kind is None and spec is not None and len(spec.serves) == 1:
            (kind,) = spec.serves  # type: ignore[assignment]  # a backend with sizes serves models
        model = resolve_model(model, model_type=kind, any_format=any_format)
    elif kind is not None and model.model_type != kind:
        raise InvalidRequest(f"model {model.model_id!r} has the type {model.model_type}, expected {kind}")
    elif is_model_name(model.model_path):
        found = resolve_model(model.model_path, model_type=model.model_type)
        model = evolve(
            model,
            model_path=found.model_path,
            embedding_dim=model.embedding_dim or found.embedding_dim,
            pooling_type=model.pooling_type or found.pooling_type,
        )
    return evolve(
        model, model_id=config.model_id or model.model_id, device_ids=config.device_ids or model.device_ids
    )


def _spec_of(config: ModelConfig, kind: ModelType | None) -> BackendSpec | None:
    """The spec of the configured backend; None if the backend is not known yet or does not exist."""
    if config.backend is None and kind is None:
        return None
    try:
        return find_backend(config.backend or _default_backend(kind or "llm")).spec
    except BackendUnavailable:  # creating the backend reports it by name
        return None


def _default_backend(kind: ModelType) -> str:
    settings = load_config().config.inference
    return settings.backend if kind in GENERATING else settings.embedding_backend

"""Configuration of one model of a hybrid instance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen
from sage_infer.errors import InvalidRequest
from sage_infer.quantization import as_quant_profile
from sage_infer.schemas import ModelDescriptor, QuantizationProfile
from sage_infer.sdk.fields import Each, Entries, Integer, Json, Number, Text, as_tuple, optional

__all__ = ["ModelConfig", "as_config"]


def _is_model(instance: object, attribute: Any, value: Any) -> None:
    if not isinstance(value, ModelDescriptor) and not (isinstance(value, str) and value):
        raise InvalidRequest(f"model must be a name, a path or a ModelDescriptor, got {value!r}")


def _as_profile(value: Any) -> QuantizationProfile | None:
    return None if value is None else as_quant_profile(value)


@frozen(kw_only=True)
class ModelConfig:
    """A model and its settings.

    Attributes:
        model: a name or path as for ``resolve_model``, or a descriptor.
        model_id: name for requests; None: the model's name. In a mapping without ``model``, ``model_id`` is also the
            model.
        backend: name of an installed backend; None: the configured backend for this type of model.
        aliases: additional names for requests.
        options: backend options; ``sage infer backend show`` lists them.
        weight: its relative share of compute and of remaining memory; None: 3 for generating models and 1 for others.
        device_ids: devices to divide the model over; empty: chosen by the planner.
        memory_fraction: maximum share of each device's memory, above 0 to 1; None: as much as needed.
        quant_profile: its quantization: a profile, a mapping of its fields, or a JSON or YAML file.
    """

    model: str | ModelDescriptor = field(validator=_is_model)
    model_id: str | None = field(default=None, validator=optional(Text(min_length=1)))
    backend: str | None = field(default=None, validator=optional(Text(min_length=1)))
    aliases: tuple[str, ...] = field(
        default=(), converter=as_tuple, validator=Each(Text(min_length=1), unique=True)
    )
    options: Mapping[str, Any] = field(factory=dict, validator=Entries(Json()))
    weight: float | None = field(default=None, validator=optional(Number(gt=0)))
    device_ids: tuple[int, ...] = field(
        default=(), converter=as_tuple, validator=Each(Integer(ge=0), unique=True)
    )
    memory_fraction: float | None = field(default=None, validator=optional(Number(gt=0, le=1)))
    quant_profile: QuantizationProfile | None = field(default=None, converter=_as_profile)


def as_config(value: str | ModelDescriptor | Mapping[str, Any] | ModelConfig, where: str) -> ModelConfig:
    """Parse a configuration that the caller passed as argument ``where``.

    Raises:
        InvalidRequest: it is not a configuration, or has an unknown key.
    """
    if isinstance(value, ModelConfig):
        return value
    if isinstance(value, str | ModelDescriptor):
        return ModelConfig(model=value)
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{where} must be a model's name or a mapping with a key model, got {value!r}")
    known = [attribute.name for attribute in ModelConfig.__attrs_attrs__]
    unknown = [str(key) for key in value if key not in known]
    if unknown or not ("model" in value or "model_id" in value):
        problem = f"has no key {unknown[0]!r}" if unknown else "lacks the key model or model_id"
        raise InvalidRequest(f"{where} {problem}; valid keys: {', '.join(known)}")
    return ModelConfig(**{"model": value.get("model_id"), **value})

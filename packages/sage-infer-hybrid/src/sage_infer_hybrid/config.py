"""What is said of a model that a hybrid instance serves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen
from sage_infer.checks import Each, Entries, Json, Number, Text, as_tuple, optional
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import ModelDescriptor

__all__ = ["ModelConfig", "as_config"]


def _is_model(instance: object, attribute: Any, value: Any) -> None:
    if not isinstance(value, ModelDescriptor) and not (isinstance(value, str) and value):
        raise InvalidRequest(f"model must be a name, a path or a ModelDescriptor, got {value!r}")


@frozen(kw_only=True)
class ModelConfig:
    """A model and how to run it.

    Attributes:
        model: a name or path that ``resolve_model`` takes, or a descriptor.
        backend: name of an installed backend; None for the configuration's own for this kind of model.
        aliases: further names that requests may use.
        options: for the backend, as ``sage infer backend show`` lists them.
        weight: its share of compute and of left-over memory, against the others' weights; 3 for models that generate
            and 1 for others where None.
    """

    model: str | ModelDescriptor = field(validator=_is_model)
    backend: str | None = field(default=None, validator=optional(Text(min_length=1)))
    aliases: tuple[str, ...] = field(
        default=(), converter=as_tuple, validator=Each(Text(min_length=1), unique=True)
    )
    options: Mapping[str, Any] = field(factory=dict, validator=Entries(Json()))
    weight: float | None = field(default=None, validator=optional(Number(gt=0)))


def as_config(value: str | ModelDescriptor | Mapping[str, Any] | ModelConfig, where: str) -> ModelConfig:
    """A configuration from what a caller gave as ``where``.

    Raises:
        InvalidRequest: it is none, or has a key that is not known.
    """
    if isinstance(value, ModelConfig):
        return value
    if isinstance(value, str | ModelDescriptor):
        return ModelConfig(model=value)
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{where} must name a model or be a mapping with a key model, got {value!r}")
    known = [attribute.name for attribute in ModelConfig.__attrs_attrs__]
    unknown = [str(key) for key in value if key not in known]
    if unknown or "model" not in value:
        problem = f"has no key {unknown[0]!r}" if unknown else "lacks the key model"
        raise InvalidRequest(f"{where} {problem}; it takes {', '.join(known)}")
    return ModelConfig(**value)

"""Settings of the core. ``sage_infer.yaml`` beside this file explains every key to users."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any, cast, get_args

from attrs import Attribute, asdict, field, fields_dict, frozen, make_class, resolve_types

from sage_infer.checks import (
    Choice,
    Each,
    Entries,
    Flag,
    Instance,
    Integer,
    Json,
    Text,
    as_tuple,
    optional,
)
from sage_infer.schemas.kv import KV_PRESETS
from sage_infer.schemas.transport import TRANSPORT_PRESETS, Objective, TransportSettings

__all__ = ["Config", "Inference", "KVSettings", "Models", "Plugins", "Transport", "config_class", "keys"]

_KV_NAMES: tuple[Any, ...] = tuple(KV_PRESETS)
_TRANSPORT_NAMES: tuple[Any, ...] = tuple(TRANSPORT_PRESETS)


@frozen(kw_only=True)
class Inference:
    """Default backend and model of commands that do not name one.

    ``options`` belong to ``backend``, ``embedding_options`` to ``embedding_backend``: a layer that names
    another backend discards the options of lower layers. ``quant_profile`` belongs to ``model`` on
    ``backend`` in the same way.
    """

    backend: str = field(default="openvino", validator=Text(min_length=1))
    model: str = field(default="smollm2-135m", validator=Text(min_length=1))
    options: Mapping[str, Any] = field(factory=dict, validator=Entries(Json()))
    quant_profile: str | None = field(default=None, validator=optional(Text(min_length=1)))
    embedding_backend: str = field(default="openvino-embedding", validator=Text(min_length=1))
    embedding_model: str = field(default="minilm", validator=Text(min_length=1))
    embedding_options: Mapping[str, Any] = field(factory=dict, validator=Entries(Json()))


@frozen(kw_only=True)
class KVSettings:
    """The KV cache. Null: the backend decides."""

    preset: str | None = field(default=None, validator=optional(Choice(_KV_NAMES)))
    page_size: int | None = field(default=None, validator=optional(Integer(ge=1)))

    @property
    def overrides(self) -> dict[str, Any]:
        """Fields of ``KVCacheSchema`` set in addition to the preset."""
        return {} if self.page_size is None else {"page_size": self.page_size}


@frozen(kw_only=True)
class Transport:
    """KV transfer. ``preset`` sets every setting; other fields override one setting each unless null."""

    preset: str = field(default="high-bw", validator=Choice(_TRANSPORT_NAMES))
    objective: str | None = field(default=None, validator=optional(Choice(get_args(Objective))))
    chunk_bytes: int | None = field(default=None, validator=optional(Integer(ge=4096)))
    max_in_flight: int | None = field(default=None, validator=optional(Integer(ge=1)))
    compress: bool | None = field(default=None, validator=optional(Flag()))
    overlap_compute: bool | None = field(default=None, validator=optional(Flag()))

    def settings(self) -> TransportSettings:
        """The preset with the overrides of this section."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        del given["preset"]
        return TransportSettings.from_preset(self.preset, **given)


@frozen(kw_only=True)
class Plugins:
    """``disabled`` lists plug-ins, distributions, single backends or models that discovery skips."""

    disabled: tuple[str, ...] = field(default=(), converter=as_tuple, validator=Each(Text(min_length=1)))


@frozen(kw_only=True)
class Models:
    """User-defined model names, and the folder for fetched models (null: the user's cache folder)."""

    aliases: Mapping[str, str] = field(factory=dict, validator=Entries(Text(min_length=1)))
    cache_dir: str | None = field(default=None, validator=optional(Text(min_length=1)))
    offline: bool = field(default=False, validator=Flag())


@frozen(kw_only=True)
class Config:
    """The sections of the file that the core reads, one attribute each; ``config_class`` adds those of plug-ins."""

    inference: Inference = field(factory=Inference, validator=Instance(Inference))
    kv_schema: KVSettings = field(factory=KVSettings, validator=Instance(KVSettings))
    transport: Transport = field(factory=Transport, validator=Instance(Transport))
    plugins: Plugins = field(factory=Plugins, validator=Instance(Plugins))
    models: Models = field(factory=Models, validator=Instance(Models))


@cache
def config_class(sections: tuple[tuple[str, type], ...]) -> type[Config]:
    """``Config`` with further sections: pairs of a name and an ``attrs`` class whose fields all have defaults."""
    if not sections:
        return Config
    added: dict[str, Any] = {
        name: field(factory=kind, validator=Instance(kind), type=kind, kw_only=True)
        for name, kind in sections
    }
    return make_class("Config", added, bases=(Config,), frozen=True, kw_only=True)


def keys(config: type[Config] = Config) -> Mapping[str, Mapping[str, Attribute[Any]]]:
    """Section → key → its field, with annotations resolved to types."""
    return _keys(cast(Hashable, config))


@cache
def _keys(config: Any) -> Mapping[str, Mapping[str, Attribute[Any]]]:
    sections = fields_dict(resolve_types(config))
    kinds: dict[str, Any] = {name: section.type for name, section in sections.items()}
    return {name: fields_dict(resolve_types(kind)) for name, kind in kinds.items()}

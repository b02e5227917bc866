"""What can be configured. ``sage_infer.yaml`` beside this file explains every key to its user."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, get_args

from attrs import Attribute, asdict, field, fields_dict, frozen, resolve_types

from sage_infer.checks import (
    Choice,
    Each,
    Entries,
    Flag,
    Instance,
    Integer,
    Json,
    Number,
    Text,
    as_tuple,
    optional,
)
from sage_infer.schemas.capability import SharingMode
from sage_infer.schemas.kv import KV_PRESETS
from sage_infer.schemas.transport import TRANSPORT_PRESETS, Objective, TransportSettings

__all__ = ["Config", "Inference", "KVSettings", "Models", "Plugins", "Serve", "Transport", "keys"]

_KV_NAMES: tuple[Any, ...] = tuple(KV_PRESETS)
_TRANSPORT_NAMES: tuple[Any, ...] = tuple(TRANSPORT_PRESETS)


@frozen(kw_only=True)
class Inference:
    """Which backend and model answer where a command names none.

    ``options`` belong to ``backend``, ``embedding_options`` to ``embedding_backend``: a layer that names
    another backend starts without the options of the layers below it.
    """

    backend: str = field(default="openvino", validator=Text(min_length=1))
    model: str = field(default="smollm2-135m", validator=Text(min_length=1))
    options: Mapping[str, Any] = field(factory=dict, validator=Entries(Json()))
    embedding_backend: str = field(default="openvino-embedding", validator=Text(min_length=1))
    embedding_model: str = field(default="minilm", validator=Text(min_length=1))
    embedding_options: Mapping[str, Any] = field(factory=dict, validator=Entries(Json()))


@frozen(kw_only=True)
class KVSettings:
    """The KV cache. Null means the backend's own choice."""

    preset: str | None = field(default=None, validator=optional(Choice(_KV_NAMES)))
    page_size: int | None = field(default=None, validator=optional(Integer(ge=1)))

    @property
    def overrides(self) -> dict[str, Any]:
        """The fields of ``KVCacheSchema`` that are set beside the preset."""
        return {} if self.page_size is None else {"page_size": self.page_size}


@frozen(kw_only=True)
class Transport:
    """How KV moves. ``preset`` gives every setting; the others, where not null, replace one of them."""

    preset: str = field(default="high-bw", validator=Choice(_TRANSPORT_NAMES))
    objective: str | None = field(default=None, validator=optional(Choice(get_args(Objective))))
    chunk_bytes: int | None = field(default=None, validator=optional(Integer(ge=4096)))
    max_in_flight: int | None = field(default=None, validator=optional(Integer(ge=1)))
    compress: bool | None = field(default=None, validator=optional(Flag()))
    overlap_compute: bool | None = field(default=None, validator=optional(Flag()))

    def settings(self) -> TransportSettings:
        """The preset with what is set here."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        del given["preset"]
        return TransportSettings.from_preset(self.preset, **given)


@frozen(kw_only=True)
class Plugins:
    """``disabled`` names what discovery leaves out: plug-ins, distributions, single backends or models."""

    disabled: tuple[str, ...] = field(default=(), converter=as_tuple, validator=Each(Text(min_length=1)))


@frozen(kw_only=True)
class Models:
    """Names of one's own for models, and where fetched ones are kept (null: the user's cache folder)."""

    aliases: Mapping[str, str] = field(factory=dict, validator=Entries(Text(min_length=1)))
    cache_dir: str | None = field(default=None, validator=optional(Text(min_length=1)))
    offline: bool = field(default=False, validator=Flag())


@frozen(kw_only=True)
class Serve:
    """The gateway of ``sage infer serve``: what it serves and where, who may ask, and how much."""

    models: tuple[Any, ...] = field(default=(), converter=as_tuple, validator=Each(Json()))
    sharing: str = field(default="time_slice", validator=Choice(get_args(SharingMode)))
    host: str = field(default="127.0.0.1", validator=Text(min_length=1))
    port: int = field(default=8000, validator=Integer(ge=0, le=65535))
    keys_file: str | None = field(default=None, validator=optional(Text(min_length=1)))
    strict: bool = field(default=False, validator=Flag())
    cors_origins: tuple[str, ...] = field(default=(), converter=as_tuple, validator=Each(Text(min_length=1)))
    max_body_bytes: int = field(default=16 * 2**20, validator=Integer(ge=1024))
    max_open_requests: int = field(default=512, validator=Integer(ge=1))
    max_idle_connections: int = field(default=1024, validator=Integer(ge=1))
    max_connections_per_peer: int | None = field(default=None, validator=optional(Integer(ge=1)))
    header_timeout_s: float = field(default=10.0, validator=Number(gt=0))
    body_timeout_s: float = field(default=30.0, validator=Number(gt=0))
    request_timeout_s: float = field(default=600.0, validator=Number(gt=0))
    write_timeout_s: float = field(default=30.0, validator=Number(gt=0))
    drain_timeout_s: float = field(default=30.0, validator=Number(ge=0))
    log_requests: bool = field(default=False, validator=Flag())
    tracing: bool = field(default=False, validator=Flag())


@frozen(kw_only=True)
class Config:
    """The whole configuration, one attribute for each section of the file."""

    inference: Inference = field(factory=Inference, validator=Instance(Inference))
    kv_schema: KVSettings = field(factory=KVSettings, validator=Instance(KVSettings))
    transport: Transport = field(factory=Transport, validator=Instance(Transport))
    plugins: Plugins = field(factory=Plugins, validator=Instance(Plugins))
    models: Models = field(factory=Models, validator=Instance(Models))
    serve: Serve = field(factory=Serve, validator=Instance(Serve))


@cache
def keys() -> Mapping[str, Mapping[str, Attribute[Any]]]:
    """Section → key → its field, with annotations resolved to types."""
    sections = fields_dict(resolve_types(Config))
    kinds: dict[str, Any] = {name: section.type for name, section in sections.items()}
    return {name: fields_dict(resolve_types(kind)) for name, kind in kinds.items()}

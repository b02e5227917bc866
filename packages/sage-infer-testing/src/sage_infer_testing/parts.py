"""Kits for installed items other than backends, which are opened by name."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sage_infer.discovery import KindName
from sage_infer.errors import InvalidRequest, UnsupportedFeature
from sage_infer.schemas import KV_PRESETS, KVCacheSchema, KVLocation, ModelDescriptor, ReplicaSpec

__all__ = ["part_kits"]

Kits = list[tuple[str, type, dict[str, Any]]]


def part_kits(
    kind: KindName, name: str, options: Mapping[str, Any], models: Mapping[str, ModelDescriptor]
) -> Kits:
    """Return name, kit and attributes of each test class for an item; empty if ``PluginContract`` covers its kind.

    Raises:
        InvalidRequest: options were given for a kind that has none.
        UnsupportedFeature: the transport does not support ``file:`` locations, or no simple schema matches the codec.
    """
    makers: Mapping[str, Callable[[str, Mapping[str, Any]], Kits]] = {
        "detector": _detector, "store": _store, "transport": _transport, "format": _format,
    }  # fmt: skip
    if options and kind not in ("store", "transport", "executor"):
        raise InvalidRequest(f"a {kind} takes no options; leave --option out")
    if kind == "executor":
        return _executor(name, options, next(iter(models.values())))
    return makers[kind](name, options) if kind in makers else []


def _detector(name: str, options: Mapping[str, Any]) -> Kits:
    from sage_infer.plugins import open_detector

    from sage_infer_testing.kits.hardware import HardwareDetectorContract

    return [("TestDetector", HardwareDetectorContract, {"make_detector": lambda self: open_detector(name)})]


def _store(name: str, options: Mapping[str, Any]) -> Kits:
    from sage_infer.contracts import MappedKVStore, ObservableKVStore, TieredKVStore
    from sage_infer.plugins import open_store

    from sage_infer_testing.kits.kv.mapped import MappedKVStoreContract
    from sage_infer_testing.kits.kv.observable import ObservableKVStoreContract
    from sage_infer_testing.kits.kv.store import KVStoreContract
    from sage_infer_testing.kits.kv.tiered import TieredKVStoreContract

    def opened(self: Any, capacity_blocks: int) -> Any:
        return open_store(
            name, schema=self.kv_schema, model_id=self.model_id, capacity_blocks=capacity_blocks, **options
        )

    sample = opened(KVStoreContract, 8)
    kinds = {"TestMappedStore": (MappedKVStore, MappedKVStoreContract),
             "TestObservableStore": (ObservableKVStore, ObservableKVStoreContract),
             "TestTieredStore": (TieredKVStore, TieredKVStoreContract)}  # fmt: skip
    found: Kits = [
        (title, kit, {"open_store": opened})
        for title, (protocol, kit) in kinds.items()
        if isinstance(sample, protocol)
    ]
    sample.close()
    return found or [("TestStore", KVStoreContract, {"open_store": opened})]


def _transport(name: str, options: Mapping[str, Any]) -> Kits:
    from sage_infer.plugins import find_plugin, open_endpoint, open_transport

    from sage_infer_testing.kits.kv.endpoint import KVEndpointContract
    from sage_infer_testing.kits.kv.transport import TransportContract

    spec = find_plugin(name, "transport").spec
    if "file" not in spec.schemes:
        raise UnsupportedFeature(
            f"transport {name!r} does not support file: locations, the only ones that this command can create; "
            "subclass sage_infer_testing.TransportContract in your own tests"
        )

    def place(self: Any, data: bytes, label: str, folder: Path) -> KVLocation:
        (folder / label).write_bytes(data)
        return KVLocation(tier="ssd", uri=(folder / label).as_uri())

    def target(self: Any, nbytes: int, label: str, folder: Path) -> KVLocation:
        return KVLocation(tier="ssd", uri=(folder / label).as_uri())

    def contents(self: Any, location: KVLocation) -> bytes | None:
        path = Path(unquote(urlsplit(location.uri).path))
        return path.read_bytes() if path.exists() else None

    fixed = {
        "make_transport": lambda self: open_transport(name, **options),
        "place": place, "target": target, "contents": contents,
    }  # fmt: skip
    kits: Kits = [("TestTransport", TransportContract, fixed)]
    if spec.endpoint is not None:
        opened = {
            "make_endpoint": lambda self: open_endpoint(name),
            "make_transport": fixed["make_transport"],
        }
        kits.append(("TestEndpoint", KVEndpointContract, opened))
    return kits


def _format(name: str, options: Mapping[str, Any]) -> Kits:
    from sage_infer.factories import call_factory
    from sage_infer.plugins import find_plugin

    from sage_infer_testing.kits.kv.codec import KVFormatCodecContract

    info = find_plugin(name, "format")

    def make_codec(self: Any) -> Any:
        return call_factory(info.spec.factory, what=info.title, options={})

    schema = _schema_of(make_codec(None), info.spec.format_ids)
    if schema is None:
        raise UnsupportedFeature(
            f"codec {name!r} matches no simple schema; subclass sage_infer_testing.KVFormatCodecContract in your "
            "own tests and set kv_schema"
        )
    return [("TestCodec", KVFormatCodecContract, {"make_codec": make_codec, "kv_schema": schema})]


def _schema_of(codec: Any, format_ids: Iterable[str]) -> KVCacheSchema | None:
    """Return a schema made from a preset that the codec matches, or None."""
    exact = sorted(format_id for format_id in format_ids if not set(format_id) & set("*?["))
    for format_id, preset, page_size in itertools.product(exact, KV_PRESETS, (16, 32)):
        schema = KVCacheSchema.from_preset(
            preset, num_layers=2, num_heads=2, head_dim=64, page_size=page_size, format_id=format_id
        )
        if codec.matches(schema):
            return schema
    return None


def _executor(name: str, options: Mapping[str, Any], model: ModelDescriptor) -> Kits:
    from sage_infer.config import load_config
    from sage_infer.names import GENERATING
    from sage_infer.plugins import open_executor

    from sage_infer_testing.kits.executor import ExecutorContract

    settings = load_config().config.inference
    backend = settings.backend if model.model_type in GENERATING else settings.embedding_backend

    def make_spec(self: Any, replica_id: str) -> ReplicaSpec:
        return ReplicaSpec(replica_id=replica_id, backend=backend, model=model)

    fixed = {"make_executor": lambda self: open_executor(name, **options), "make_spec": make_spec}
    return [("TestExecutor", ExecutorContract, fixed)]

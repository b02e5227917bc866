"""Find and open items of plug-ins other than backends: KV stores and codecs, transports, executors, detectors."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from sage_infer.discovery import KINDS, KindName, PluginInfo, discover, plugin_info
from sage_infer.errors import BackendUnavailable, ConfigError, InvalidRequest, UnsupportedFeature
from sage_infer.factories import call_factory

if TYPE_CHECKING:
    from sage_infer.contracts import (
        Executor,
        HardwareDetector,
        KVEndpoint,
        KVFormatCodec,
        KVStore,
        Transport,
    )
    from sage_infer.schemas import KVCacheSchema, TransportSettings

__all__ = [
    "check_shape",
    "find_plugin",
    "kv_codec",
    "list_plugins",
    "open_detector",
    "open_endpoint",
    "open_executor",
    "open_store",
    "open_transport",
    "require_ready",
]


def list_plugins(kind: KindName | None = None) -> list[PluginInfo]:
    """Return all items of plug-ins with their states, optionally of one kind. No engine is imported."""
    return plugin_info(discover()) if kind is None else plugin_info(discover(), [kind])


def find_plugin(name: str, kind: KindName | None = None) -> PluginInfo:
    """Return the item with this name, in any state.

    Raises:
        BackendUnavailable: no plug-in registers the name; the message suggests the nearest name.
        InvalidRequest: items of several kinds have this name, and ``kind`` is None.
    """
    rows = [row for row in list_plugins(kind) if kind is None or row.kind in (kind, "plugin")]
    found = [row for row in rows if row.name == name]
    found = [row for row in found if row.kind != "plugin"] or found
    kinds = sorted({row.kind for row in found})
    if len(kinds) > 1:
        raise InvalidRequest(f"{name!r} is the name of a {' and of a '.join(kinds)}; choose one with --kind")
    if found:
        return found[0]
    known = sorted({row.name for row in rows})
    near = difflib.get_close_matches(name, known, n=1)
    noun = "plug-in" if kind is None else KINDS[kind].noun
    hint = f"did you mean {near[0]!r}?" if near else f"installed: {', '.join(known) or 'none'}"
    shown = "sage infer plugin list" + (f" --kind {kind}" if kind else "")
    raise BackendUnavailable(f"no {noun} {name!r}; {hint} (`{shown}` shows all)")


def require_ready(info: PluginInfo) -> Any:
    """Return the spec of an item that can be opened on this machine.

    Raises:
        BackendUnavailable: the item is not ready; the message has the reason and the fix.
    """
    if info.state == "ready" and info.spec is not None:
        return info.spec
    noun = "plug-in" if info.kind == "plugin" else KINDS[info.kind].noun
    steps = "; ".join(map(str, info.missing)) or info.fix
    fix = f"; to fix: {steps}" if steps else ""
    raise BackendUnavailable(f"{noun} {info.name!r} is not ready ({info.state}): {info.reason}{fix}")


def open_store(name: str, /, *, schema: KVCacheSchema, model_id: str, **options: Any) -> KVStore:
    """Open a KV store for the KV of one model; the caller closes it.

    Raises:
        BackendUnavailable: unknown, not ready on this machine, or its code failed.
        ConfigError: the store has no such option.
    """
    from sage_infer.contracts import KVStore

    store: KVStore = _open("store", name, KVStore, options, schema=schema, model_id=model_id)
    return store


def open_transport(name: str, *, settings: TransportSettings | None = None, **options: Any) -> Transport:
    """Open a transport; the caller closes it. ``settings`` default to those of the configuration.

    Raises:
        BackendUnavailable: unknown, not ready on this machine, or its code failed.
        ConfigError: the transport has no such option, or the configuration is invalid.
    """
    from sage_infer.contracts import Transport

    if settings is None:
        from sage_infer.config import load_config

        settings = load_config().config.transport.settings()
    transport: Transport = _open("transport", name, Transport, options, settings=settings)
    return transport


def open_endpoint(transport: str, /, **options: Any) -> KVEndpoint:
    """Open an endpoint of this process, for KV that the transport of this name moves; the caller closes it.

    May block for seconds, as a transport's libraries may have to be loaded.

    Raises:
        BackendUnavailable: the transport is unknown or not ready on this machine, or its code failed.
        UnsupportedFeature: the transport has no endpoint.
        ConfigError: the endpoint has no such option.
    """
    from sage_infer.contracts import KVEndpoint

    info = find_plugin(transport, "transport")
    path = require_ready(info).endpoint
    if path is None:
        raise UnsupportedFeature(f"{info.title} has no endpoint; it moves KV between existing locations only")
    made: KVEndpoint = _made(info, path, KVEndpoint, options)
    return made


def open_executor(name: str, **options: Any) -> Executor:
    """Open an executor; the caller closes it.

    Raises:
        BackendUnavailable: unknown, not ready on this machine, or its code failed.
        ConfigError: the executor has no such option.
    """
    from sage_infer.contracts import Executor

    executor: Executor = _open("executor", name, Executor, options)
    return executor


def open_detector(name: str) -> HardwareDetector:
    """Create a hardware detector.

    Raises:
        BackendUnavailable: unknown, not ready on this machine, or its code failed.
    """
    from sage_infer.contracts import HardwareDetector

    detector: HardwareDetector = _open("detector", name, HardwareDetector, {})
    return detector


def kv_codec(format_id: str) -> KVFormatCodec:
    """Return the codec of a private KV format (``KVCacheSchema.format_id``).

    Raises:
        BackendUnavailable: no installed codec supports the format, it is not ready, or its code failed.
        ConfigError: several codecs support the format; the message names their wheels.
    """
    from sage_infer.contracts import KVFormatCodec

    rows = [row for row in list_plugins("format") if row.kind == "format" and row.state != "disabled"]
    found = [row for row in rows if any(fnmatchcase(format_id, pattern) for pattern in row.spec.format_ids)]
    if not found:
        known = sorted({pattern for row in rows for pattern in row.spec.format_ids})
        raise BackendUnavailable(
            f"no KV format codec reads {format_id!r}; installed codecs read: {', '.join(known) or 'nothing'}"
        )
    if len({row.name for row in found}) > 1:
        names = " and ".join(row.title for row in found)
        raise ConfigError(f"{format_id!r} is read by {names}; disable all but one with SAGE_INFER_DISABLE")
    codec: KVFormatCodec = _open("format", found[0].name, KVFormatCodec, {})
    return codec


def _open(kind: KindName, name: str, contract: type[Any], options: dict[str, Any], **fixed: Any) -> Any:
    info = find_plugin(name, kind)
    return _made(info, require_ready(info).factory, contract, options, **fixed)


def _made(info: PluginInfo, path: str, contract: type[Any], options: dict[str, Any], **fixed: Any) -> Any:
    """Call the factory at a path of an item's spec, and check what it returns."""
    made = call_factory(path, what=info.title, options=options, **fixed)
    check_shape(made, contract, f"{info.title}: {path}")
    return made


def check_shape(made: object, contract: Callable[..., Any], what: str) -> None:
    """Reject an object that lacks members of its contract.

    Raises:
        BackendUnavailable: members are missing; the message names them.
    """
    wanted = sorted(getattr(contract, "__protocol_attrs__", ())) or [
        name for name in dir(contract) if not name.startswith("_")
    ]
    lacking = [member for member in wanted if not hasattr(made, member)]
    if lacking:
        name = getattr(contract, "__name__", "contract")
        raise BackendUnavailable(
            f"{what} returned a {type(made).__name__}, which is not a {name}: it lacks {', '.join(lacking)}"
        )

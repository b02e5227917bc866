"""Kits of installed things other than backends: how each is opened by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sage_infer.discovery import KindName
from sage_infer.errors import InvalidRequest, UnsupportedFeature
from sage_infer.schemas import KVLocation

__all__ = ["part_kits"]

Kits = list[tuple[str, type, dict[str, Any]]]


def part_kits(kind: KindName, name: str, options: Mapping[str, Any]) -> Kits:
    """Class name, kit and attributes of each test class for a thing; empty for kinds that ``PluginContract`` covers.

    Raises:
        InvalidRequest: options for a kind that takes none.
        UnsupportedFeature: the kit needs a transport's places, and knows those of files only.
    """
    makers: Mapping[str, Callable[[str, Mapping[str, Any]], Kits]] = {
        "detector": _detector, "store": _store, "transport": _transport, "executor": _executor, "format": _format,
    }  # fmt: skip
    if options and kind not in ("store", "transport", "executor"):
        raise InvalidRequest(f"a {kind} takes no options; leave --option out")
    return makers[kind](name, options) if kind in makers else []


def _detector(name: str, options: Mapping[str, Any]) -> Kits:
    from sage_infer.plugins import open_detector

    from sage_infer_testing.kits.hardware import HardwareDetectorContract

    return [("TestDetector", HardwareDetectorContract, {"make_detector": lambda self: open_detector(name)})]


def _store(name: str, options: Mapping[str, Any]) -> Kits:
    from sage_infer.plugins import open_store

    from sage_infer_testing.kits.kv_store import KVStoreContract

    def opened(self: Any, capacity_blocks: int) -> Any:
        return open_store(
            name, schema=self.kv_schema, model_id=self.model_id, capacity_blocks=capacity_blocks, **options
        )

    return [("TestStore", KVStoreContract, {"open_store": opened})]


def _transport(name: str, options: Mapping[str, Any]) -> Kits:
    from sage_infer.plugins import find_plugin, open_transport

    from sage_infer_testing.kits.transport import TransportContract

    if "file" not in find_plugin(name, "transport").spec.schemes:
        raise UnsupportedFeature(
            f"transport {name!r} does not reach file: locations, the only ones that this command can make; "
            "subclass sage_infer_testing.TransportContract in a test of your own"
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
    return [("TestTransport", TransportContract, fixed)]


def _executor(name: str, options: Mapping[str, Any]) -> Kits:
    return []


def _format(name: str, options: Mapping[str, Any]) -> Kits:
    return []

"""A machine described by recorded output of a vendor's tool, or by a saved profile."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from attrs import evolve
from sage_infer.discovery import Entry, Registry
from sage_infer.errors import InvalidRequest
from sage_infer.factories import call_path
from sage_infer.schemas import HardwareProfile
from sage_infer.schemas.codec import from_dict
from sage_infer.specs import DetectorSpec

from sage_infer_hal.machine import find_detectors
from sage_infer_hal.merge import merge_profiles

__all__ = ["read_recordings"]

_LARGEST = 64 << 20  # bytes; the longest output of a tool known has one MB


def read_recordings(
    paths: Iterable[Path], *, vendor: str | None = None, registry: Registry | None = None
) -> HardwareProfile:
    """The machine that the recordings describe together. ``vendor`` is a detector's name or one of its hardware names.

    A file that holds a ``HardwareProfile`` as JSON is read as such and needs no vendor.

    Raises:
        InvalidRequest: a file cannot be read, the vendor is unknown or missing, or the files are of different machines.
        ToolOutputError: the vendor's reader does not understand one of the files.
        SchemaError: a profile is not valid.
    """
    paths = list(paths)
    profiles = []
    for path in paths:
        text = _read(path)
        profile = _profile(text)
        if profile is None:
            reader = _reader(vendor, path, registry)
            what = f"detector {reader.name!r} of {reader.plugin.distribution}"
            profile = call_path(reader.spec.read_recording or "", text, what=what, name=path.name)
            if not isinstance(profile, HardwareProfile):
                raise InvalidRequest(
                    f"detector {reader.name!r} returned a {type(profile).__name__} for {path}"
                )
        if len(paths) > 1:  # a note may be about data that another recording has
            profile = evolve(profile, notes=[f"{path.name}: {note}" for note in profile.notes])
        profiles.append(profile)
    return merge_profiles(profiles)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:  # may be a pipe, such as that of a tool, or a device that never ends
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror or error}") from None
    if len(data) > _LARGEST:
        raise InvalidRequest(
            f"{path} has more than {_LARGEST >> 20} MB; pass the part that the vendor's tool has printed"
        )
    # Windows shells write UTF-16 when output is redirected; the reader judges any other bytes.
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return data.decode(encoding, errors="replace")


def _profile(text: str) -> HardwareProfile | None:
    """The profile in a JSON document; None for any other text, such as a vendor's JSON."""
    try:
        data = json.loads(text)
    except ValueError:
        return None
    if not isinstance(data, Mapping) or "schema_version" not in data or "accelerators" not in data:
        return None
    return from_dict(data, HardwareProfile)


def _reader(vendor: str | None, path: Path, registry: Registry | None) -> Entry[DetectorSpec]:
    readers = [e for e in find_detectors(registry) if e.fault is None and e.spec.read_recording is not None]
    known = (
        ", ".join(sorted({name for e in readers for name in (e.name, *e.spec.hardware)}))
        or "none is installed"
    )
    if vendor is None:
        raise InvalidRequest(
            f"{path} is not a profile in JSON; name the vendor of the tool with --vendor ({known})"
        )
    found = [e for e in readers if e.name == vendor] or [e for e in readers if vendor in e.spec.hardware]
    if not found:
        raise InvalidRequest(f"no installed detector reads recordings of {vendor!r}; available: {known}")
    if len(found) > 1:
        names = ", ".join(e.name for e in found)
        raise InvalidRequest(f"several detectors read recordings of {vendor!r}; choose one: {names}")
    return found[0]

"""Facts about an installed distribution, for ``show`` and ``doctor``; too slow for the hot path."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import metadata
from typing import TypedDict

__all__ = ["DistributionInfo", "describe_distribution", "with_required"]

_NAME = re.compile(r"[\w.-]+")


class DistributionInfo(TypedDict):
    """``origin`` is the URL or path that it was installed from, empty for a package index."""

    name: str
    version: str
    location: str
    origin: str
    editable: bool


def with_required(names: Iterable[str]) -> list[str]:
    """The distributions and the wheels of this project that they require, sorted; extras are not followed."""
    found: set[str] = set()
    rest = list(names)
    while rest:
        name = rest.pop()
        if name in found:
            continue
        found.add(name)
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        needed = (_NAME.match(line) for line in lines if "extra ==" not in line)
        rest += [one[0] for one in needed if one is not None and one[0].startswith("sage-")]
    return sorted(found)


def describe_distribution(name: str) -> DistributionInfo:
    """Name, version, location and origin of a distribution; the version is "not installed" if it is missing."""
    # The backport, because the standard library has no `origin` before Python 3.13.
    import importlib_metadata

    try:
        dist = importlib_metadata.distribution(name)
    except importlib_metadata.PackageNotFoundError:
        return {"name": name, "version": "not installed", "location": "", "origin": "", "editable": False}
    origin = dist.origin
    return {
        "name": dist.metadata["Name"],
        "version": dist.version,
        "location": str(dist.locate_file("")),
        "origin": getattr(origin, "url", ""),
        "editable": bool(getattr(getattr(origin, "dir_info", None), "editable", False)),
    }

"""Facts about an installed distribution, for ``show`` and ``doctor``; too slow for the hot path."""

from __future__ import annotations

from typing import TypedDict

__all__ = ["DistributionInfo", "describe_distribution"]


class DistributionInfo(TypedDict):
    """``origin`` is the URL or path that it was installed from, empty for a package index."""

    name: str
    version: str
    location: str
    origin: str
    editable: bool


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

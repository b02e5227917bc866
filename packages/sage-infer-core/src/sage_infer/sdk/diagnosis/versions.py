"""Checks of releases: which parts of a stack go together."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from sage_infer.sdk.diagnosis.findings import Check, Finding, Part
from sage_infer.sdk.diagnosis.machine import Machine

__all__ = ["as_version", "one_platform", "releases", "same_release"]

_PLATFORMS = "vllm.platform_plugins"


def as_version(text: str) -> Version | None:
    """A version as vendors write them: ``8.3.RC2``, ``25.0.rc1.1``; of others, the numbers in front."""
    try:
        return Version(text)
    except InvalidVersion:
        numbers = re.match(r"\d+(?:\.\d+)*", text)
        return Version(numbers[0]) if numbers else None


def releases(
    parts: Collection[Part],
    *,
    anchor: str,
    rows: Sequence[Mapping[str, str]],
    sources: Collection[str],
    fixes: Mapping[str, str] | None = None,
) -> Check:
    """A check of parts against the vendor's table of releases.

    Args:
        parts: the vendor's parts.
        anchor: the part that selects a row.
        rows: version specifiers by name of a part, one row per release of the anchor.
        sources: as in ``Check``.
        fixes: how to install a part, if not by pip; ``{wanted}`` stands for its specifier.

    A machine without the anchor, or with a release of it that no row describes, is not checked; nor are parts that are
    missing or state no version.
    """
    by_name = {part.name: part for part in parts}

    def find(machine: Machine) -> Iterator[Finding]:
        found = by_name[anchor].version(machine)
        row = next((row for row in rows if found and _is_in(found, row[anchor])), None)
        if row is None:
            return
        pip = [
            shlex.quote(f"{by_name[name].distribution}{wanted}")
            for name, wanted in row.items()
            if by_name[name].distribution and name != anchor
        ]
        for name, wanted in row.items():
            installed = by_name[name].version(machine)
            if name == anchor or not installed or _is_in(installed, wanted):
                continue
            default = (
                f"pip install {' '.join(pip)}" if by_name[name].distribution else f"install {name} {wanted}"
            )
            fix = fixes[name].format(wanted=wanted) if fixes and name in fixes else default
            yield Finding(
                what=f"{name} {installed} does not go with {anchor} {found}, which needs {wanted}", fix=fix
            )

    return Check(name="releases", sources=tuple(sources), find=find)


def _is_in(version: str, specifier: str) -> bool:
    """Whether a version matches; one that cannot be read matches everything."""
    parsed = as_version(version)
    return parsed is None or SpecifierSet(specifier).contains(parsed, prereleases=True)


def same_release(one: str, other: str, *, sources: Collection[str]) -> Check:
    """A check that two distributions have the same release, such as torch and its extension for a device."""

    def find(machine: Machine) -> Iterator[Finding]:
        versions = machine.version(one), machine.version(other)
        parsed = as_version(versions[0]), as_version(versions[1])
        if parsed[0] is None or parsed[1] is None or parsed[0].release == parsed[1].release:
            return
        yield Finding(
            what=f"{one} {versions[0]} and {other} {versions[1]} are of different releases; importing {other} fails",
            fix=f"pip install '{one}=={parsed[1].base_version}'",
        )

    return Check(name=f"{one} and {other}", sources=tuple(sources), find=find)


def one_platform(plugin: str, *, sources: Collection[str]) -> Check:
    """A check that vLLM loads the vendor's platform plug-in, and no other one.

    Args:
        plugin: its name in ``vllm.platform_plugins``; empty for a platform that is built into the vendor's vLLM.
        sources: as in ``Check``.
    """

    def find(machine: Machine) -> Iterator[Finding]:
        installed = machine.entry_points(_PLATFORMS)
        listed = machine.environ.get("VLLM_PLUGINS")
        allowed = None if listed is None else {name.strip() for name in listed.split(",")}
        others = {n: d for n, d in installed.items() if n != plugin and (allowed is None or n in allowed)}
        if plugin in installed and allowed is not None and plugin not in allowed:
            names = ",".join([*filter(None, sorted(allowed)), plugin])
            yield Finding(
                what=f"VLLM_PLUGINS={listed} leaves out {plugin}, so vLLM runs on no device or on the CPU",
                fix=f"export VLLM_PLUGINS={names}",
            )
        if others:
            named = ", ".join(f"{name} ({dist})" for name, dist in sorted(others.items()))
            yield Finding(
                what=f"vLLM can use one platform plug-in, and {named} is installed as well",
                fix=f"pip uninstall {' '.join(sorted(set(others.values())))}",
            )

    return Check(name="vLLM platform", sources=tuple(sources), find=find)

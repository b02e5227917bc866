"""Whether a backend can be opened on this machine, and what would make it so."""

from __future__ import annotations

import glob
import importlib.metadata
import os
import shlex
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

from attrs import frozen

from sage_infer.discovery.registry import Entry, Plugin, Registry
from sage_infer.specs import BackendSpec, Need

__all__ = ["BackendInfo", "Missing", "State", "backend_info", "missing_requirements", "unmet_needs"]

_NOT_INSTALLED = "not installed"

State = Literal["ready", "missing-requirement", "no-hardware", "incompatible", "broken"]


@frozen(kw_only=True)
class Missing:
    """One thing that keeps a backend from being ready: what, what was found instead, and what brings it."""

    what: str
    found: str
    install: str

    def __str__(self) -> str:
        return f"{self.what}: {self.found}; {self.install}"


@frozen(kw_only=True)
class BackendInfo:
    """A row of ``sage infer backend list``.

    ``spec`` is None where the plug-in could not even be imported; ``name`` is then its entry point's name.
    ``reason`` and ``fix`` (a shell command) are empty for a ready backend; ``detail`` is a traceback, if any.
    ``missing`` is what a backend with ``needs`` lacks here, requirements and hardware included.
    """

    name: str
    state: State
    plugin: Plugin
    spec: BackendSpec | None = None
    reason: str = ""
    fix: str = ""
    detail: str = ""
    missing: tuple[Missing, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        spec = self.spec
        return {
            "name": self.name,
            "state": self.state,
            "reason": self.reason,
            "fix": self.fix,
            "missing": [{"what": m.what, "found": m.found, "install": m.install} for m in self.missing],
            "serves": sorted(spec.serves) if spec else [],
            "hardware": sorted(spec.hardware) if spec else [],
            "summary": spec.summary if spec else "",
            "plugin": self.plugin.name,
            "module": self.plugin.location,
            "distribution": self.plugin.distribution,
        }


def backend_info(registry: Registry) -> list[BackendInfo]:
    """Every backend and every plug-in that failed, by name. Imports no engine and touches no device."""
    rows = [_row(entry, registry) for entry in registry.backends()]
    rows += [
        BackendInfo(
            name=plugin.name,
            state=plugin.fault.kind,
            plugin=plugin,
            reason=plugin.fault.reason,
            fix=plugin.fault.fix,
            detail=plugin.fault.detail,
        )
        for plugin in registry.plugins
        if plugin.fault is not None
    ]
    return sorted(rows, key=lambda row: row.name)


def _row(entry: Entry[BackendSpec], registry: Registry) -> BackendInfo:
    spec, plugin = entry.spec, entry.plugin
    if entry.fault is not None:
        fault = entry.fault
        return BackendInfo(
            name=spec.name, state=fault.kind, plugin=plugin, spec=spec, reason=fault.reason, fix=fault.fix
        )
    if spec.needs:
        return _row_with_needs(spec, plugin, registry)
    missing = missing_requirements(spec.requires)
    if missing:
        fix = _install_command(spec, registry) or "pip install " + " ".join(
            shlex.quote(need.partition(" | ")[0]) for need, _ in missing
        )
        reason = "needs " + ", ".join(f"{need} ({found})" for need, found in missing)
        return BackendInfo(
            name=spec.name, state="missing-requirement", plugin=plugin, spec=spec, reason=reason, fix=fix
        )
    no_hardware = _missing_hardware(spec, registry)
    if no_hardware:
        return BackendInfo(name=spec.name, state="no-hardware", plugin=plugin, spec=spec, reason=no_hardware)
    return BackendInfo(name=spec.name, state="ready", plugin=plugin, spec=spec)


def _row_with_needs(spec: BackendSpec, plugin: Plugin, registry: Registry) -> BackendInfo:
    """A backend that needs more than distributions is told everything at once: some of it takes a while to get."""
    command = _install_command(spec, registry)
    missing = [
        Missing(
            what=name, found=found, install=command or f"pip install {shlex.quote(name.partition(' | ')[0])}"
        )
        for name, found in missing_requirements(spec.requires)
    ]
    missing += unmet_needs(spec.needs)
    state: State = "missing-requirement" if missing else "ready"
    no_hardware = _missing_hardware(spec, registry)
    if no_hardware:
        state = state if missing else "no-hardware"
        names = " or ".join(sorted(spec.hardware))
        missing.append(
            Missing(what="hardware", found=no_hardware, install=f"run it on a machine with {names}")
        )
    reason = f"lacks {', '.join(m.what for m in missing)}" if missing else ""
    return BackendInfo(
        name=spec.name, state=state, plugin=plugin, spec=spec, reason=reason, missing=tuple(missing)
    )


def missing_requirements(requires: Mapping[str, str]) -> list[tuple[str, str]]:
    """Requirements that are not met, each with what was found instead."""
    missing = []
    for names, specifier in requires.items():
        found = [_found(name.strip(), specifier) for name in names.split("|")]
        if "" not in found:
            wanted = " | ".join(name.strip() + specifier for name in names.split("|"))
            missing.append((wanted, next((text for text in found if text != _NOT_INSTALLED), _NOT_INSTALLED)))
    return missing


def unmet_needs(needs: Iterable[Need]) -> list[Missing]:
    """Needs that this machine does not meet. Looks at files, variables and metadata; imports and runs nothing."""
    found = [(need, _wrong(need)) for need in needs]
    return [Missing(what=need.what, found=wrong, install=need.install) for need, wrong in found if wrong]


def _wrong(need: Need) -> str:
    """What was found instead; empty where the need is met."""
    return _no_path(need) or _no_distribution(need) or _no_entry_point(need)


def _no_path(need: Need) -> str:
    if not (need.files or need.variables):
        return ""
    if any(next(glob.iglob(pattern), None) is not None for pattern in need.files):
        return ""
    if any(os.path.exists(os.environ.get(variable) or "") for variable in need.variables):
        return ""
    places = [*need.files, *(f"${variable}" for variable in need.variables)]
    return f"none of {', '.join(places)} is there" if len(places) > 1 else f"{places[0]} is not there"


def _no_distribution(need: Need) -> str:
    return ", ".join(f"{wanted} {found}" for wanted, found in missing_requirements(need.distributions))


def _no_entry_point(need: Need) -> str:
    if need.entry_point is None:
        return ""
    group, _, name = need.entry_point.partition(":")
    if importlib.metadata.entry_points(group=group, name=name):
        return ""
    return f"no distribution has the entry point {name} of {group}"


def _found(name: str, specifier: str) -> str:
    """What is wrong with a distribution; empty where it is installed and its version fits."""
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return _NOT_INSTALLED
    if specifier:
        from packaging.specifiers import SpecifierSet

        if not SpecifierSet(specifier).contains(installed, prereleases=True):
            return f"{installed} is installed"
    return ""


def _install_command(spec: BackendSpec, registry: Registry) -> str:
    """The plug-in's own command for this machine; empty where it has none."""
    for hardware, command in spec.install_for.items():
        if hardware == "cpu" or _any_exists(_patterns(spec, {hardware}, registry)):
            return command
    return spec.install or ""


def _missing_hardware(spec: BackendSpec, registry: Registry) -> str:
    """Why none of the backend's hardware is here; empty where some is."""
    if "cpu" in spec.hardware:
        return ""
    patterns = _patterns(spec, spec.hardware, registry)
    names = " or ".join(sorted(spec.hardware))
    if not patterns:
        return f"needs {names}, and no installed detector knows how to look for it"
    if _any_exists(patterns):
        return ""
    return f"needs {names}; looked for {', '.join(patterns)} and found none"


def _patterns(spec: BackendSpec, hardware: Collection[str], registry: Registry) -> list[str]:
    """Where to look for the hardware: as the backend says, or else as the installed detectors do."""
    return list(spec.device_nodes) or [
        pattern
        for detector in registry.detectors()
        if detector.fault is None and not detector.spec.hardware.isdisjoint(hardware)
        for pattern in detector.spec.device_nodes
    ]


def _any_exists(patterns: Iterable[str]) -> bool:
    return any(next(glob.iglob(pattern), None) is not None for pattern in patterns)

"""Whether a backend can be opened on this machine, and what would make it so."""

from __future__ import annotations

import glob
import importlib.metadata
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from attrs import frozen

from sage_infer.discovery.registry import Entry, Plugin, Registry
from sage_infer.specs import BackendSpec

__all__ = ["BackendInfo", "State", "backend_info", "missing_requirements"]

State = Literal["ready", "missing-requirement", "no-hardware", "incompatible", "broken"]


@frozen(kw_only=True)
class BackendInfo:
    """A row of ``sage infer backend list``.

    ``spec`` is None where the plug-in could not even be imported; ``name`` is then its entry point's name.
    ``reason`` and ``fix`` (a shell command) are empty for a ready backend; ``detail`` is a traceback, if any.
    """

    name: str
    state: State
    plugin: Plugin
    spec: BackendSpec | None = None
    reason: str = ""
    fix: str = ""
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        spec = self.spec
        return {
            "name": self.name,
            "state": self.state,
            "reason": self.reason,
            "fix": self.fix,
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
    missing = missing_requirements(spec.requires)
    if missing:
        fix = spec.install or "pip install " + " ".join(shlex.quote(need) for need, _ in missing)
        reason = "needs " + ", ".join(f"{need} ({found})" for need, found in missing)
        return BackendInfo(
            name=spec.name, state="missing-requirement", plugin=plugin, spec=spec, reason=reason, fix=fix
        )
    no_hardware = _missing_hardware(spec, registry)
    if no_hardware:
        return BackendInfo(name=spec.name, state="no-hardware", plugin=plugin, spec=spec, reason=no_hardware)
    return BackendInfo(name=spec.name, state="ready", plugin=plugin, spec=spec)


def missing_requirements(requires: Mapping[str, str]) -> list[tuple[str, str]]:
    """Requirements that are not met, each with what was found instead."""
    missing = []
    for name, specifier in requires.items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append((name + specifier, "not installed"))
            continue
        if specifier:
            from packaging.specifiers import SpecifierSet

            if not SpecifierSet(specifier).contains(installed, prereleases=True):
                missing.append((name + specifier, f"{installed} is installed"))
    return missing


def _missing_hardware(spec: BackendSpec, registry: Registry) -> str:
    """Why none of the backend's hardware is here; empty where some is."""
    if "cpu" in spec.hardware:
        return ""
    patterns = list(spec.device_nodes) or [
        pattern
        for detector in registry.detectors()
        if detector.fault is None and detector.spec.hardware & spec.hardware
        for pattern in detector.spec.device_nodes
    ]
    names = " or ".join(sorted(spec.hardware))
    if not patterns:
        return f"needs {names}, and no installed detector knows how to look for it"
    if _any_exists(patterns):
        return ""
    return f"needs {names}; looked for {', '.join(patterns)} and found none"


def _any_exists(patterns: Iterable[str]) -> bool:
    return any(next(glob.iglob(pattern), None) is not None for pattern in patterns)

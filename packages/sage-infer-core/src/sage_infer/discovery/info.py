"""One row per item of the plug-ins: whether it can be used on this machine, and the fix if not."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any, Literal

from attrs import frozen

from sage_infer.discovery.faults import Fault
from sage_infer.discovery.kinds import KINDS, KindName
from sage_infer.discovery.paths import wrong_paths
from sage_infer.discovery.readiness import (
    Missing,
    install_command,
    missing_hardware,
    missing_requirements,
    unmet_needs,
)
from sage_infer.discovery.registry import Entry, Plugin, Registry
from sage_infer.specs import BackendSpec, DetectorSpec

__all__ = ["BackendInfo", "PluginInfo", "State", "backend_info", "plugin_info"]

State = Literal["ready", "missing-requirement", "no-hardware", "incompatible", "broken", "disabled"]


@frozen(kw_only=True)
class PluginInfo:
    """A row of ``sage infer plugin list``.

    Attributes:
        kind: kind of item; ``plugin`` for a plug-in module that failed as a whole or in a hook.
        name: the registered name; for a failed plug-in, that of its entry point.
        reason: empty for ready items.
        fix: a shell command, if there is one.
        detail: a traceback, if there is one.
        missing: missing requirements of a backend with ``needs``, including hardware.
        spec: None for a failed plug-in.
    """

    kind: KindName | Literal["plugin"]
    name: str
    state: State
    plugin: Plugin
    spec: Any = None
    reason: str = ""
    fix: str = ""
    detail: str = ""
    missing: tuple[Missing, ...] = ()

    @property
    def title(self) -> str:
        """The item and its wheel, for messages: "backend 'vllm' of sage-infer-vllm"."""
        noun = "plug-in" if self.kind == "plugin" else KINDS[self.kind].noun
        return f"{noun} {self.name!r} of {self.plugin.distribution}"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "kind": self.kind,
            "name": self.name,
            "state": self.state,
            "reason": self.reason,
            "fix": self.fix,
            "missing": [{"what": m.what, "found": m.found, "install": m.install} for m in self.missing],
            "summary": getattr(self.spec, "summary", ""),
            "plugin": self.plugin.name,
            "module": self.plugin.location,
            "distribution": self.plugin.distribution,
        }


class BackendInfo(PluginInfo):  # no attrs class of its own: making one would slow down every listing
    """A row of ``sage infer backend list``."""

    __slots__ = ()
    spec: BackendSpec | None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        spec = self.spec
        return {
            **super().as_dict(),
            "serves": sorted(spec.serves) if spec else [],
            "hardware": sorted(spec.hardware) if spec else [],
        }


def backend_info(registry: Registry) -> list[BackendInfo]:
    """Every backend, and every plug-in that failed to list its backends, by name. Imports no engine and touches no
    device.
    """
    rows = [BackendInfo(kind="backend", **_state(entry, registry)) for entry in registry.backends()]
    faults = _plugin_faults(registry, ["backend"])
    rows += [BackendInfo(kind=kind, **_faulty(plugin, fault)) for kind, plugin, fault in faults]
    return sorted(rows, key=lambda row: row.name)


def plugin_info(registry: Registry, kinds: Iterable[KindName] = tuple(KINDS)) -> list[PluginInfo]:
    """All items of these kinds, by kind and name, including disabled ones; plug-ins that
    failed come first. Imports no engine and touches no device.
    """
    kinds = list(kinds)
    rows: list[PluginInfo] = []
    for kind in kinds:
        make = BackendInfo if kind == "backend" else PluginInfo
        entries = [*registry.entries(kind), *registry.switched_off(kind)]
        found = [make(kind=kind, **_state(entry, registry)) for entry in entries]
        rows += sorted(found, key=lambda row: row.name)
    broken = [
        PluginInfo(kind=kind, **_faulty(plugin, fault))
        for kind, plugin, fault in _plugin_faults(registry, kinds)
    ]
    off = [
        PluginInfo(
            kind="plugin", name=plugin.name, state="disabled", plugin=plugin,
            reason="disabled by SAGE_INFER_DISABLE or plugins.disabled; not imported",
        )
        for plugin in registry.plugins
        if plugin.disabled
    ]  # fmt: skip
    return [*sorted([*broken, *off], key=lambda row: row.name), *rows]


def _plugin_faults(
    registry: Registry, kinds: Iterable[KindName]
) -> list[tuple[KindName | Literal["plugin"], Plugin, Fault]]:
    """Faults of whole plug-ins, of unknown hooks, and of the hooks of these kinds."""
    hooks: dict[str, KindName] = {kind.hook: name for name, kind in KINDS.items()}
    wanted = set(kinds)
    found: list[tuple[KindName | Literal["plugin"], Plugin, Fault]] = []
    for plugin in registry.plugins:
        if plugin.fault is not None:
            found.append(("plugin", plugin, plugin.fault))
        for hook, fault in plugin.hook_faults.items():
            if hook not in hooks or hooks[hook] in wanted:
                found.append(("plugin", plugin, fault))
    return found


def _faulty(plugin: Plugin, fault: Fault) -> dict[str, Any]:
    return {
        "name": plugin.name, "state": fault.kind, "plugin": plugin, "reason": fault.reason, "fix": fault.fix,
        "detail": fault.detail,
    }  # fmt: skip


def _state(entry: Entry[Any], registry: Registry) -> dict[str, Any]:
    """The fields of an entry's row, its kind excepted."""
    spec = entry.spec
    row: dict[str, Any] = {"name": spec.name, "plugin": entry.plugin, "spec": spec, "state": "ready"}
    if entry.disabled:
        return {
            **row,
            "state": "disabled",
            "reason": "disabled by SAGE_INFER_DISABLE or plugins.disabled",
        }
    if entry.fault is not None:
        fault = entry.fault
        return {**row, "state": fault.kind, "reason": fault.reason, "fix": fault.fix}
    row = {**row, **_requirements(spec, registry)}
    if row["state"] != "missing-requirement":  # without those, the modules may be missing, too
        wrong = wrong_paths(spec)
        if wrong:
            return {**row, "state": "broken", "reason": "; ".join(wrong), "missing": ()}
    return row


def _requirements(spec: Any, registry: Registry) -> dict[str, Any]:
    """State, reason and fix by what is installed and by the hardware."""
    if getattr(spec, "needs", ()):
        return _with_needs(spec, registry)
    missing = missing_requirements(getattr(spec, "requires", {}))
    if missing:
        command = install_command(spec, registry) if isinstance(spec, BackendSpec) else spec.install
        fix = command or "pip install " + " ".join(
            shlex.quote(need.partition(" | ")[0]) for need, _ in missing
        )
        reason = "needs " + ", ".join(f"{need} ({found})" for need, found in missing)
        return {"state": "missing-requirement", "reason": reason, "fix": fix}
    if isinstance(spec, BackendSpec) or (isinstance(spec, DetectorSpec) and spec.device_nodes):
        no_hardware = missing_hardware(spec, registry)
        if no_hardware:
            return {"state": "no-hardware", "reason": no_hardware}
    return {}


def _with_needs(spec: BackendSpec, registry: Registry) -> dict[str, Any]:
    """For a backend with ``needs``, list everything that is missing: some of it takes a while to obtain."""
    command = install_command(spec, registry)
    missing = [
        Missing(
            what=name, found=found, install=command or f"pip install {shlex.quote(name.partition(' | ')[0])}"
        )
        for name, found in missing_requirements(spec.requires)
    ]
    missing += unmet_needs(spec.needs)
    state: State = "missing-requirement" if missing else "ready"
    no_hardware = missing_hardware(spec, registry)
    if no_hardware:
        state = state if missing else "no-hardware"
        names = " or ".join(sorted(spec.hardware))
        missing.append(
            Missing(what="hardware", found=no_hardware, install=f"run it on a machine with {names}")
        )
    reason = f"lacks {', '.join(m.what for m in missing)}" if missing else ""
    return {"state": state, "reason": reason, "missing": tuple(missing)}

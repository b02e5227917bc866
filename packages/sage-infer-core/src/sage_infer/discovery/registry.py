"""Reads entry points and calls hooks, each plug-in in isolation so that none affects another."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache, cached_property
from types import ModuleType
from typing import Any, Generic

import pluggy
from attrs import define, evolve, field, frozen

from sage_infer import hookspecs
from sage_infer.checks import as_tuple
from sage_infer.command_tree import COMMANDS, GROUPS
from sage_infer.config_file.search import CORE_SECTIONS
from sage_infer.discovery.faults import Fault, contract_mismatch, fault_of, misnamed_hooks
from sage_infer.discovery.kinds import KINDS, KindName
from sage_infer.factories import is_plugins_fault
from sage_infer.specs import (
    BackendSpec,
    CommandSpec,
    ConfigSpec,
    DetectorSpec,
    ExecutorSpec,
    KVFormatSpec,
    KVStoreSpec,
    ModelSpec,
    SpecT,
    TransportSpec,
)

__all__ = ["GROUP", "Entry", "Fault", "Plugin", "Registry", "discover", "model_specs"]

GROUP = "sage_infer.backends"

BUILT_IN: Mapping[str, Collection[str]] = {
    "sage_infer_commands": {*COMMANDS, *GROUPS},
    "sage_infer_config": CORE_SECTIONS,
}
"""Names of the core itself, by hook."""


@define(eq=False)
class Plugin:
    """One entry point.

    Attributes:
        fault: set if the module cannot be used at all.
        hook_faults: faults of single hooks, by the function's name; the others work.
    """

    entry_point: importlib.metadata.EntryPoint
    module: ModuleType | None = None
    fault: Fault | None = None
    hook_faults: dict[str, Fault] = field(factory=dict)
    disabled: bool = False

    @property
    def name(self) -> str:
        return self.entry_point.name

    @property
    def location(self) -> str:
        """The module named by the entry point."""
        return self.entry_point.value

    @property
    def distribution(self) -> str:
        """Its distribution. Reads metadata, so it is not used for every row of a list."""
        dist = self.entry_point.dist
        return dist.name if dist is not None else "unknown distribution"

    def __str__(self) -> str:
        return f"{self.distribution} ({self.location})"


@frozen
class Entry(Generic[SpecT]):
    """One name registered by plug-ins. With a fault, or if disabled, ``spec`` is only for display."""

    name: str
    spec: SpecT
    plugin: Plugin
    fault: Fault | None = None
    disabled: bool = False


@define(eq=False, slots=False)
class Registry:
    """The plug-ins of one process. Each hook is called once, when its kind of spec is first needed."""

    entry_points: tuple[importlib.metadata.EntryPoint, ...] = field(converter=as_tuple)
    disabled: frozenset[str] = frozenset()
    _catalogues: dict[str, list[Entry[Any]]] = field(factory=dict, init=False)

    @cached_property
    def plugins(self) -> list[Plugin]:
        """Every entry point of the group, imported; including those with a fault or disabled."""
        plugins = [Plugin(entry_point) for entry_point in self.entry_points]
        for plugin in plugins:
            plugin.disabled = bool(self.disabled) and bool({plugin.name, plugin.distribution} & self.disabled)
            if not plugin.disabled:
                self._load(plugin)
        return plugins

    @cached_property
    def _manager(self) -> pluggy.PluginManager:
        manager = pluggy.PluginManager(hookspecs.PROJECT)
        manager.add_hookspecs(hookspecs)
        return manager

    @cached_property
    def _by_module(self) -> dict[ModuleType, Plugin]:
        return {}

    def _load(self, plugin: Plugin) -> None:
        try:
            module = plugin.entry_point.load()
        except BaseException as error:  # also SystemExit: a module that exits must not end the process
            if not is_plugins_fault(error):
                raise
            plugin.fault = fault_of(f"import of {plugin.location} failed", error)
            return
        if not isinstance(module, ModuleType):
            kind = type(module).__name__
            reason = f"entry point {plugin.name!r} must name a module, but {plugin.location} is a {kind}"
            plugin.fault = Fault("broken", reason, fix=f"pip install --upgrade {plugin.distribution}")
            return
        mismatch = contract_mismatch(module, plugin.location, plugin.distribution)
        if mismatch is not None:
            plugin.fault = mismatch
            return
        if module in self._by_module:
            return  # a second entry point for one module adds nothing
        try:
            # A unique name: two distributions may use the same entry point name.
            self._manager.register(module, name=f"{plugin.name}={module.__name__}")
        except (pluggy.PluginValidationError, ValueError) as error:
            plugin.fault = fault_of(f"{plugin.location} does not match its hooks", error)
            return
        plugin.hook_faults.update(misnamed_hooks(module))
        if not plugin.hook_faults and not self._manager.get_hookcallers(module):
            plugin.fault = Fault(
                "broken",
                f"{plugin.location} implements no hook; mark its functions with @sage_infer.hookimpl",
            )
        plugin.module = module
        self._by_module[module] = plugin

    # --- results of the hooks

    def backends(self) -> list[Entry[BackendSpec]]:
        return self.entries("backend")

    def detectors(self) -> list[Entry[DetectorSpec]]:
        return self.entries("detector")

    def kv_stores(self) -> list[Entry[KVStoreSpec]]:
        return self.entries("store")

    def kv_formats(self) -> list[Entry[KVFormatSpec]]:
        return self.entries("format")

    def transports(self) -> list[Entry[TransportSpec]]:
        return self.entries("transport")

    def executors(self) -> list[Entry[ExecutorSpec]]:
        return self.entries("executor")

    def models(self) -> list[Entry[ModelSpec]]:
        return self.entries("model")

    def commands(self) -> list[Entry[CommandSpec]]:
        return self.entries("command")

    def config(self) -> list[Entry[ConfigSpec]]:
        return self.entries("config")

    def entries(self, kind: KindName) -> list[Entry[Any]]:
        """What plug-ins registered of a kind, by name, without disabled entries."""
        return [entry for entry in self._catalogue(kind) if not entry.disabled]

    def switched_off(self, kind: KindName) -> list[Entry[Any]]:
        """What plug-ins registered of a kind but ``disabled`` names."""
        return [entry for entry in self._catalogue(kind) if entry.disabled]

    def _catalogue(self, kind: KindName) -> list[Entry[Any]]:
        if kind not in self._catalogues:
            self._catalogues[kind] = self._ask(KINDS[kind].hook, KINDS[kind].spec)
        return self._catalogues[kind]

    def _ask(self, hook: str, kind: type[Any]) -> list[Entry[Any]]:
        _ = self.plugins  # imports and registers them
        found: dict[str, list[Entry[Any]]] = {}
        off: list[Entry[Any]] = []
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            plugin = self._by_module[implementation.plugin]
            for spec in self._specs_of(plugin, hook, implementation.function, kind):
                if spec.name in self.disabled:
                    off.append(Entry(spec.name, spec, plugin, disabled=True))
                else:
                    found.setdefault(spec.name, []).append(Entry(spec.name, spec, plugin))
        entries: list[Entry[Any]] = []
        for name, same_name in sorted(found.items()):
            if name in BUILT_IN.get(hook, ()):
                reason = f"{name!r} is built into sage-infer-core and cannot be replaced"
                entries += [evolve(entry, fault=Fault("broken", reason)) for entry in same_name]
            else:
                entries += same_name if len(same_name) == 1 else _collided(same_name)
        return entries + off

    def _specs_of(
        self, plugin: Plugin, hook: str, function: Callable[[], object], kind: type[Any]
    ) -> Iterable[Any]:
        try:
            specs = function()
        except BaseException as error:
            if not is_plugins_fault(error):
                raise
            plugin.hook_faults[hook] = fault_of(f"{plugin.location}.{hook}() failed", error)
            return ()
        if not isinstance(specs, list) or not all(isinstance(spec, kind) for spec in specs):
            got = type(specs).__name__
            if isinstance(specs, list):
                got = "a list with " + ", ".join(
                    sorted({type(s).__name__ for s in specs if not isinstance(s, kind)})
                )
            plugin.hook_faults[hook] = Fault(
                "broken", f"{plugin.location}.{hook}() must return a list of {kind.__name__}, got {got}"
            )
            return ()
        return specs


@cache
def discover() -> Registry:
    """The installed plug-ins except those disabled by the environment or the configuration.

    Read once per process; ``discover.cache_clear()`` resets it.

    Raises:
        ConfigError: the configuration file cannot be read.
    """
    from sage_infer.config_file.disabled import disabled_plugins

    return Registry(tuple(importlib.metadata.entry_points(group=GROUP)), disabled_plugins())


def model_specs(registry: Registry | None = None) -> Mapping[str, ModelSpec]:
    """Models known to plug-ins, by name."""
    return {entry.name: entry.spec for entry in (registry or discover()).models() if entry.fault is None}


def _collided(entries: Collection[Entry[SpecT]]) -> list[Entry[SpecT]]:
    """The same entries, each rejected with a fault that names all of them."""
    claimed = sorted({str(entry.plugin) for entry in entries})
    name = next(iter(entries)).name
    if len(claimed) == 1:
        fault = Fault("broken", f"name {name!r} is returned {len(entries)} times by {claimed[0]}")
    else:
        names = sorted({entry.plugin.distribution for entry in entries})
        fault = Fault(
            "broken",
            f"name {name!r} is claimed by {' and by '.join(claimed)}; none of them is used",
            fix=f"pip uninstall {names[-1]}   (or SAGE_INFER_DISABLE={names[-1]})",
        )
    return [Entry(entry.name, entry.spec, entry.plugin, fault) for entry in entries]

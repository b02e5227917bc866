"""Reads the entry points and asks the hooks, each plug-in on its own so that none takes another one down."""

from __future__ import annotations

import importlib.metadata
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache, cached_property
from types import ModuleType
from typing import Any, Generic, Literal, cast

import pluggy
from attrs import define, field, frozen

from sage_infer import hookspecs
from sage_infer.checks import as_tuple
from sage_infer.specs import (
    BackendSpec,
    CommandSpec,
    DetectorSpec,
    ExecutorSpec,
    KVFormatSpec,
    KVStoreSpec,
    ModelSpec,
    SpecT,
    TransportSpec,
)
from sage_infer.version import CONTRACT_VERSION

__all__ = ["GROUP", "Entry", "Fault", "Plugin", "Registry", "discover", "model_specs"]

GROUP = "sage_infer.backends"
CONTRACT_ATTRIBUTE = "SAGE_INFER_CONTRACT"

FaultKind = Literal["broken", "incompatible"]


@frozen
class Fault:
    """Why a plug-in or one of its specs cannot be used: one line, what to do, and all that is known."""

    kind: FaultKind
    reason: str
    fix: str = ""
    detail: str = ""


@define(eq=False)
class Plugin:
    """One entry point. ``fault`` is set where its module cannot be used at all."""

    entry_point: importlib.metadata.EntryPoint
    module: ModuleType | None = None
    fault: Fault | None = None
    disabled: bool = False

    @property
    def name(self) -> str:
        return self.entry_point.name

    @property
    def location(self) -> str:
        """The module that the entry point names."""
        return self.entry_point.value

    @property
    def distribution(self) -> str:
        """The distribution that it comes from. Reads its metadata, so not for every row of a list."""
        dist = self.entry_point.dist
        return dist.name if dist is not None else "unknown distribution"

    def __str__(self) -> str:
        return f"{self.distribution} ({self.location})"


@frozen
class Entry(Generic[SpecT]):
    """One name that plug-ins registered. With a fault, ``spec`` is only for show."""

    name: str
    spec: SpecT
    plugin: Plugin
    fault: Fault | None = None


@define(eq=False, slots=False)
class Registry:
    """The plug-ins of one process. Hooks are asked once, when their kind of spec is first wanted."""

    entry_points: tuple[importlib.metadata.EntryPoint, ...] = field(converter=as_tuple)
    disabled: frozenset[str] = frozenset()
    _catalogues: dict[str, list[Entry[Any]]] = field(factory=dict, init=False)

    @cached_property
    def plugins(self) -> list[Plugin]:
        """Every entry point of the group, imported; those with a fault or switched off included."""
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
        except Exception as error:
            plugin.fault = _fault(f"import of {plugin.location} failed", error)
            return
        if not isinstance(module, ModuleType):
            kind = type(module).__name__
            reason = f"entry point {plugin.name!r} must name a module, and {plugin.location} is a {kind}"
            plugin.fault = Fault("broken", reason, fix=f"pip install --upgrade {plugin.distribution}")
            return
        mismatch = _contract_mismatch(module, plugin)
        if mismatch is not None:
            plugin.fault = mismatch
            return
        if module in self._by_module:
            return  # a second entry point for one module adds nothing
        try:
            # A unique name: two distributions may call their entry points alike, which is no fault.
            self._manager.register(module, name=f"{plugin.name}={module.__name__}")
            unknown = [
                caller.name for caller in self._manager.get_hookcallers(module) or () if not caller.has_spec()
            ]
            if unknown:
                self._manager.unregister(module)
                known = ", ".join(n for n in vars(hookspecs) if n.startswith("sage_infer_"))
                plugin.fault = Fault(
                    "broken", f"implements unknown hook {', '.join(unknown)}; known: {known}"
                )
                return
        except (pluggy.PluginValidationError, ValueError) as error:
            plugin.fault = _fault(f"{plugin.location} does not fit its hooks", error)
            return
        plugin.module = module
        self._by_module[module] = plugin

    # --- what the hooks return

    def backends(self) -> list[Entry[BackendSpec]]:
        return self._catalogue("sage_infer_backends", BackendSpec)

    def detectors(self) -> list[Entry[DetectorSpec]]:
        return self._catalogue("sage_infer_detectors", DetectorSpec)

    def kv_stores(self) -> list[Entry[KVStoreSpec]]:
        return self._catalogue("sage_infer_kv_stores", KVStoreSpec)

    def kv_formats(self) -> list[Entry[KVFormatSpec]]:
        return self._catalogue("sage_infer_kv_formats", KVFormatSpec)

    def transports(self) -> list[Entry[TransportSpec]]:
        return self._catalogue("sage_infer_transports", TransportSpec)

    def executors(self) -> list[Entry[ExecutorSpec]]:
        return self._catalogue("sage_infer_executors", ExecutorSpec)

    def models(self) -> list[Entry[ModelSpec]]:
        return self._catalogue("sage_infer_models", ModelSpec)

    def commands(self) -> list[Entry[CommandSpec]]:
        return self._catalogue("sage_infer_commands", CommandSpec)

    def _catalogue(self, hook: str, kind: type[SpecT]) -> list[Entry[SpecT]]:
        if hook not in self._catalogues:
            self._catalogues[hook] = self._ask(hook, kind)
        return cast("list[Entry[SpecT]]", self._catalogues[hook])

    def _ask(self, hook: str, kind: type[SpecT]) -> list[Entry[SpecT]]:
        _ = self.plugins  # imports and registers them
        found: dict[str, list[Entry[SpecT]]] = {}
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            plugin = self._by_module[implementation.plugin]
            for spec in self._specs_of(plugin, hook, implementation.function, kind):
                if spec.name not in self.disabled:
                    found.setdefault(spec.name, []).append(Entry(spec.name, spec, plugin))
        entries: list[Entry[SpecT]] = []
        for _, same_name in sorted(found.items()):
            entries += same_name if len(same_name) == 1 else _collided(same_name)
        return entries

    def _specs_of(
        self, plugin: Plugin, hook: str, function: Callable[[], object], kind: type[SpecT]
    ) -> Iterable[SpecT]:
        if plugin.fault is not None:
            return ()
        try:
            specs = function()
        except Exception as error:
            plugin.fault = _fault(f"{plugin.location}.{hook}() failed", error)
            return ()
        if not isinstance(specs, list) or not all(isinstance(spec, kind) for spec in specs):
            got = type(specs).__name__
            if isinstance(specs, list):
                got = "a list with " + ", ".join(
                    sorted({type(s).__name__ for s in specs if not isinstance(s, kind)})
                )
            plugin.fault = Fault(
                "broken", f"{plugin.location}.{hook}() must return a list of {kind.__name__}, got {got}"
            )
            return ()
        return specs


@cache
def discover() -> Registry:
    """The plug-ins that are installed, less those that the environment or the configuration switches off.

    Read once a process; ``discover.cache_clear()`` forgets it.

    Raises:
        ConfigError: the configuration file cannot be read.
    """
    from sage_infer.config import disabled_plugins

    return Registry(tuple(importlib.metadata.entry_points(group=GROUP)), disabled_plugins())


def model_specs(registry: Registry | None = None) -> Mapping[str, ModelSpec]:
    """Models that plug-ins know by name."""
    return {entry.name: entry.spec for entry in (registry or discover()).models() if entry.fault is None}


def _fault(what: str, error: BaseException) -> Fault:
    last_line = traceback.format_exception_only(error)[-1].strip()
    return Fault("broken", f"{what}: {last_line}", detail="".join(traceback.format_exception(error)))


def _contract_mismatch(module: ModuleType, plugin: Plugin) -> Fault | None:
    wanted = getattr(module, CONTRACT_ATTRIBUTE, None)
    if wanted is None:
        return None
    own_major, own_minor = (int(part) for part in CONTRACT_VERSION.split("."))
    try:
        major, minor = (int(part) for part in wanted.split("."))
    except (AttributeError, ValueError):
        rule = f"must be MAJOR.MINOR such as {CONTRACT_VERSION!r}, got {wanted!r}"
        return Fault("broken", f"{plugin.location}.{CONTRACT_ATTRIBUTE} {rule}")
    if (major, minor) <= (own_major, own_minor) and major == own_major:
        return None
    newer = (major, minor) > (own_major, own_minor)
    return Fault(
        "incompatible",
        f"written for contract {wanted}, this sage-infer-core speaks {CONTRACT_VERSION}",
        fix=f"pip install --upgrade {'sage-infer-core' if newer else plugin.distribution}",
    )


def _collided(entries: Collection[Entry[SpecT]]) -> list[Entry[SpecT]]:
    """The same entries, each refused, each naming all."""
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

"""Attribute unexpected errors to the plug-in whose code raised them."""

from __future__ import annotations

import traceback

from sage_infer.discovery.kinds import KINDS
from sage_infer.discovery.paths import dotted_paths
from sage_infer.discovery.registry import Plugin, discover
from sage_infer.errors import PluginFailed

__all__ = ["plugin_failure"]


def plugin_failure(error: BaseException) -> PluginFailed | None:
    """The error attributed to the plug-in that raised it; None if the innermost of our frames is the core's.

    A frame belongs to a plug-in if its top-level package holds the plug-in's module or a module of its specs.
    """
    owners = _owners()
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        top = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if top == "sage_infer":
            return None
        if top in owners:
            place = f"{frame.f_globals['__name__']}.{frame.f_code.co_name}()"
            text = " ".join(f"{type(error).__name__}: {error}".split())
            return PluginFailed(
                f"{owners[top]}: {place} failed: {text}; report it to its authors (--debug shows the traceback)"
            )
    return None


def _owners() -> dict[str, Plugin]:
    """Plug-ins by the top-level packages of their code."""
    registry = discover()
    owners = {plugin.location.partition(":")[0].partition(".")[0]: plugin for plugin in registry.plugins}
    for kind in KINDS:
        for entry in registry.entries(kind):
            for path in dotted_paths(entry.spec).values():
                owners.setdefault(path.partition(":")[0].partition(".")[0], entry.plugin)
    return owners

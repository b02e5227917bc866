"""A command group that imports commands on call, and queries plug-ins only if needed."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import typer
from typer.core import TyperGroup
from typer.main import get_command

from sage_infer.command_tree import COMMANDS, GROUPS, HINTS
from sage_infer.errors import BackendUnavailable, InvalidRequest, PluginFailed, SageInferError
from sage_infer.factories import blame, is_plugins_fault, load_object

if TYPE_CHECKING:
    from sage_infer.discovery import Entry
    from sage_infer.specs import CommandSpec

__all__ = ["LazyGroup", "make_group"]


class LazyGroup(TyperGroup):
    """The commands below ``path`` in the command tree, including those of plug-ins."""

    path: ClassVar[str] = ""

    def list_commands(self, ctx: Any) -> list[str]:
        names = {_step(self.path, path) for path in (*GROUPS, *COMMANDS, *_plugin_commands())}
        return sorted(name for name in names if name)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        path = f"{self.path} {cmd_name}".strip()
        if path in COMMANDS:
            place, summary = COMMANDS[path]
            module_name, _, attribute = place.partition(":")
            return _command(cmd_name, getattr(importlib.import_module(module_name), attribute), summary)
        if path in GROUPS:
            return get_command(make_group(path, GROUPS[path]))
        plugin_commands = _plugin_commands()
        if path in plugin_commands:
            return _plugin_command(cmd_name, plugin_commands[path])
        below = [e.spec for other, e in plugin_commands.items() if other.startswith(path + " ")]
        if below:
            return get_command(make_group(path, max(spec.group for spec in below) or below[0].summary))
        for entry in _plugin_entries():
            if entry.fault is not None and f"{entry.name} ".startswith(f"{path} "):
                fix = f"; to fix: {entry.fault.fix}" if entry.fault.fix else ""
                raise BackendUnavailable(f"`sage {entry.name}` cannot be used: {entry.fault.reason}{fix}")
        wheel = next((HINTS[other] for other in HINTS if f"{other} ".startswith(f"{path} ")), None)
        if wheel is not None:
            if _is_disabled(wheel):
                raise BackendUnavailable(
                    f"`sage {path}` is part of {wheel}, which SAGE_INFER_DISABLE or plugins.disabled switches off"
                )
            raise BackendUnavailable(f"`sage {path}` comes with another wheel: pip install {wheel}")
        if ctx.resilient_parsing:  # the shell asks for completions
            return None
        known = self.list_commands(ctx)
        near = difflib.get_close_matches(cmd_name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"available: {', '.join(known)}"
        raise InvalidRequest(f"no command {cmd_name!r} in `{ctx.command_path}`; {hint}")


def make_group(path: str, summary: str) -> typer.Typer:
    """A typer app for the group at ``path``."""
    cls = type("Group", (LazyGroup,), {"path": path})
    app = typer.Typer(
        cls=cls, help=summary, no_args_is_help=True, rich_markup_mode=None, add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )  # fmt: skip
    app.callback()(_nothing)
    return app


def _nothing() -> None:
    """Groups have no options of their own."""


def _step(group: str, path: str) -> str:
    """The next word on the way from ``group`` to ``path``; empty if ``path`` is not below ``group``."""
    prefix = f"{group} " if group else ""
    return path[len(prefix) :].split(" ")[0] if path.startswith(prefix) else ""


# Typer brings its own copy of click since 0.26 and uses the installed one before; its front door has both.
_ClickException: type[BaseException] = next(
    base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"
)


def _plugin_entries() -> list[Entry[CommandSpec]]:
    from sage_infer.discovery import discover

    return discover().commands()


def _is_disabled(wheel: str) -> bool:
    """Whether a wheel is installed, and its plug-in is switched off."""
    from sage_infer.discovery import discover

    return any(plugin.disabled and plugin.distribution == wheel for plugin in discover().plugins)


def _plugin_commands() -> dict[str, Entry[CommandSpec]]:
    return {entry.name: entry for entry in _plugin_entries() if entry.fault is None}


def _plugin_command(name: str, entry: Entry[CommandSpec]) -> Any:
    """A plug-in's command, whose errors are attributed to its wheel."""
    what = f"`sage {entry.name}` of {entry.plugin.distribution}"
    found = load_object(entry.spec.app, what=what)
    with blame(f"{what} cannot be used"):
        command = _command(name, found, entry.spec.summary)
    command.invoke = partial(_invoke, command.invoke, what)
    return command


def _invoke(invoke: Callable[[Any], Any], what: str, ctx: Any) -> Any:
    try:
        return invoke(ctx)
    except (typer.Abort, typer.Exit, _ClickException, BrokenPipeError, SageInferError, SystemExit):
        raise
    except BaseException as error:
        if not is_plugins_fault(error):
            raise
        raise PluginFailed(
            f"{what} failed: {type(error).__name__}: {error}; report it to its authors"
        ) from error


def _command(name: str, found: Any, summary: str) -> Any:
    """The click command of a function or a typer app."""
    if isinstance(found, typer.Typer):
        app = found
    else:
        app = typer.Typer(
            rich_markup_mode=None,
            add_completion=False,
            context_settings={"help_option_names": ["-h", "--help"]},
        )
        app.command(name)(found)
    command = get_command(app)
    command.name = name
    command.short_help = summary
    return command

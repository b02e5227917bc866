"""A command group that imports a command only when it is called, and asks plug-ins only when it must."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any, ClassVar

import typer
from typer.core import TyperGroup
from typer.main import get_command

from sage_infer.cli.commands import COMMANDS, GROUPS, HINTS
from sage_infer.errors import BackendUnavailable, InvalidRequest

if TYPE_CHECKING:
    from sage_infer.specs import CommandSpec

__all__ = ["LazyGroup", "make_group"]


class LazyGroup(TyperGroup):
    """The commands below ``path`` in the command tree, plug-ins' commands included."""

    path: ClassVar[str] = ""

    def list_commands(self, ctx: Any) -> list[str]:
        names = {_step(self.path, path) for path in (*GROUPS, *COMMANDS, *_plugin_commands())}
        return sorted(name for name in names if name)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        path = f"{self.path} {cmd_name}".strip()
        if path in COMMANDS:
            return _command(cmd_name, *COMMANDS[path])
        if path in GROUPS:
            return get_command(make_group(path, GROUPS[path]))
        plugin_commands = _plugin_commands()
        if path in plugin_commands:
            spec = plugin_commands[path]
            return _command(cmd_name, spec.app, spec.summary)
        below = [spec for other, spec in plugin_commands.items() if other.startswith(path + " ")]
        if below:
            return get_command(make_group(path, max(spec.group for spec in below) or below[0].summary))
        wheel = next((HINTS[other] for other in HINTS if f"{other} ".startswith(f"{path} ")), None)
        if wheel is not None:
            raise BackendUnavailable(f"`sage {path}` comes with another wheel: pip install {wheel}")
        if ctx.resilient_parsing:  # the shell asks for completions
            return None
        known = self.list_commands(ctx)
        near = difflib.get_close_matches(cmd_name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
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
    """Groups take no options of their own."""


def _step(group: str, path: str) -> str:
    """The word that leads from ``group`` towards ``path``; empty where it does not lead there."""
    prefix = f"{group} " if group else ""
    return path[len(prefix) :].split(" ")[0] if path.startswith(prefix) else ""


def _plugin_commands() -> dict[str, CommandSpec]:
    from sage_infer.discovery import discover

    return {entry.name: entry.spec for entry in discover().commands() if entry.fault is None}


def _command(name: str, target: str, summary: str) -> Any:
    """The click command of a function or a typer app at ``module:attribute``."""
    module_name, _, attribute = target.partition(":")
    found = getattr(importlib.import_module(module_name), attribute)
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

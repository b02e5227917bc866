"""Check that dotted paths in specs exist, without importing the modules that they name."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from sage_infer.discovery.info import PluginInfo
from sage_infer.factories import is_plugins_fault

__all__ = ["dotted_paths", "wrong_paths"]

_FIELDS = (
    "factory",
    "prepare",
    "memory",
    "sizes",
    "tokenizer",
    "read_recording",
    "resolver",
    "app",
    "settings",
    "template",
)


def dotted_paths(spec: Any) -> dict[str, str]:
    """The dotted paths of a spec by field."""
    names = [field.name for field in attrs.fields(type(spec)) if field.name in _FIELDS]
    return {name: getattr(spec, name) for name in names if getattr(spec, name) is not None}


def wrong_paths(info: PluginInfo) -> list[str]:
    """One sentence per missing dotted path of a ready item; if an item lacks requirements, its
    modules may be missing.
    """
    if info.spec is None or info.state != "ready":
        return []
    found = []
    for field, path in dotted_paths(info.spec).items():
        reason = _wrong(path)
        if reason:
            found.append(f"{field} of {info.title} does not exist: {path} ({reason})")
    return found


def _wrong(path: str) -> str:
    """Why a path does not exist; empty if it exists, or if only an import could tell."""
    module, _, attribute = path.partition(":")
    try:
        found = importlib.util.find_spec(module)  # imports the packages above the module only
    except BaseException as error:
        if not is_plugins_fault(error):
            raise
        return f"{type(error).__name__}: {error}"
    if found is None:
        return f"there is no module {module}"
    if found.origin is None or not found.origin.endswith(".py"):
        return ""
    try:
        tree = ast.parse(Path(found.origin).read_bytes())
    except (OSError, SyntaxError) as error:
        return f"{type(error).__name__}: {error}"
    names = set(_names(tree.body))
    first = attribute.partition(".")[0]
    if first in names or names & {"*", "__getattr__"}:
        return ""
    return f"module {module} has no {first}"


def _names(body: list[ast.stmt]) -> Iterator[str]:
    """Names that statements bind in their module, in any branch."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                yield from (name.id for name in ast.walk(target) if isinstance(name, ast.Name))
        else:
            for field in ("body", "orelse", "finalbody"):
                yield from _names(getattr(node, field, []))
            for handler in getattr(node, "handlers", []):
                yield from _names(handler.body)

"""The dotted paths of specs, and whether they exist: looked up in source files, without an import."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import attrs

from sage_infer.factories import is_plugins_fault
from sage_infer.specs import Spec

if TYPE_CHECKING:
    import ast

__all__ = ["PATH_FIELDS", "dotted_paths", "wrong_paths"]

_PATH_NAMES = (
    "factory", "prepare", "memory", "sizes", "tokenizer", "read_recording", "resolver", "app", "settings", "template",
    "eviction", "endpoint", "checks",
)  # fmt: skip

PATH_FIELDS: Mapping[type, tuple[str, ...]] = {
    spec: tuple(name for name in _PATH_NAMES if name in {field.name for field in attrs.fields(spec)})
    for spec in get_args(Spec)
}
"""Fields of each spec that hold a dotted path."""


def dotted_paths(spec: Any) -> dict[str, str]:
    """The dotted paths of a spec by field."""
    values = ((name, getattr(spec, name)) for name in PATH_FIELDS.get(type(spec), ()))
    return {name: path for name, path in values if path is not None}


def wrong_paths(spec: Any) -> list[str]:
    """One sentence per dotted path that does not exist. A path that only an import could find counts as existing."""
    found = []
    for field, path in dotted_paths(spec).items():
        module, _, attribute = path.partition(":")
        reason = _missing(module, attribute.partition(".")[0])
        if reason:
            found.append(f"{field} {path} does not exist ({reason})")
    return found


def _missing(module: str, attribute: str) -> str:
    """Why a module has no such attribute; empty if it has, or if only an import could tell."""
    try:
        found = _find(module)
        if found is None:
            return "" if _is_dynamic(module.rpartition(".")[0]) else f"there is no module {module}"
        if found.origin is None or not found.origin.endswith(".py"):
            return ""
        source = Path(found.origin).read_bytes().decode("utf-8")
        # Parsing takes a hundred times longer, and is rarely needed.
        if re.search(rf"^(?:class|def|async def) {attribute}\b|^{attribute}\b *[:=]", source, re.MULTILINE):
            return ""
        return _missing_in(source, module, attribute)
    except BaseException as error:  # a finder is code of a plug-in's wheel, too
        if not is_plugins_fault(error):
            raise
        return f"{type(error).__name__}: {error}"


def _find(module: str) -> ModuleSpec | None:
    """The module's import spec. Unlike ``importlib.util.find_spec``, it does not import the packages above it."""
    loaded = sys.modules.get(module)
    if loaded is not None and loaded.__spec__ is not None:
        return loaded.__spec__
    parent, places = module.rpartition(".")[0], None
    if parent:
        above = _find(parent)
        if above is None or above.submodule_search_locations is None:
            return None
        places = getattr(sys.modules.get(parent), "__path__", above.submodule_search_locations)
    for finder in sys.meta_path:
        found = finder.find_spec(module, places) if hasattr(finder, "find_spec") else None
        if found is not None:
            return found
    return None


def _is_dynamic(package: str) -> bool:
    """Whether a package's own code decides where its modules are, so that only an import could tell."""
    found = _find(package) if package else None
    while package and found is None:
        package = package.rpartition(".")[0]
        found = _find(package) if package else None
    if found is None or found.origin is None or not found.origin.endswith(".py"):
        return False
    return package not in sys.modules and b"__path__" in Path(found.origin).read_bytes()


def _missing_in(source: str, module: str, attribute: str) -> str:
    import ast  # takes a few milliseconds

    body = ast.parse(source).body
    names = set(_names(body))
    if (
        attribute in names
        or names & {"*", "__getattr__"}
        or any(isinstance(node, ast.Raise) for node in body)
    ):
        return ""  # a module that raises on purpose says more than its missing attribute
    return f"module {module} has no {attribute}"


def _names(body: list[ast.stmt]) -> Iterator[str]:
    """Names that statements bind in their module, in any branch."""
    import ast

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

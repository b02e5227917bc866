"""The shape of the source: files import downwards only, stay short, and share a folder with few others."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "packages").glob("*/src/*"))
MAX_LINES = 400
MAX_FILES = 25


def modules(source: Path) -> dict[str, Path]:
    """Files of one import package by module name."""
    found = {}
    for file in sorted(source.rglob("*.py")):
        parts = [source.name, *file.relative_to(source).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(module: str, file: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of ``known`` that a file imports anywhere: at the top, in functions and for types."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            base = base if node.level else node.module or ""
            names = [
                f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names
            ]
        else:
            continue
        yield from (name for name in names if name in known and name != module)


def cycles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """Strongly connected components of two or more modules, by Tarjan's algorithm."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = set()

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in graph[node]:
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.add(frozenset(component))

    for node in graph:
        if node not in order:
            visit(node)
    return found


def test_no_two_files_import_each_other() -> None:
    known = {name: file for source in SOURCES for name, file in modules(source).items()}
    graph = {name: set(imports(name, file, known)) for name, file in known.items()}
    assert not cycles(graph)


def test_files_are_short() -> None:
    files = [file for source in SOURCES for file in source.rglob("*.py")]
    long = {relative(file) for file in files if len(file.read_text("utf-8").splitlines()) > MAX_LINES}
    assert not long, f"files of more than {MAX_LINES} lines; split them by subject"


def test_folders_are_small() -> None:
    folders = {file.parent for top in ("packages", "tests") for file in (ROOT / top).rglob("*.py")}
    full = {relative(folder) for folder in folders if len(list(folder.glob("*.py"))) > MAX_FILES}
    assert not full, f"folders of more than {MAX_FILES} Python files; make rooms by subject"


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("import_contracts", ROOT / "tools" / "import_contracts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_import_contracts_cover_every_wheel(tool: ModuleType) -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    assert tool.updated(text, tool.wheels()) == text, "run: python tools/import_contracts.py"


def test_a_cycle_is_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"a"}}
    assert cycles(graph) == {frozenset("abc")}

"""docs/reference.md states every field, argument and method that the authors of plug-ins need."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_origin

import attrs
import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted(path for path in (ROOT / "examples").iterdir() if (path / "pyproject.toml").exists())


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "tools" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def entries() -> dict[str, str]:
    """Text of each name's entry on the page; names of several modules together."""
    found: dict[str, str] = {}
    text = (ROOT / "docs" / "reference.md").read_text("utf-8")
    for part in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        name = part.partition("\n")[0].strip("`")
        found[name] = found.get(name, "") + part.partition("\n## ")[0]
    return found


def imported(folder: Path) -> Iterator[tuple[str, Any]]:
    """Public names of sage-infer that a plug-in imports or takes from a module of it, with what they are."""
    for file in sorted(folder.rglob("*.py")):
        tree = ast.parse(file.read_text("utf-8"))
        modules: dict[str, ModuleType] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in (
                "sage_infer",
                "sage_infer_hal",
            ):
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    thing = _member(module, alias.name)
                    if isinstance(thing, ModuleType):
                        modules[alias.asname or alias.name] = thing
                    else:
                        yield alias.name, thing
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in modules
            ):
                yield node.attr, _member(modules[node.value.id], node.attr)


def _member(module: ModuleType, name: str) -> Any:
    try:
        return getattr(module, name)
    except AttributeError:
        return importlib.import_module(f"{module.__name__}.{name}")


def needed(thing: Any) -> set[str]:
    """Words that the entry must have: fields, arguments, and methods to call or to override."""
    if isinstance(thing, type) and attrs.has(thing):
        return {field.name for field in attrs.fields(thing) if field.init}
    if get_origin(thing) is not None or (isinstance(thing, type) and issubclass(thing, Exception)):
        return set()
    if isinstance(thing, type):
        own = {name for name, value in vars(thing).items() if inspect.isfunction(value) and name[0] != "_"}
        return own | {*inspect.signature(thing).parameters} - {"args", "kwargs"}
    return {*inspect.signature(thing).parameters}


def test_the_page_is_current(tool: ModuleType) -> None:
    """In a process of its own: other tests resolve the types of fields, which are printed as they are written."""
    checked = subprocess.run([sys.executable, tool.__file__, "--check"], check=False)
    assert checked.returncode == 0, "run: python tools/reference.py"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_what_a_plug_in_imports_is_documented(example: Path, entries: dict[str, str]) -> None:
    names = {name: thing for name, thing in imported(example / "src") if callable(thing)}
    assert len(names) >= 10
    silent = {
        name: sorted(word for word in needed(thing) if not re.search(rf"\b{word}\b", entries.get(name, "")))
        for name, thing in names.items()
        if name != "hookimpl"  # a mark without arguments, which plugin-hooks.md explains
    }
    assert not {name for name in silent if name not in entries}
    assert not {name: words for name, words in silent.items() if words}


@pytest.mark.parametrize(
    "name",
    ["TokenDelta", "EngineStats", "BufferedTokenStream", "Usage", "Health", "DecodeState", "TransportReport",
     "KVStoreStats", "Timing", "ReplicaExit", "KVChunk", "InstanceReport"],
)  # fmt: skip
def test_what_authors_without_a_base_class_need_is_documented(name: str, entries: dict[str, str]) -> None:
    contracts, schemas = (
        importlib.import_module(f"sage_infer.{module}") for module in ("contracts", "schemas")
    )
    thing = getattr(contracts, name, None) or getattr(schemas, name)
    assert not {word for word in needed(thing) if word not in entries[name]}


def test_a_field_without_a_description_is_named(tool: ModuleType) -> None:
    @attrs.frozen
    class Quiet:
        """A class.

        Attributes:
            told: a field.
        """

        told: int
        hidden: int = 0

    with pytest.raises(SystemExit, match="Quiet has no Attributes: line for hidden"):
        tool.entry("Quiet", Quiet)


def test_lists_and_long_lines_of_docstrings_are_read(tool: ModuleType) -> None:
    doc = """Summary.

    Attributes:
        one, two: both of
            them.
        three: alone.

    Args:
        four: an argument.
    """
    assert tool.described(doc) == {
        "one": "both of them.",
        "two": "both of them.",
        "three": "alone.",
        "four": "an argument.",
    }

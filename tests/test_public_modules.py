"""Wheels import the public modules of the core only, which docs/sdk.md lists."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "packages" / "sage-infer-core" / "src" / "sage_infer"
APPLICATIONS = {
    "sage-infer-hal", "sage-infer-hybrid", "sage-infer-kvstore", "sage-infer-ray", "sage-infer-serve",
    "sage-infer-testing", "sage-infer-transport", "sage-llm",
}  # fmt: skip
WHEELS = sorted(path for path in (ROOT / "packages").iterdir() if path.name != "sage-infer-core")


def listed() -> dict[str, list[str]]:
    """Modules in the first column of each table, by the heading above it."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in (ROOT / "docs" / "sdk.md").read_text("utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ").strip("`")
        row = re.match(r"\| `([a-z_.]+)` \|", line)
        if row:
            found.setdefault(heading, []).append(row[1])
    return found


def imported(folder: Path) -> Iterator[tuple[str, str]]:
    """Modules of the core that a wheel imports anywhere, each with the place."""
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in names:
                if name == "sage_infer" or name.startswith("sage_infer."):
                    yield name, f"{file.relative_to(ROOT)}:{node.lineno}"


def is_in(module: str, public: list[str]) -> bool:
    """Whether a module is listed, or lies in a listed package; ``sage_infer`` stands for itself alone."""
    return any(module == name or (name != "sage_infer" and module.startswith(f"{name}.")) for name in public)


@pytest.mark.parametrize("wheel", WHEELS, ids=lambda path: path.name)
def test_a_wheel_imports_public_modules_only(wheel: Path) -> None:
    tables = listed()
    public = tables["For every plug-in"]
    if wheel.name in APPLICATIONS:
        public = public + tables["For libraries and applications"]
    private = [
        f"{place} imports {name}" for name, place in imported(wheel / "src") if not is_in(name, public)
    ]
    assert not private, "\n".join(private)


def test_what_is_listed_exists_and_names_what_it_exports() -> None:
    tables = listed()
    modules = [*tables["For every plug-in"], *tables["For libraries and applications"]]
    modules += [f"sage_infer.{name}" for name in tables["sage_infer.sdk"]]
    assert all(hasattr(importlib.import_module(name), "__all__") for name in modules)


def test_every_module_of_the_sdk_is_listed() -> None:
    inside = [path for path in (CORE / "sdk").iterdir() if path.stem not in ("__init__", "__pycache__")]
    found = {f"sdk.{path.stem}" for path in inside}
    assert found == set(listed()["sage_infer.sdk"])

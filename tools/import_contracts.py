"""Generate import-linter contracts between wheels in pyproject.toml, for every folder of packages/.

    python tools/import_contracts.py [--check]

Wheels do not import each other, except along ``WHEELS``, and heavy libraries are imported only by the wheels in
``LIBRARIES``. ``--check`` writes nothing and fails if pyproject.toml is out of date. Contracts inside one wheel are
written by hand below the generated part.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORE = "sage_infer"

_DETECTOR = ("sage_infer_hal",)
_VENDOR = ("sage_infer_hal", "sage_infer_vllm")
WHEELS = {
    "sage_infer_ascend": _VENDOR,
    "sage_infer_cambricon": _VENDOR,
    "sage_infer_cuda": _DETECTOR,
    "sage_infer_host": _DETECTOR,
    "sage_infer_hybrid": ("sage_infer_hal", "sage_infer_planning"),
    "sage_infer_hygon": _VENDOR,
    "sage_infer_kunlunxin": _VENDOR,
    "sage_infer_nixl": ("sage_infer_transport",),
    "sage_llm": ("sage_infer_hal", "sage_infer_planning", "sage_infer_serve", "sage_infer_transport"),
}
"""Wheels that a wheel may import in addition to the core."""

HEAVY = (
    "numpy", "openvino", "sentence_transformers", "tokenizers", "torch", "transformers", "vllm",  # engines, arrays
    "ray",  # clusters
    "aiohttp", "fastapi", "starlette", "uvicorn",  # web
)  # fmt: skip
LIBRARIES = {
    "sage_infer_kvstore": ("numpy",),
    "sage_infer_openvino": ("numpy", "openvino", "tokenizers"),
    "sage_infer_ray": ("ray",),
    "sage_infer_serve": ("uvicorn",),
    "sage_infer_vllm": ("numpy", "torch", "transformers", "vllm"),
}
"""Heavy libraries that a wheel may import; every other wheel imports none."""

DETECTOR_MODULES = ("detector", "recordings")
"""Modules of a wheel that reach no backend, so that detection works without an engine."""

_BEGIN, _END = "# Written by tools/import_contracts.py: ", "# End of what tools/import_contracts.py writes.\n"
_PART = re.compile(rf"^{re.escape(_BEGIN)}.*?^{re.escape(_END)}", flags=re.MULTILINE | re.DOTALL)
_MEASURED = re.compile(r"^source_pkgs = \[.*?^\]\n", flags=re.MULTILINE | re.DOTALL)


def wheels(root: Path = ROOT) -> dict[str, Path]:
    """The folder of each wheel's source by its import name."""
    found = (path.parent for path in root.glob("packages/*/src/*/__init__.py"))
    return {path.name: path for path in sorted(found, key=lambda path: path.name)}


def contracts(found: dict[str, Path]) -> str:
    """The generated part of pyproject.toml."""
    parts = [
        f"{_BEGIN}change the tables there and run it.\n[tool.importlinter]\n"
        + _list("root_packages", found)
        + "include_external_packages = true\nexclude_type_checking_imports = false\n",
        _contract(
            "Wheels import the core and the libraries of their kind, and no other wheel",
            "independence",
            _list("modules", found)
            + _list("ignore_imports", _edges(found))
            + 'unmatched_ignore_imports_alerting = "none"\n',
        ),
    ]
    groups: dict[tuple[tuple[str, ...], bool], list[str]] = defaultdict(list)
    for wheel in found:
        forbidden = tuple(name for name in HEAVY if name not in LIBRARIES.get(wheel, ()))
        builds_on_engine = any(other in LIBRARIES for other in WHEELS.get(wheel, ()))
        groups[forbidden, builds_on_engine].append(wheel)
    for (forbidden, indirect), members in groups.items():
        allowed = " and ".join(name for name in HEAVY if name not in forbidden)
        what = f"no heavy library but {allowed}" if allowed else "no heavy library"
        parts.append(
            _contract(
                f"{', '.join(members)}: {what}{', except through the engine below' if indirect else ''}",
                "forbidden",
                _list("source_modules", members)
                + _list("forbidden_modules", forbidden)
                + ("allow_indirect_imports = true\n" if indirect else ""),
            )
        )
    detection = [
        f"{wheel}.{name}"
        for wheel, path in found.items()
        for name in DETECTOR_MODULES
        if (path / f"{name}.py").exists()
    ]
    engines = [wheel for wheel in found if wheel in LIBRARIES]
    parts.append(
        _contract(
            "Detectors reach no backend",
            "forbidden",
            _list("source_modules", detection) + _list("forbidden_modules", [*engines, *HEAVY]),
        )
    )
    return "\n".join(parts) + "\n" + _END


def _edges(found: dict[str, Path]) -> Iterator[str]:
    yield from (f"** -> {CORE}", f"** -> {CORE}.**")
    for wheel in found:
        for other in WHEELS.get(wheel, ()):
            if other in found:
                for source in (wheel, f"{wheel}.**"):
                    yield from (f"{source} -> {target}" for target in (other, f"{other}.**"))


def _contract(name: str, kind: str, body: str) -> str:
    return f"[[tool.importlinter.contracts]]\nname = {json.dumps(name)}\ntype = {json.dumps(kind)}\n{body}"


def _list(key: str, values: Iterable[str]) -> str:
    text = ", ".join(json.dumps(value).replace(" ", "\0") for value in values)  # no break inside a value
    lines = textwrap.wrap(text, 108, break_long_words=False, break_on_hyphens=False)
    return f"{key} = [\n  " + "\n  ".join(lines).replace("\0", " ") + ",\n]\n"


def updated(text: str, found: dict[str, Path]) -> str:
    """pyproject.toml with today's wheels."""
    for pattern, new in ((_PART, contracts(found)), (_MEASURED, _list("source_pkgs", found))):
        text, count = pattern.subn(lambda _, new=new: new, text)  # type: ignore[misc]
        if count != 1:
            raise SystemExit(f"pyproject.toml has {count} parts that match {pattern.pattern!r}, not one")
    return text


def main(arguments: list[str]) -> int:
    path = ROOT / "pyproject.toml"
    before = path.read_text("utf-8")
    after = updated(before, wheels())
    if before == after:
        return 0
    if "--check" in arguments:
        print("pyproject.toml is out of date; run: python tools/import_contracts.py", file=sys.stderr)
        return 1
    path.write_text(after, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

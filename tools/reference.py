"""Write docs/reference.md: signatures, fields and methods of the public names that plug-ins use, from their docstrings.

    python tools/reference.py [--check]

``--check`` writes nothing and fails if the page is out of date.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, get_origin

import attrs

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference.md"
MODULES = {
    "sage_infer": ("hookimpl", "open_backend", "list_backends", "resolve_model"),
    "sage_infer.specs": None,
    "sage_infer.sdk": None,
    "sage_infer.sdk.fields": None,
    "sage_infer.sdk.diagnosis": None,
    "sage_infer.contracts": None,
    "sage_infer.schemas": None,
    "sage_infer.errors": None,
    "sage_infer.backends": ("create_backend", "open_backend"),
    "sage_infer.config": ("load_config",),
    "sage_infer_hal.detection": (
        "ToolDetector",
        "ToolText",
        "Line",
        "VendorTool",
        "count_on_bus",
        "read_matrix",
        "run_tool",
    ),
}
"""Names of each module on the page; None for all of ``__all__``."""

BRIEF = "sage_infer.checks"
"""Module of the validators, whose arguments need no table."""

_INTRO = """\
# Reference

Signatures, fields and methods of the names that plug-ins use, by module. `python tools/reference.py` writes this
page from the docstrings. The promises behind them are in [contracts.md](contracts.md), the hooks in
[plugin-hooks.md](plugin-hooks.md). A field without a default is required. Fields are passed by keyword; those of
`TokenDelta` and `TokenLogprob` by position, too.
"""
_SECTION = re.compile(r"^(Attributes|Args):\n((?:(?: {4}.*)?\n)*)", re.MULTILINE)
_ITEM = re.compile(r"^ {4}(\w[\w, ]*): ((?:.+\n?)(?: {8}.*\n?)*)", re.MULTILINE)


def page() -> str:
    """The whole page."""
    parts = [_INTRO]
    for module, names in MODULES.items():
        found = import_module(module)
        entries = [
            entry(name, getattr(found, name)) for name in sorted(names or found.__all__, key=str.lower)
        ]
        parts.append(f"## `{module}`\n\n" + "\n".join(filter(None, entries)))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip("\n") + "\n"


def entry(name: str, thing: Any) -> str:
    """Heading and text of one name; empty for what has neither fields nor a signature."""
    if isinstance(thing, type) and thing.__module__ == BRIEF:
        body = _code(name, vars(thing).get("__init__", thing)) + _text(thing.__doc__)
    elif isinstance(thing, type) and attrs.has(thing):
        body = _text(thing.__doc__) + _table(thing) + _methods(thing)
    elif isinstance(thing, type):
        makers = [] if _is_protocol(thing) else [vars(base).get("__init__") for base in thing.__mro__]
        maker = next(filter(inspect.isfunction, makers), None)
        signature = "" if maker is None else _code(name, maker)
        bases = [f"`{base.__name__}`" for base in thing.__bases__ if base.__name__.startswith("Base")]
        signature += f"Based on {', '.join(bases)}.\n\n" if bases and "Exception" not in bases[0] else ""
        body = signature + _text(thing.__doc__) + _items(thing.__doc__) + _methods(thing)
    elif inspect.isfunction(thing):
        body = _code(name, thing) + _text(thing.__doc__) + _items(thing.__doc__)
    elif get_origin(thing) is not None:
        body = f"`{_type(thing)}`\n\n"
    else:
        return ""
    return f"### `{name}`\n\n{body}"


def described(doc: str | None) -> dict[str, str]:
    """What a docstring says of each attribute and argument."""
    found = {}
    for _, section in _SECTION.findall(inspect.cleandoc(doc or "") + "\n"):
        for names, text in _ITEM.findall(section):
            found.update(dict.fromkeys(re.split(r", ?", names), _line(text)))
    return found


def _table(cls: type) -> str:
    told: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        told.update(described(base.__doc__))
    fields = [field for field in attrs.fields(cls) if field.init]
    silent = [field.name for field in fields if field.name not in told]
    if silent:
        raise SystemExit(f"the docstring of {cls.__name__} has no Attributes: line for {', '.join(silent)}")
    if not fields:
        return ""
    rows = [
        f"| `{field.name}` | `{_cell(str(field.type))}` | {_default(field)} | {_cell(told[field.name])} |"
        for field in fields
    ]
    return "| field | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n\n"


def _default(field: Any) -> str:
    if field.default is attrs.NOTHING:
        return ""
    value = field.default.factory() if isinstance(field.default, attrs.Factory) else field.default  # type: ignore[arg-type]  # attrs types Factory as a function
    value = sorted(value) if isinstance(value, frozenset) else value
    return f"`{_cell(repr(value))}`"


def _methods(cls: type) -> str:
    """Public methods and properties that the class itself defines, with the first paragraph on each."""
    lines = []
    for name, member in vars(cls).items():
        function = getattr(member, "__func__", member)
        if name.startswith("_") or not (isinstance(member, property) or inspect.isfunction(function)):
            continue
        if isinstance(member, property):
            title, doc = f"{name}: {_returned(member.fget)}", member.__doc__
        else:
            title, doc = _signature(name, function), function.__doc__
        summary = _line(inspect.cleandoc(doc or "").partition("\n\n")[0])
        lines.append(f"- `{title}`" + (f": {summary}" if summary else ""))
    return "\n".join(lines) + "\n" * 2 * bool(lines)


def _items(doc: str | None) -> str:
    found = described(doc)
    return "".join(f"- `{name}`: {text}\n" for name, text in found.items()) + "\n" * bool(found)


def _text(doc: str | None) -> str:
    """The docstring without its lists of attributes and arguments."""
    text = _SECTION.sub("", inspect.cleandoc(doc or "") + "\n").strip()
    text = re.sub(r"^(Raises|Returns):\n", r"\1:\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"^ {4}(?=\S)", "- ", text, flags=re.MULTILINE)
    text = re.sub(r"\n {8}(?=\S)", "\n  ", text)
    return _code_marks(text) + "\n\n" if text else ""


def _code(name: str, function: Any) -> str:
    return f"```text\n{_signature(name, function)}\n```\n\n"


def _signature(name: str, function: Any) -> str:
    parts: list[str] = []
    star = False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            parts, star = [*parts, "*"], True
        star = star or parameter.kind is parameter.VAR_POSITIONAL
        parts.append(_parameter(parameter))
    prefix = "async " if inspect.iscoroutinefunction(function) else ""
    returns = "" if name[0].isupper() else f" -> {_returned(function)}"
    return f"{prefix}{name}({', '.join(parts)}){returns}"


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}
    text = stars.get(parameter.kind.name, "") + parameter.name
    if parameter.annotation is not parameter.empty:
        text += f": {_type(parameter.annotation)}"
    if parameter.default is not parameter.empty:
        default = parameter.default
        text += f" = {default.__name__ if isinstance(default, type) else repr(default)}"
    return text


def _returned(function: Any) -> str:
    return _type(inspect.signature(function).return_annotation)


def _type(found: Any) -> str:
    return found if isinstance(found, str) else str(inspect.formatannotation(found)).replace("typing.", "")


def _is_protocol(cls: type) -> bool:
    return bool(getattr(cls, "_is_protocol", False))


def _line(text: str) -> str:
    return _code_marks(" ".join(text.split()))


def _code_marks(text: str) -> str:
    return re.sub(r":\w+:`(\w+)`", r"`\1`", text.replace("``", "`"))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main(arguments: Iterator[str]) -> int:
    text = page()
    if "--check" in arguments:
        return int(PAGE.read_text("utf-8") != text)
    PAGE.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(iter(sys.argv[1:])))

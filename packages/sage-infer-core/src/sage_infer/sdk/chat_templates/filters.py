"""Filters, tests and methods of texts in templates, within the budget of the rendering."""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any

import jinja2
import jinja2.sandbox
import markupsafe

from sage_infer.sdk.chat_templates.budget import BUDGET, Budget, TemplateLimitError, as_text

__all__ = [
    "REJECTED_FILTERS",
    "check_percent",
    "check_text_method",
    "formatter_of",
    "limited_filter",
    "limited_test",
    "rejected",
]

_CALL = 4  # steps of a filter
_WIDEST = 1000  # padding, indentation or precision
_QUICK = frozenset(
    ("abs", "attr", "count", "d", "default", "filesizeformat", "first", "items", "last", "length", "random", "safe")
)  # fmt: skip
_SHALLOW = frozenset(
    ("batch", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr", "slice", "sum")
)
REJECTED_FILTERS = frozenset(("pprint", "urlize", "wordwrap", "xmlattr"))
_QUICK_TESTS = frozenset(
    ("boolean", "callable", "defined", "divisibleby", "escaped", "even", "false", "filter", "float", "integer",
     "iterable", "mapping", "none", "number", "odd", "sameas", "sequence", "string", "test", "true", "undefined")
)  # fmt: skip


def _check_width(what: str, *numbers: Any) -> None:
    for number in numbers:
        if isinstance(number, str):
            number = len(number)
        if isinstance(number, int | float) and not abs(number) <= _WIDEST:
            raise TemplateLimitError(f"{what} with {number} exceeds {_WIDEST}")


def _replaced(budget: Budget, text: Any, old: Any = "", new: Any = "", *_: Any) -> None:
    text, old, new = (value if isinstance(value, str) else as_text(value) for value in (text, old, new))
    budget.create(len(text) + (text.count(old) if old else len(text) + 1) * len(new))


_PLACE = re.compile(r"%%|%(\([^)]*\))?[#0\- +]*(\*|\d+)?(?:\.(\*|\d+))?")


def check_percent(budget: Budget, text: Any, *values: Any) -> None:
    """Reject a format with ``%`` whose result would be large."""
    text = str(text)
    for place in _PLACE.finditer(text):
        key, *widths = place.groups(default="")
        if "*" in widths or "(" in key[1:]:
            raise TemplateLimitError(f"the format {place[0][:80]!r} is not supported")
        _check_width("a format", *(int(width) for width in widths if width))
    budget.create((1 + text.count("%")) * (_WIDEST + sum(budget.visit(value) for value in values)))


def limited_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter ``name`` within the budget of the rendering."""
    skip = 1 if hasattr(function, "jinja_pass_arg") else 0  # the context or environment comes first

    @functools.wraps(function)
    def limited(*arguments: Any, **named: Any) -> Any:
        budget = BUDGET.get()
        lead, (value, *more) = arguments[:skip], arguments[skip:]
        options = [*more, *named.values()]
        budget.spend(_CALL)
        if name not in _QUICK:
            if isinstance(value, Iterator):
                value = budget.counted(value) if name in _SHALLOW else list(budget.counted(value))
            if name not in _SHALLOW:
                budget.visit(value)
            elif isinstance(value, Sized):
                budget.spend(len(value))
        for option in options:
            budget.visit(option)
        _check_filter(name, budget, value, more, named)
        result = function(*lead, value, *more, **named)
        if isinstance(result, str) and result is not value:
            budget.create(len(result))
        return result

    return limited


def _check_filter(
    name: str, budget: Budget, value: Any, more: Sequence[Any], named: Mapping[str, Any]
) -> None:
    """Reject what would be large before it exists."""
    options = [*more, *named.values()]
    if name in ("batch", "center", "indent", "round", "slice", "tojson"):
        _check_width(name, *(options[:1] if name in ("batch", "slice") else options))
    if name == "indent":
        width = named.get("width", more[0] if more else 4)
        width = len(width) if isinstance(width, str) else int(width)
        budget.create((1 + str(value).count("\n")) * width)
    elif name == "replace":
        _replaced(budget, value, *options)
    elif name == "format":
        check_percent(budget, value, *options)
    elif name == "join":
        size = sum(len(option) for option in options if isinstance(option, str))
        budget.create(budget.visit(value) + size * (len(value) if isinstance(value, Sized) else 0))
    elif name == "sum":
        start = named.get("start", more[1] if len(more) > 1 else 0)
        if not isinstance(start, int | float):
            raise TemplateLimitError("the filter sum adds numbers only")


def rejected(kind: str, name: str) -> Callable[..., Any]:
    def reject(*_: Any, **__: Any) -> Any:
        raise TemplateLimitError(f"the {kind} {name} is not supported")

    return reject


def limited_test(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    if name in _QUICK_TESTS:
        return function

    @functools.wraps(function)
    def limited(*arguments: Any) -> Any:
        budget = BUDGET.get()
        for argument in arguments:
            if not isinstance(argument, jinja2.Environment):
                budget.visit(argument)
        return function(*arguments)

    return limited


def check_text_method(budget: Budget, text: str, name: str, arguments: Sequence[Any]) -> None:
    """Reject the call of a text's method that would create a large one."""
    budget.read(text)
    for argument in arguments:
        budget.visit(argument)
    if name in ("center", "ljust", "rjust", "zfill"):
        _check_width(name, *arguments[:1])
    elif name == "expandtabs":
        _check_width(name, *arguments)
        budget.create(len(text) + text.count("\t") * _WIDEST)
    elif name == "replace":
        _replaced(budget, text, *arguments)
    elif name in ("split", "rsplit", "splitlines"):
        mark = arguments[0] if arguments else None
        budget.spend(text.count(mark) if isinstance(mark, str) and mark else len(text) // 4)
    elif name == "join" and arguments:
        budget.create(len(text) * len(arguments[0]) + budget.visit(arguments[0]))


class _Formatter(jinja2.sandbox.SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        return super().format_field(_limited_field(value, format_spec), format_spec)

    def convert_field(self, value: Any, conversion: Any) -> Any:
        return super().convert_field(_limited_field(value, ""), conversion)


class _EscapeFormatter(_Formatter, markupsafe.EscapeFormatter):
    pass


def _limited_field(value: Any, format_spec: str) -> Any:
    budget = BUDGET.get()
    budget.spend(1)
    _check_width("a format", *map(int, re.findall(r"\d+", format_spec)))
    budget.create(budget.visit(value) + (_WIDEST if format_spec else 0))
    return value


def formatter_of(environment: jinja2.Environment, text: str) -> string.Formatter:
    """Formats ``text`` within the budget."""
    if isinstance(text, markupsafe.Markup):
        return _EscapeFormatter(environment, escape=text.escape)
    return _Formatter(environment)

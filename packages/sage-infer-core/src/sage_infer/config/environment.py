"""Configuration from environment variables: ``SAGE_INFER_<SECTION>_<KEY>``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from typing import Any, get_args

from sage_infer.config.document import InvalidConfig, parse_scalar
from sage_infer.config.search import CONFIG_VARIABLE, DISABLE_VARIABLE
from sage_infer.config.settings import keys

__all__ = ["PREFIX", "variable_name", "variables", "variables_given"]

PREFIX = "SAGE_INFER_"
_OTHERS = (CONFIG_VARIABLE, DISABLE_VARIABLE, "SAGE_INFER_DEBUG")  # set no key of the configuration


def variable_name(section: str, key: str) -> str:
    return f"{PREFIX}{section}_{key}".upper()


@cache
def variables() -> Mapping[str, tuple[str, str]]:
    """Section and key of every variable, by the variable's name."""
    return {variable_name(section, key): (section, key) for section in keys() for key in keys()[section]}


def variables_given(environ: Mapping[str, str]) -> tuple[dict[str, dict[str, Any]], list[str], list[str]]:
    """``{section: {key: value}}`` that ``environ`` sets, problems, warnings. Empty variables set nothing."""
    data: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    warnings: list[str] = []
    for name, text in sorted(environ.items()):
        if not name.startswith(PREFIX) or not text.strip() or name in _OTHERS:
            continue
        if name not in variables():
            warnings.append(f"environment variable {name} is not one of sage-infer's{_nearest(name)}")
            continue
        section, key = variables()[name]
        try:
            data.setdefault(section, {})[key] = _value(text.strip(), section, key)
        except InvalidConfig as error:
            problems += [f"environment {name}: {problem}" for problem in error.problems]
    return data, problems, warnings


def _value(text: str, section: str, key: str) -> Any:
    kind = keys()[section][key].type
    if kind is str or set(get_args(kind)) == {str, type(None)}:
        # Text as it is: a model called 1e5, or a path with ": " in it, needs no YAML quotes in a shell.
        return None if text in ("null", "~") and kind is not str else text
    return parse_scalar(text)


def _nearest(name: str) -> str:
    # Without the prefix: what all have in common would make anything look near.
    known = [other.removeprefix(PREFIX) for other in (*variables(), *_OTHERS)]
    near = difflib.get_close_matches(name.removeprefix(PREFIX), known, n=1)
    return f"; did you mean {PREFIX}{near[0]}?" if near else " and is ignored"

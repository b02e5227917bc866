"""Configuration from environment variables: ``SAGE_INFER_<SECTION>_<KEY>``."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any, cast, get_args

from sage_infer.config_file.document import InvalidConfig, parse_scalar
from sage_infer.config_file.search import CONFIG_VARIABLE, DISABLE_VARIABLE, ROOT_VARIABLE
from sage_infer.config_file.settings import Config, keys

__all__ = ["PREFIX", "variable_name", "variables", "variables_given"]

PREFIX = "SAGE_INFER_"
# They set no key of the configuration.
_OTHERS = (CONFIG_VARIABLE, DISABLE_VARIABLE, ROOT_VARIABLE, "SAGE_INFER_DEBUG")


def variable_name(section: str, key: str) -> str:
    return f"{PREFIX}{section}_{key}".upper()


def variables(config: type[Config] = Config) -> Mapping[str, tuple[str, str]]:
    """Section and key of every variable, by the variable's name."""
    return _variables(cast(Hashable, config))


@cache
def _variables(config: Any) -> Mapping[str, tuple[str, str]]:
    known = keys(config)
    return {variable_name(section, key): (section, key) for section in known for key in known[section]}


def variables_given(
    environ: Mapping[str, str], config: type[Config] = Config
) -> tuple[dict[str, dict[str, Any]], list[str], list[str]]:
    """``{section: {key: value}}`` from ``environ``, problems, warnings. Empty variables are ignored."""
    data: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    warnings: list[str] = []
    for name, text in sorted(environ.items()):
        if not name.startswith(PREFIX) or not text.strip() or name in _OTHERS:
            continue
        if name not in variables(config):
            warnings.append(
                f"environment variable {name} is not a sage-infer variable{_nearest(name, config)}"
            )
            continue
        section, key = variables(config)[name]
        try:
            data.setdefault(section, {})[key] = _value(text.strip(), keys(config)[section][key].type)
        except InvalidConfig as error:
            problems += [f"environment {name}: {problem}" for problem in error.problems]
    return data, problems, warnings


def _value(text: str, kind: Any) -> Any:
    if kind is str or set(get_args(kind)) == {str, type(None)}:
        # Plain text: a model called 1e5, or a path with ": " in it, needs no YAML quotes in a shell.
        return None if text in ("null", "~") and kind is not str else text
    return parse_scalar(text)


def _nearest(name: str, config: type[Config]) -> str:
    # Compare without the common prefix, which would make all names look similar.
    known = [other.removeprefix(PREFIX) for other in (*variables(config), *_OTHERS)]
    near = difflib.get_close_matches(name.removeprefix(PREFIX), known, n=1)
    return f"; did you mean {PREFIX}{near[0]}?" if near else " and is ignored"

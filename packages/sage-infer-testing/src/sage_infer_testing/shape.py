"""Check that an object implements a protocol: all methods present, async if required, with matching parameters."""

from __future__ import annotations

import inspect
from typing import Any

__all__ = ["shape_problems"]

_MISSING = object()
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_KEYWORD = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def shape_problems(candidate: object, protocol: type) -> list[str]:
    """Return the reasons why ``candidate`` does not implement ``protocol``, one sentence each."""
    problems = []
    for name, promised in _members(protocol).items():
        found = inspect.getattr_static(candidate, name, _MISSING)
        if found is _MISSING or (found is None and callable(promised)):
            problems.append(f"{name} is missing")
        elif callable(promised):
            problems += _method_problems(name, getattr(candidate, name), promised)
    return problems


def _members(protocol: type) -> dict[str, Any]:
    return {
        name: value
        for base in reversed(protocol.__mro__)
        if getattr(base, "_is_protocol", False)
        for name, value in vars(base).items()
        if not name.startswith("_") and (callable(value) or isinstance(value, property))
    }


def _method_problems(name: str, method: Any, promised: Any) -> list[str]:
    if not callable(method):
        return [f"{name} is a {type(method).__name__}, not a method"]
    problems = []
    if inspect.iscoroutinefunction(promised) and not _returns_awaitable(method):
        problems.append(f"{name} must be async")
    if not inspect.iscoroutinefunction(promised) and inspect.iscoroutinefunction(method):
        problems.append(f"{name} must not be async")
    theirs = list(inspect.signature(method).parameters.values())
    by_name = {parameter.name: parameter for parameter in theirs}
    takes_any_keyword = any(p.kind is p.VAR_KEYWORD for p in theirs)
    ours = list(inspect.signature(promised).parameters.values())[1:]
    for wanted in ours:
        parameter = by_name.get(wanted.name)
        if parameter is None:
            if not (takes_any_keyword and wanted.kind is wanted.KEYWORD_ONLY):
                problems.append(f"{name} lacks the parameter {wanted.name!r}")
            continue
        if wanted.kind is wanted.KEYWORD_ONLY and parameter.kind not in _KEYWORD:
            problems.append(f"{name}: {wanted.name!r} must be accepted as a keyword")
        if wanted.kind in _POSITIONAL and parameter.kind not in _POSITIONAL:
            problems.append(f"{name}: {wanted.name!r} must be accepted by position")
        if wanted.default is not wanted.empty and parameter.default is parameter.empty:
            problems.append(f"{name}: {wanted.name!r} must have a default")
    known = {parameter.name for parameter in ours}
    problems += [
        f"{name} requires the parameter {parameter.name!r}, which is not in the contract"
        for parameter in theirs
        if parameter.name not in known
        and parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    return problems


def _returns_awaitable(method: Any) -> bool:
    """Return whether a method is async, or a plain function annotated as returning an awaitable."""
    returned = str(inspect.signature(method).return_annotation)
    return inspect.iscoroutinefunction(method) or any(
        word in returned for word in ("Awaitable", "Coroutine", "Future")
    )

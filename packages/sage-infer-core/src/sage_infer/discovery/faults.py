"""Faults of plug-ins, in words."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Mapping
from types import FunctionType, ModuleType
from typing import Literal

from attrs import frozen

from sage_infer import hookspecs
from sage_infer.version import CONTRACT_VERSION

__all__ = ["Fault", "contract_mismatch", "fault_of", "misnamed_hooks"]

CONTRACT_ATTRIBUTE = "SAGE_INFER_CONTRACT"
_MARK = f"{hookspecs.PROJECT}_impl"
_HOOKS = tuple(name for name in vars(hookspecs) if name.startswith("sage_infer_"))


@frozen
class Fault:
    """Why a plug-in or one of its specs cannot be used: one line, a fix, and a traceback if available."""

    kind: Literal["broken", "incompatible"]
    reason: str
    fix: str = ""
    detail: str = ""


def fault_of(what: str, error: BaseException) -> Fault:
    """The fault for an exception from a plug-in's code."""
    last_line = traceback.format_exception_only(error)[-1].strip()
    return Fault("broken", f"{what}: {last_line}", detail="".join(traceback.format_exception(error)))


def contract_mismatch(module: ModuleType, location: str, distribution: str) -> Fault | None:
    """Why the contract version declared by a module does not match; None if it matches or is not declared."""
    wanted = getattr(module, CONTRACT_ATTRIBUTE, None)
    if wanted is None:
        return None
    own_major, own_minor = (int(part) for part in CONTRACT_VERSION.split("."))
    try:
        major, minor = (int(part) for part in wanted.split("."))
    except (AttributeError, ValueError):
        rule = f"must be MAJOR.MINOR such as {CONTRACT_VERSION!r}, got {wanted!r}"
        return Fault("broken", f"{location}.{CONTRACT_ATTRIBUTE} {rule}")
    if (major, minor) <= (own_major, own_minor) and major == own_major:
        return None
    newer = (major, minor) > (own_major, own_minor)
    return Fault(
        "incompatible",
        f"written for contract {wanted}, but this sage-infer-core supports {CONTRACT_VERSION}",
        fix=f"pip install --upgrade {'sage-infer-core' if newer else distribution}",
    )


def misnamed_hooks(module: ModuleType) -> Mapping[str, Fault]:
    """Functions of a plug-in module that look like hooks but will not be called, by name, with the reason."""
    found = {}
    for name, value in vars(module).items():
        if not isinstance(value, FunctionType) or value.__module__ != module.__name__:
            continue
        options = getattr(value, _MARK, None)
        place = f"{module.__name__}.{name}()"
        hook = (options or {}).get("specname") or name
        if hook in _HOOKS:
            if options is None:
                found[name] = Fault("broken", f"{place} lacks @sage_infer.hookimpl, so it is never called")
            continue
        near = difflib.get_close_matches(hook, _HOOKS, n=1, cutoff=0.8)
        if options is not None:
            near = near or difflib.get_close_matches(f"sage_infer_{hook}", _HOOKS, n=1, cutoff=0.85)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(_HOOKS)}"
            found[name] = Fault("broken", f"{place} implements an unknown hook; {hint}")
        elif near and hook.startswith("sage_infer_"):
            found[name] = Fault(
                "broken", f"{place} is not a hook; did you mean {near[0]}, marked with @sage_infer.hookimpl?"
            )
    return found

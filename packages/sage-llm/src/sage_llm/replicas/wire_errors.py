"""Errors of the taxonomy as data."""

from __future__ import annotations

from typing import Any

from sage_infer.errors import (
    BY_CODE,
    Overloaded,
    PluginFailed,
    Problem,
    RequestCancelled,
    SageInferError,
    SchemaError,
)

from sage_llm.replicas.protocol import WireError

__all__ = ["from_wire", "to_wire"]


def to_wire(error: BaseException) -> WireError:
    """Return the error as data. An unexpected exception becomes ``PluginFailed``."""
    if not isinstance(error, SageInferError):
        return WireError(PluginFailed.code, f"the backend raised {type(error).__name__}: {error}")
    known = next(cls for cls in type(error).__mro__ if BY_CODE.get(getattr(cls, "code", "")) is cls)
    return WireError(known.code, str(error), _fields(error))


def from_wire(data: WireError) -> SageInferError:
    """Return the error that ``to_wire`` was called with, of the nearest class of the taxonomy."""
    cls, fields = BY_CODE.get(data.code, SageInferError), data.fields
    try:
        if cls is Overloaded:
            return Overloaded(data.message, retry_after=float(fields["retry_after"]))
        if cls is RequestCancelled:
            return RequestCancelled(data.message, by=fields["by"])
        if cls is SchemaError:
            problems = [Problem(path, message) for path, message in fields["problems"]]
            return SchemaError(fields["schema"], problems)
    except (KeyError, TypeError, ValueError):
        return SageInferError(data.message)
    return cls(data.message)


def _fields(error: SageInferError) -> dict[str, Any]:
    if isinstance(error, Overloaded):
        return {"retry_after": error.retry_after}
    if isinstance(error, RequestCancelled):
        return {"by": error.by}
    if isinstance(error, SchemaError):
        return {"schema": error.schema, "problems": [list(problem) for problem in error.problems]}
    return {}

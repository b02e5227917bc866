"""What an instance's error says about the instance and about the request."""

from __future__ import annotations

from typing import Literal

from sage_infer.errors import (
    CapabilityMismatch,
    EngineDead,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PluginFailed,
    RequestCancelled,
    SageInferError,
    UnsupportedFeature,
)

from sage_llm.manager.migration import NotMigratable

__all__ = ["Meaning", "as_sage_error", "meaning"]

Meaning = Literal["final", "busy", "lost", "fault"]
"""final: the request's own end. busy: the instance has no room. lost: the instance has ended. fault: it failed
otherwise, and another instance may succeed.
"""

_FINAL = (InvalidRequest, UnsupportedFeature, CapabilityMismatch, ModelNotFound, NotMigratable)


def meaning(error: BaseException) -> Meaning:
    if isinstance(error, RequestCancelled):
        return "lost" if error.by == "close" else "final"
    if isinstance(error, _FINAL):
        return "final"
    if isinstance(error, Overloaded):
        return "busy"
    return "lost" if isinstance(error, EngineDead) else "fault"


def as_sage_error(error: BaseException, instance_id: str) -> SageInferError:
    """The error itself, or one that names the instance for an unexpected one."""
    if isinstance(error, SageInferError):
        return error
    found = PluginFailed(f"instance {instance_id} failed: {type(error).__name__}: {error}")
    found.__cause__ = error
    return found

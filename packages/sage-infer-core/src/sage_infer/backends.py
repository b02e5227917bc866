"""Open a backend by name."""

from __future__ import annotations

import difflib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal, overload

from sage_infer.contracts import EmbeddingBackend, HybridInferenceBackend, InferenceBackend, ProgressReporting
from sage_infer.contracts.reporting import ProgressReport
from sage_infer.discovery import BackendInfo, backend_info, discover
from sage_infer.errors import BackendUnavailable, InvalidRequest, UnsupportedFeature
from sage_infer.factories import blame, call_factory
from sage_infer.models import resolve_model
from sage_infer.plugins import require_ready
from sage_infer.quantization import QuantProfileLike, as_quant_profile
from sage_infer.schemas import ModelDescriptor
from sage_infer.specs import BackendSpec, ServedType

__all__ = ["create_backend", "find_backend", "list_backends", "open_backend"]


def list_backends() -> list[BackendInfo]:
    """Return every installed backend with its state, sorted by name."""
    return backend_info(discover())


def find_backend(name: str) -> BackendInfo:
    """Return the backend with this name, in any state.

    Raises:
        BackendUnavailable: no plug-in registers the name; the message suggests the nearest name.
    """
    rows = list_backends()
    for row in rows:
        if row.name == name:
            return row
    known = sorted({row.name for row in rows})
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"installed: {', '.join(known) or 'none'}"
    raise BackendUnavailable(f"no backend {name!r}; {hint} (`sage infer backend list` shows all)")


@overload
def open_backend(
    name: str,
    *,
    model: str | ModelDescriptor,
    serves: Literal["llm"],
    quant_profile: QuantProfileLike | None = None,
    on_progress: ProgressReport | None = None,
    **options: Any,
) -> AbstractAsyncContextManager[InferenceBackend]: ...
@overload
def open_backend(
    name: str,
    *,
    model: str | ModelDescriptor,
    serves: Literal["embedding", "reranker"],
    quant_profile: QuantProfileLike | None = None,
    on_progress: ProgressReport | None = None,
    **options: Any,
) -> AbstractAsyncContextManager[EmbeddingBackend]: ...
@overload
def open_backend(
    name: str,
    *,
    model: str | ModelDescriptor | None = None,
    serves: Literal["hybrid"],
    quant_profile: QuantProfileLike | None = None,
    on_progress: ProgressReport | None = None,
    **options: Any,
) -> AbstractAsyncContextManager[HybridInferenceBackend]: ...
@overload
def open_backend(
    name: str,
    *,
    model: str | ModelDescriptor | None = None,
    serves: None = None,
    quant_profile: QuantProfileLike | None = None,
    on_progress: ProgressReport | None = None,
    **options: Any,
) -> AbstractAsyncContextManager[Any]: ...
def open_backend(
    name: str,
    *,
    model: str | ModelDescriptor | None = None,
    serves: ServedType | None = None,
    quant_profile: QuantProfileLike | None = None,
    on_progress: ProgressReport | None = None,
    **options: Any,
) -> AbstractAsyncContextManager[Any]:
    """Open a backend with a model. The backend is started on entry and closed on exit.

    ``model`` is any form that ``resolve_model`` accepts; a hybrid backend needs none. ``options`` are passed to the
    backend (``sage infer backend show`` lists them). ``serves`` is the expected contract, for type checkers and for an
    early error. ``quant_profile`` is a profile, its fields, or a JSON or YAML file; it is applied before the
    start. ``on_progress(stage, share)`` is called from any thread while a ``ProgressReporting`` backend loads.

    Raises:
        BackendUnavailable: the backend is unknown, not ready on this machine, or of another contract, or its code
            failed. The message names the wheel, the function and the error.
        ConfigError: the backend has no such option.
        ModelNotFound, ModelFileError: the model is missing or cannot be read.
        InvalidRequest: a model is required, or the profile cannot be read.
        UnsupportedFeature, CapabilityMismatch: the backend does not support quantization profiles, or not this one.
    """
    return _opened(name, model, serves, quant_profile, on_progress, options)


@asynccontextmanager
async def _opened(
    name: str,
    model: str | ModelDescriptor | None,
    serves: ServedType | None,
    quant_profile: QuantProfileLike | None,
    on_progress: ProgressReport | None,
    options: dict[str, Any],
) -> AsyncIterator[Any]:
    info, backend = _created(name, model, serves, quant_profile, options)
    if on_progress is not None and isinstance(backend, ProgressReporting):
        with blame(f"{info.title}: on_progress() failed"):
            backend.on_progress(on_progress)
    try:
        with blame(f"{info.title} failed to start"):
            await backend.start()
        yield backend
    finally:
        with blame(f"{info.title} failed to close"):
            await backend.close()


def create_backend(
    name: str,
    *,
    model: str | ModelDescriptor | None = None,
    serves: ServedType | None = None,
    quant_profile: QuantProfileLike | None = None,
    **options: Any,
) -> Any:
    """Return the backend object without starting it. Raises the same errors as ``open_backend``."""
    return _created(name, model, serves, quant_profile, options)[1]


def _created(
    name: str,
    model: str | ModelDescriptor | None,
    serves: ServedType | None,
    quant_profile: QuantProfileLike | None,
    options: dict[str, Any],
) -> tuple[BackendInfo, Any]:
    info = find_backend(name)
    spec = require_ready(info)
    if serves is not None and serves not in spec.serves:
        raise BackendUnavailable(f"backend {name!r} serves {', '.join(sorted(spec.serves))}, not {serves}")
    if isinstance(model, str):
        any_format = spec.sizes is not None
        model = resolve_model(model, model_type=_model_type(spec, serves), any_format=any_format)
    profile = None if quant_profile is None else as_quant_profile(quant_profile)
    if model is None and "hybrid" not in spec.serves:
        raise InvalidRequest(f"backend {name!r} runs one model; name it (`sage infer model list`)")
    fixed = {} if model is None else {"model": model}
    backend = call_factory(spec.factory, what=info.title, options=options, **fixed)
    if profile is not None:
        if not hasattr(backend, "load_quant_profile"):
            raise UnsupportedFeature(f"backend {name!r} does not support quantization profiles; leave it out")
        with blame(f"{info.title}: load_quant_profile() failed"):
            backend.load_quant_profile(profile)
    return info, backend


def _model_type(spec: BackendSpec, serves: ServedType | None) -> Any:
    """Return the model type if only one is possible, or None to detect it from the files."""
    types = {serves} if serves is not None else set(spec.serves)
    return next(iter(types)) if len(types) == 1 and "hybrid" not in types else None

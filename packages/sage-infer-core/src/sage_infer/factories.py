"""From a spec's dotted path to the object that it names."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from sage_infer.errors import BackendUnavailable, SageInferError

__all__ = ["load_object"]


def load_object(path: str, *, what: str) -> Callable[..., Any]:
    """Resolve ``package.module:attribute``.

    Raises:
        BackendUnavailable: the import fails or there is no such attribute; the cause is chained.
    """
    module_name, _, attribute = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except SageInferError:
        raise
    except Exception as error:
        raise BackendUnavailable(
            f"{what} cannot be loaded from {path}: {type(error).__name__}: {error}"
        ) from error
    return found  # type: ignore[no-any-return]  # the spec promises a callable

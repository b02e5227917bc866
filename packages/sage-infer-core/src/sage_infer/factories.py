"""From a spec's dotted path to the object that it names, and calls of plug-ins' code whose errors name the plug-in."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sage_infer.errors import BackendUnavailable, ConfigError, SageInferError

__all__ = ["blame", "call_factory", "call_path", "check_options", "is_plugins_fault", "load_object"]


def load_object(path: str, *, what: str) -> Callable[..., Any]:
    """Resolve ``package.module:attribute``.

    Raises:
        BackendUnavailable: the import fails or there is no such attribute; the cause is chained.
    """
    module_name, _, attribute = path.partition(":")
    with blame(f"{what} cannot be loaded from {path}"):
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    return found  # type: ignore[no-any-return]  # the spec promises a callable


def call_path(path: str, /, *arguments: Any, what: str, **keywords: Any) -> Any:
    """Load what ``path`` names and call it.

    Raises:
        BackendUnavailable: loading or the call failed with an error of the plug-in's own.
        SageInferError: what the called function raises on purpose.
    """
    function = load_object(path, what=what)
    with blame(f"{what}: {path} failed"):
        return function(*arguments, **keywords)


def call_factory(path: str, /, *, what: str, options: Mapping[str, Any], **fixed: Any) -> Any:
    """Load a factory and call it with ``fixed`` arguments and the user's ``options``.

    Raises:
        ConfigError: an option that the factory does not have; the message names those that it has.
        BackendUnavailable: loading or the call failed with an error of the plug-in's own.
        SageInferError: what the factory raises on purpose.
    """
    factory = load_object(path, what=what)
    check_options(factory, options, what=what, fixed=fixed)
    given = f" with options {', '.join(options)}" if options else ""
    with blame(f"{what}: {path} failed{given}"):
        return factory(**fixed, **options)


def check_options(
    factory: Callable[..., Any], options: Mapping[str, Any], *, what: str, fixed: Mapping[str, Any]
) -> None:
    """Refuse options that a factory's signature does not have.

    Raises:
        ConfigError: it names the option and the nearest one, or all.
    """
    if not options:
        return
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # no Python signature: the call itself will say
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    known = sorted(set(parameters) - set(fixed) - {"model"})
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(known) or 'none'}"
            raise ConfigError(f"{what} has no option {option!r}; {hint}")


@contextmanager
def blame(what: str) -> Iterator[None]:
    """Turn whatever a plug-in's code raises by mistake into one error that begins with ``what``.

    Errors of ``sage_infer.errors`` pass as they are, and so do Ctrl-C and the cancellation of a task.

    Raises:
        BackendUnavailable: with the type and text of the plug-in's error, which is chained.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, SageInferError) or not is_plugins_fault(error):
            raise
        text = " ".join(str(error).split())
        cause = f"{type(error).__name__}: {text}" if text else type(error).__name__
        raise BackendUnavailable(f"{what}: {cause}") from error


def is_plugins_fault(error: BaseException) -> bool:
    """Whether an error that came out of a plug-in's code is its own: also ``SystemExit`` and a panic of native code,
    which are no ``Exception``. Ctrl-C and the cancellation of a task are not.
    """
    if type(error) is KeyboardInterrupt or isinstance(error, GeneratorExit):
        return False
    return type(error).__name__ != "CancelledError"  # by name, as importing asyncio is slow

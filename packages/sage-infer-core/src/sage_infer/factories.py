"""Loading of dotted paths in specs, and calls of plug-ins' code with errors that name the plug-in."""

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
    """Import ``package.module:attribute``.

    Raises:
        BackendUnavailable: the import failed or the attribute does not exist; the cause is chained.
    """
    module_name, _, attribute = path.partition(":")
    with blame(f"{what} cannot be loaded from {path}"):
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    return found  # type: ignore[no-any-return]  # the spec promises a callable


def call_path(path: str, /, *arguments: Any, what: str, **keywords: Any) -> Any:
    """Load the function at ``path`` and call it.

    Raises:
        BackendUnavailable: loading or the call failed with an unexpected error.
        SageInferError: raised by the function on purpose.
    """
    function = load_object(path, what=what)
    with blame(f"{what}: {path} failed"):
        return function(*arguments, **keywords)


def call_factory(path: str, /, *, what: str, options: Mapping[str, Any], **fixed: Any) -> Any:
    """Load a factory and call it with ``fixed`` arguments and the user's ``options``.

    Raises:
        ConfigError: an option is not a parameter of the factory; the message suggests the nearest one, or lists all.
        BackendUnavailable: loading or the call failed with an unexpected error.
        SageInferError: raised by the factory on purpose.
    """
    factory = load_object(path, what=what)
    check_options(factory, options, what=what, fixed=fixed)
    given = f" with options {', '.join(options)}" if options else ""
    with blame(f"{what}: {path} failed{given}"):
        return factory(**fixed, **options)


def check_options(
    factory: Callable[..., Any], options: Mapping[str, Any], *, what: str, fixed: Mapping[str, Any]
) -> None:
    """Reject options that are not parameters of a factory.

    Raises:
        ConfigError: the message names the option, and the nearest parameter or all of them.
    """
    if not options:
        return
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # no Python signature: the call itself reports unknown options
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
    """Convert unexpected errors in a plug-in's code into one error whose message starts with ``what``.

    Errors of ``sage_infer.errors``, Ctrl-C and task cancellation pass through.

    Raises:
        BackendUnavailable: the message has the type and text of the plug-in's error, which is chained.
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
    """Return whether an error raised in a plug-in's code is a fault of the plug-in.

    This includes ``SystemExit`` and panics of native code, which are not subclasses of ``Exception``. Ctrl-C and task
    cancellation are not faults.
    """
    if type(error) is KeyboardInterrupt or isinstance(error, GeneratorExit):
        return False
    return type(error).__name__ != "CancelledError"  # by name, as importing asyncio is slow

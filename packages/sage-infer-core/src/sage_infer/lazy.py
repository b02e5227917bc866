"""Front doors that import what is behind them when it is asked for (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module

__all__ = ["lazy_exports"]


def lazy_exports(package: str, homes: Mapping[str, str]) -> Callable[[str], object]:
    """A ``__getattr__`` for ``package`` that takes each public name from its home in ``homes``, a submodule
    or a module with its full name.
    """

    def __getattr__(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        module = home if home.startswith("sage_infer.") else f"{package}.{home}"
        value: object = getattr(import_module(module), name)
        setattr(sys.modules[package], name, value)
        return value

    return __getattr__

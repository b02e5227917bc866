"""Commands that run a module of this Python in a new process."""

from __future__ import annotations

import sys

__all__ = ["module_command"]

_SAFE_PATH = "import runpy, sys; del sys.path[0]; runpy.run_module(sys.argv.pop(1), None, '__main__', True)"


def module_command(module: str) -> list[str]:
    """``python -P -m module``: files in the current folder do not take the place of modules.

    Python 3.10 has no ``-P``; the command has the same effect there.
    """
    how = ["-c", _SAFE_PATH] if sys.version_info < (3, 11) else ["-P", "-m"]
    return [sys.executable, *how, module]

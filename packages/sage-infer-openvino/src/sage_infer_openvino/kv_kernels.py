"""Whether the compiled loops of ``kv_format`` can be used.

They need Numba (``pip install "sage-infer-openvino[compiled]"``; vLLM brings it too). It compiles them in a thread,
once per machine (about ten seconds; then a second to read its cache), and NumPy computes until they are ready: no
request waits for a compiler.
"""

from __future__ import annotations

import logging
import threading
from importlib import import_module
from importlib.util import find_spec
from typing import Any

__all__ = ["compiled", "wait", "warm_up"]

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_thread: threading.Thread | None = None
_module: Any = None


def warm_up() -> None:
    """Start to compile, if Numba is installed and nobody has started before."""
    global _thread
    with _lock:
        if _thread is None and find_spec("numba") is not None:
            _thread = threading.Thread(target=_compile, name="sage-kv-kernels")
            _thread.start()


def compiled() -> Any:
    """The module ``kv_compiled``; None until it is ready, and without Numba."""
    return _module


def wait() -> bool:
    """Wait until the loops are ready; False if they never will be."""
    warm_up()
    if _thread is not None:
        _thread.join()
    return _module is not None


def _compile() -> None:
    global _module
    try:
        from numba import config

        if not config.DISABLE_JIT:
            _module = import_module("sage_infer_openvino.kv_compiled")
    except Exception as error:  # a Numba that does not fit NumPy or the CPU: conversion works without it
        _log.warning(
            "KV pages are converted without compiled loops, which is slower: Numba failed: %s", error
        )

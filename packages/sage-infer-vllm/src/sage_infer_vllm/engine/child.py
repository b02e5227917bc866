"""Entry module of spawned processes of the engine: they form their own process group, exit with their parent, and
report failures to it.

``process.engine_start`` makes multiprocessing import this module instead of the user's main module. Otherwise the main
module would run a second time, and fail in every script without an ``if __name__`` guard. Forked processes, which
import nothing, get the same from ``process.engine_start``.
"""

from __future__ import annotations

import os
from multiprocessing.process import BaseProcess

from sage_infer_vllm.engine.process import lead_group, reporting

__all__ = ["report_failures"]


def report_failures() -> None:
    """Report exceptions of the process's target, which multiprocessing only prints."""
    BaseProcess.run = reporting(BaseProcess.run)  # type: ignore[method-assign, assignment]  # in this process alone


if __name__ == "__mp_main__":
    report_failures()
    if os.environ.get("SAGE_INFER_VLLM_PARENT") == str(os.getppid()):
        lead_group()

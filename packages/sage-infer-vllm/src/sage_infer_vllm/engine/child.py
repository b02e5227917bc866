"""Entry module of the engine's processes: they form their own process group, exit with their parent, and
report failures to it.

``process.engine_start`` makes multiprocessing import this module instead of the user's main module. Otherwise the main
module would run a second time, and fail in every script without an ``if __name__`` guard.
"""

from __future__ import annotations

import multiprocessing.process
import os
import signal
import threading
from contextlib import suppress
from typing import Any

from sage_infer_vllm.engine.process import wait_for_end
from sage_infer_vllm.engine.start_reports import report_failure

__all__ = ["lead_group", "report_failures"]


def lead_group() -> None:
    """Become the leader of a process group that is killed when the parent process exits."""
    with suppress(OSError):
        os.setpgid(0, 0)
    threading.Thread(target=_end_with, args=(os.getppid(),), name="sage-infer-parent", daemon=True).start()


def _end_with(parent: int) -> None:
    wait_for_end([parent])
    if os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)  # if there is no own group, kill only this process


def report_failures() -> None:
    """Report exceptions of the process's target, which multiprocessing only prints."""
    run = multiprocessing.process.BaseProcess.run

    def reporting(self: Any) -> None:
        try:
            run(self)
        except Exception as error:
            report_failure(error)
            raise

    multiprocessing.process.BaseProcess.run = reporting  # type: ignore[method-assign]  # in this process alone


if __name__ == "__mp_main__":
    report_failures()
    if os.environ.get("SAGE_INFER_VLLM_PARENT") == str(os.getppid()):
        lead_group()

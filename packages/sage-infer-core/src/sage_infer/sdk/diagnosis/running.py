"""Run checks so that none can hang or break the others."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import monotonic

from sage_infer.sdk.diagnosis.findings import Check, Finding
from sage_infer.sdk.diagnosis.machine import Machine

__all__ = ["LIMIT_S", "run_checks"]

LIMIT_S = 20.0
"""Time for all checks together, in seconds. They read small files; only a hanging file system takes longer."""


def run_checks(
    checks: Sequence[Check], machine: Machine, *, limit_s: float = LIMIT_S
) -> list[tuple[Check, Finding]]:
    """The findings of all checks, in the order of the checks.

    A check that raises, or does not finish in time, is a finding itself.
    """
    results: list[list[Finding] | None] = [None] * len(checks)

    def run(index: int) -> None:
        try:
            results[index] = list(checks[index].find(machine))
        except BaseException as error:  # code of a vendor's wheel, which may also call sys.exit
            results[index] = [
                Finding(
                    what=f"the check failed: {type(error).__name__}: {' '.join(str(error).split())}",
                    fix="report it to the authors of the wheel that declares it",
                )
            ]

    # Daemons, because a thread that waits for a dead network share cannot be ended.
    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(checks))]
    end = monotonic() + limit_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - monotonic()))
    found = []
    for check, result in zip(checks, results, strict=True):
        if result is None:
            late = Finding(
                what=f"the check did not finish within {limit_s:g} s; a file system hangs",
                fix="look for hanging mounts with `mount` and `dmesg`",
                severity="warning",
            )
            result = [late]
        found += [(check, finding) for finding in result]
    return found

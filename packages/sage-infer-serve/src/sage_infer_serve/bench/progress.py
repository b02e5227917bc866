"""Progress of a run, on a terminal's stderr.

One short line twice a second: a progress bar drawn more often, from another thread, would affect the latencies.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TextIO

from attrs import define, field

__all__ = ["Progress", "shown"]

_EVERY_S = 0.5
_WIDTH = 24


@define
class Progress:
    """Completed requests, out of ``total`` or until ``duration_s``, whichever comes first."""

    total: int | None
    duration_s: float | None
    ended: int = 0
    failed: int = 0
    began: float = field(factory=time.perf_counter)

    def count(self, *, failed: bool) -> None:
        self.ended += 1
        self.failed += failed

    def line(self) -> str:
        passed = time.perf_counter() - self.began
        shares = [
            self.ended / self.total if self.total else 0.0,
            passed / self.duration_s if self.duration_s else 0.0,
        ]
        share = min(1.0, max(shares))
        bar = "█" * round(share * _WIDTH)
        of = f" of {self.total:,}" if self.total else ""
        errors = f", {self.failed:,} failed" if self.failed else ""
        return f"{bar:░<{_WIDTH}} {share:4.0%}  {self.ended:,}{of} requests, {passed:.0f} s{errors}"


@asynccontextmanager
async def shown(what: str, progress: Progress, out: TextIO | None = None) -> AsyncIterator[None]:
    """Show progress while the body runs; if stderr is not a terminal, only the start."""
    out = sys.stderr if out is None else out
    if not out.isatty():
        print(f"{what} …", file=out)
        yield
        return

    async def redraw() -> None:
        while True:
            print(f"\r{what}  {progress.line()}\x1b[K", end="", file=out, flush=True)
            await asyncio.sleep(_EVERY_S)

    drawing = asyncio.create_task(redraw())
    try:
        yield
    finally:
        drawing.cancel()
        print("\r\x1b[K", end="", file=out, flush=True)

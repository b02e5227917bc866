"""Standard output and standard error of a server, which may outlive their reader."""

from __future__ import annotations

import io
import sys
from typing import Any

__all__ = ["survive_closed_outputs"]


class _Pipe(io.FileIO):
    """Discards writes after the reader has closed the pipe."""

    def write(self, data: Any, /) -> Any:
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)


def survive_closed_outputs() -> None:
    """Ignore writes to closed pipes, so that messages cannot prevent a server from serving or stopping.

    Replaced streams, such as those of tests, are unchanged.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream is not getattr(sys, f"__{name}__"):
            continue
        stream.flush()
        pipe: Any = io.BufferedWriter(_Pipe(stream.fileno(), "w", closefd=False))
        text = io.TextIOWrapper(
            pipe, encoding=stream.encoding, errors=stream.errors, line_buffering=stream.line_buffering
        )
        setattr(sys, name, text)

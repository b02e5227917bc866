"""Standard output and standard error of a server, which may outlive whoever reads them."""

from __future__ import annotations

import io
import sys
from typing import Any

__all__ = ["survive_closed_outputs"]


class _Pipe(io.FileIO):
    """Discards what is written once the reader has gone."""

    def write(self, data: Any, /) -> Any:
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)


def survive_closed_outputs() -> None:
    """Let writes to a closed pipe have no effect, so that no message can keep a server from serving or from stopping.

    Streams that something has replaced, such as a test's, stay as they are.
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

"""Parse server-sent events from pieces of a stream.

The format is that of https://html.spec.whatwg.org/multipage/server-sent-events.html; only the data of an event is kept.
"""

from __future__ import annotations

__all__ = ["EventParser"]

_BOM = b"\xef\xbb\xbf"


class EventParser:
    """``feed`` accepts bytes split anywhere, and returns the data of completed events."""

    __slots__ = ("_after_return", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        self._after_return = False  # the previous piece ended with \r, which a \n may follow

    def feed(self, piece: bytes) -> list[bytes]:
        if not piece:
            return []
        if self._after_return and piece[0] == 10:
            piece = piece[1:]
            self._after_return = False
        if b"\r" in piece:
            self._after_return = piece[-1] == 13
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        elif piece:
            self._after_return = False
        *blocks, self._rest = (self._rest + piece).split(b"\n\n")
        return [data for block in blocks if (data := _data(block)) is not None]


def _data(block: bytes) -> bytes | None:
    """The data of one event's lines; None without data, which is not an event."""
    if block.startswith(b"data: ") and b"\n" not in block:  # nearly every event
        return block[6:]
    found = []
    for line in block.removeprefix(_BOM).split(b"\n"):
        name, _, value = line.partition(b":")
        if name == b"data":
            found.append(value.removeprefix(b" "))
    return b"\n".join(found) if found else None

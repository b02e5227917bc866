"""Estimate of a body's decoding cost, before it is decoded.

A body of 16 MB may be one string, decoded in milliseconds, or five million empty objects, which block the event loop
for half a second and use a gigabyte. So values are counted first, in pieces, and other requests proceed in between.
"""

from __future__ import annotations

import asyncio

import msgspec

from sage_infer_serve.http.errors import wrong_request

__all__ = ["LIGHT", "check_weight"]

LIGHT = 64 * 1024
"""Maximum bytes of a body that is not checked."""

_PIECE = 64 * 1024
_MOST = 2**19  # values; an object counts as four, according to its cost. About 50 ms
_FIELD_BYTES = {
    "messages": None, "prompt": None, "input": None, "documents": None, "query": None, "tokens": None,
    "tools": 2**20, "functions": 2**20, "response_format": 2**20, "structured_outputs": 2**20, "guided_json": 2**20,
    "guided_grammar": 2**20, "guided_choice": 2**20,
}  # fmt: skip
"""Maximum bytes per field; the default applies to others. None: only the body's limit."""
_OTHER_FIELD_BYTES = 2**18

_top_level = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


async def check_weight(body: bytes, known: frozenset[str]) -> None:
    """Reject a body with too many values or a too long field; lengths of unknown fields are not checked.

    Raises:
        HTTPError: there are too many values, or a field is too long.
    """
    if len(body) <= LIGHT:
        return
    weight, in_text, start = 0, False, 0
    while start < len(body):
        piece = body[start : start + _PIECE]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2 and len(piece) > 1:
            piece = piece[:-1]  # do not split an escape sequence
        start += len(piece)
        added, in_text = _weigh(piece, in_text)
        weight += added
        if weight > _MOST:
            raise wrong_request(f"the body has more than {_MOST} values; split it into smaller requests")
        await asyncio.sleep(0)
    try:
        fields = _top_level(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return  # the decoder reports the error
    for name, value in fields.items():
        most = _FIELD_BYTES.get(name, _OTHER_FIELD_BYTES)
        if most is not None and name in known and len(bytes(value)) > most:
            raise wrong_request(f"{name} has more than {most} bytes of JSON; shorten it", name)


def _weigh(piece: bytes, in_text: bool) -> tuple[int, bool]:
    """Weight of a piece of JSON, and whether it ends inside a string."""
    if b"\\" in piece:
        piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
    parts = piece.split(b'"')
    between = b"".join(parts[1 if in_text else 0 :: 2])
    quotes = len(parts) - 1
    texts = (quotes + (not in_text)) // 2  # strings that begin in this piece
    weight = between.count(b",") + 4 * between.count(b"{") + 2 * between.count(b"[") + texts
    return weight, in_text ^ bool(quotes % 2)

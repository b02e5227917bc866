"""One connection of the protocol: frames in, frames out, back-pressure, loss."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

import msgspec

from sage_llm.replicas.protocol import MAX_FRAME_BYTES, PART_BYTES, Part

__all__ = ["Link", "encode"]

_HEAD = 4
_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode


class Link(asyncio.Protocol):
    """Sends frames, and passes received ones to ``on_frame``.

    ``on_made()`` is called when the connection is open, and ``on_lost(reason)`` once at its end.

    A peer that sends anything but frames of ``incoming`` is disconnected.

    Attributes:
        silent_s: how long the peer has sent no complete frame, in seconds. ``tick`` measures it, and leaves out time in
            which this process itself did not run.
    """

    def __init__(
        self,
        incoming: Any,
        on_frame: Callable[[Any], object],
        on_lost: Callable[[str], object],
        on_made: Callable[[], object] | None = None,
    ) -> None:
        self._decode = msgspec.msgpack.Decoder(incoming).decode
        self._on_frame, self._on_lost, self._on_made = on_frame, on_lost, on_made
        self._transport: asyncio.Transport | None = None
        self._pending = bytearray()
        self._scratch = bytearray()
        self._writable: asyncio.Future[None] | None = None
        self._reason = ""
        self.silent_s = 0.0
        self._ticked_at = time.monotonic()

    def tick(self, interval_s: float) -> None:
        """Measure the silence of the peer; call this every ``interval_s`` seconds."""
        now = time.monotonic()
        self.silent_s += min(now - self._ticked_at, 2 * interval_s)
        self._ticked_at = now

    # --- sending

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def is_congested(self) -> bool:
        """Whether the peer reads more slowly than this side writes."""
        return self._writable is not None

    def send(self, frame: Any) -> None:
        """Send a frame; does nothing after the loss of the connection."""
        if self._transport is None or self._transport.is_closing():
            return
        _encoder.encode_into(frame, self._scratch, _HEAD)
        self._scratch[:_HEAD] = (len(self._scratch) - _HEAD).to_bytes(_HEAD, "big")
        self._transport.write(bytes(self._scratch))

    async def send_parts(self, call: int, data: bytes) -> bytes:
        """Send long data ahead in parts. Return what belongs into the call's own frame."""
        if len(data) <= PART_BYTES:
            return data
        for start in range(0, len(data), PART_BYTES):
            self.send(Part(call, data[start : start + PART_BYTES]))
            await self.drain()
        return b""

    async def drain(self) -> None:
        """Wait until the peer has read most of what was sent, or the connection is lost."""
        while self._writable is not None:
            await asyncio.shield(self._writable)

    def close(self, reason: str) -> None:
        """Close the connection after sending what is pending; ``reason`` is passed to ``on_lost``."""
        self._reason = self._reason or reason
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: str) -> None:
        """Close the connection immediately; ``reason`` is passed to ``on_lost``."""
        self._reason = self._reason or reason
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._on_made is not None:
            self._on_made()

    def data_received(self, data: bytes) -> None:
        if self._pending:
            self._pending += data
            used = self._parse(memoryview(bytes(self._pending))) if self._is_complete() else 0
            del self._pending[:used]
        else:
            used = self._parse(memoryview(data))
            self._pending += data[used:]

    def _is_complete(self) -> bool:
        """Return whether the pending bytes contain a frame, or can never be one."""
        if len(self._pending) < _HEAD:
            return False
        length = int.from_bytes(self._pending[:_HEAD], "big")
        return length > MAX_FRAME_BYTES or len(self._pending) >= _HEAD + length

    def _parse(self, data: memoryview) -> int:
        """Handle all complete frames; return the number of bytes that they had."""
        at, end = 0, len(data)
        while end - at >= _HEAD:
            length = int.from_bytes(data[at : at + _HEAD], "big")
            if length > MAX_FRAME_BYTES:
                self.abort(f"the peer sent a frame of {length} bytes; the limit is {MAX_FRAME_BYTES}")
                return end
            if end - at < _HEAD + length:
                break
            try:
                frame = self._decode(data[at + _HEAD : at + _HEAD + length])
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                self.abort(f"the peer sent a frame that is not of this protocol: {error}")
                return end
            at += _HEAD + length
            self.silent_s = 0.0
            self._on_frame(frame)
        return at

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        waiting, self._writable = self._writable, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self.resume_writing()
        reason = self._reason or (f"connection lost: {error}" if error else "the peer closed the connection")
        self._on_lost(reason)

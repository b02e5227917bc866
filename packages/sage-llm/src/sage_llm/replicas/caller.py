"""Calls and streams of one client over one connection."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import msgspec
from sage_infer.contracts import KVEvents
from sage_infer.errors import EngineDead, InvalidRequest, RequestCancelled, SageInferError
from sage_infer.schemas import TokenDelta

from sage_llm.replicas import calls
from sage_llm.replicas.frame_stream import FrameStream
from sage_llm.replicas.link import Link, encode
from sage_llm.replicas.protocol import (
    Call,
    CallCancel,
    Credit,
    End,
    Fail,
    FromServer,
    Gauges,
    Hello,
    KVFrame,
    Part,
    Result,
    Step,
    StreamCancel,
)
from sage_llm.replicas.wire_errors import from_wire

__all__ = ["Caller", "KVStream"]


class KVStream:
    """KV events that have arrived and were not read."""

    def __init__(self) -> None:
        self._items: asyncio.Queue[KVEvents | SageInferError | None] = asyncio.Queue()

    def put(self, events: KVEvents) -> None:
        self._items.put_nowait(events)

    def end(self, error: SageInferError | None) -> None:
        self._items.put_nowait(error)

    async def get(self) -> KVEvents | None:
        """Return the next event, or None at the end."""
        item = await self._items.get()
        if isinstance(item, SageInferError):
            raise item
        return item


class Caller:
    """Sends calls, and distributes the frames of the replica. A subclass overrides the three ``on_`` methods.

    Attributes:
        address: ``unix:`` and the path of the replica's socket.
        link: the connection.
        ended: the error of further calls, after the loss or the close of the connection; None before.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.link = Link(FromServer, self._receive, self._lost)
        self.ended: EngineDead | None = None
        self._window = 1
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[bytes]] = {}
        self._parts: dict[int, list[bytes]] = {}
        self._streams: dict[int, FrameStream] = {}
        self._kv: dict[int, KVStream] = {}

    # --- for subclasses to override

    def on_hello(self, hello: Hello) -> None:
        """Handle the first frame of the connection."""

    def on_load(self, gauges: Gauges) -> None:
        """Handle a report."""

    def on_end(self, reason: str) -> None:
        """Handle the loss of the connection."""

    # --- calls

    def check_open(self) -> None:
        """Raise ``EngineDead`` unless the connection is open."""
        if self.ended is not None:
            raise EngineDead(str(self.ended))
        if not self.link.is_open:
            raise EngineDead(f"the client of {self.address} is not connected; call start() first")

    async def call(
        self, method: str, arguments: msgspec.Struct, result: Any, *, slots: tuple[int, ...] = ()
    ) -> Any:
        """Call a method of the replica; return its result of the type ``result``.

        Raises:
            SageInferError: as raised by the replica's backend.
            InvalidRequest: the arguments cannot be sent.
            EngineDead: the replica is lost.
        """
        self.check_open()
        data = _encoded(method, arguments)
        number = next(self._numbers)
        future = self._calls[number] = asyncio.get_running_loop().create_future()
        try:
            self.link.send(Call(number, method, await self.link.send_parts(number, data), slots))
            value = await future
        except asyncio.CancelledError:
            self.link.send(CallCancel(number))
            raise
        finally:
            del self._calls[number]
            parts = self._parts.pop(number, None)
        return msgspec.msgpack.decode(b"".join(parts) if parts else value, type=result)

    async def open_streams(
        self, method: str, arguments: msgspec.Struct, request_ids: Sequence[str]
    ) -> list[FrameStream]:
        """Call a method that opens one stream per request id."""
        slots = tuple(next(self._numbers) for _ in request_ids)
        batch = max(1, self._window // 2)
        streams = [
            FrameStream(one, partial(self._leave, slot), partial(self._grant, slot), batch)
            for one, slot in zip(request_ids, slots, strict=True)
        ]
        self._streams.update(zip(slots, streams, strict=True))
        try:
            await self.call(method, arguments, None, slots=slots)
        except BaseException:
            for slot in slots:
                self._leave(slot)
            raise
        return streams

    async def open_kv(self, since: int) -> tuple[int, KVStream]:
        """Open a stream of KV events; return its slot, too."""
        slot, stream = next(self._numbers), KVStream()
        self._kv[slot] = stream
        try:
            await self.call("kv_events", calls.KVSince(since), None, slots=(slot,))
        except BaseException:
            self.leave_kv(slot)
            raise
        return slot, stream

    def leave_kv(self, slot: int) -> None:
        """Stop a stream of KV events."""
        if self._kv.pop(slot, None) is not None:
            self.link.send(StreamCancel(slot))

    def grant_kv(self, slot: int) -> None:
        """Allow one more event."""
        self._grant(slot, 1)

    # --- frames

    def _leave(self, slot: int) -> None:
        if self._streams.pop(slot, None) is not None:
            self.link.send(StreamCancel(slot))

    def _grant(self, slot: int, count: int) -> None:
        if slot in self._streams or slot in self._kv:
            self.link.send(Credit(slot, count))

    def _receive(self, frame: FromServer) -> None:
        if isinstance(frame, Step):
            self._step(frame)
        elif isinstance(frame, Gauges):
            self.on_load(frame)
        elif isinstance(frame, Result):
            self._settle(frame.call, frame.value)
        elif isinstance(frame, Fail):
            self._settle(frame.call, from_wire(frame.error))
        elif isinstance(frame, KVFrame):
            if frame.slot in self._kv:
                self._kv[frame.slot].put(frame.events)
        elif isinstance(frame, Part):
            if frame.call in self._calls:
                self._parts.setdefault(frame.call, []).append(frame.data)
        else:
            self._window = frame.window
            self.on_hello(frame)

    def _step(self, step: Step) -> None:
        streams = self._streams
        for delta in step.deltas:
            stream = streams.get(delta.slot)
            if stream is not None:  # else the consumer has left
                stream.push(
                    TokenDelta(
                        delta.text,
                        delta.token_ids,
                        delta.index,
                        delta.logprobs,
                        delta.finish_reason,
                        delta.reasoning,
                        delta.tool_calls,
                    )
                )
        for end in step.ends:
            self._finish(end)

    def _finish(self, end: End) -> None:
        error = None if end.error is None else from_wire(end.error)
        if end.slot in self._kv:
            self._kv.pop(end.slot).end(error)
            return
        stream = self._streams.pop(end.slot, None)
        if stream is None:
            return
        if error is not None:
            stream.fail(error, end.usage, end.timing)
        else:
            stream.finish(cast(Any, end.reason), cast(Any, end.usage), cast(Any, end.timing))

    def _settle(self, call: int, outcome: bytes | SageInferError) -> None:
        future = self._calls.get(call)
        if future is None or future.done():
            return
        if isinstance(outcome, SageInferError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    def _lost(self, reason: str) -> None:
        if self.ended is None:
            self.end(EngineDead(f"the replica at {self.address} is lost: {reason}"), by_close=False)
            self.on_end(reason)

    def end(self, reason: EngineDead, *, by_close: bool) -> None:
        """End everything that is open: with ``RequestCancelled`` after ``close``, else with ``EngineDead``."""
        self.ended = reason

        def error(what: str) -> SageInferError:
            if by_close:
                return RequestCancelled(f"{what} ended with the close of its backend", by="close")
            return EngineDead(str(reason))

        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(error(f"request {stream.request_id}"))
        kv, self._kv = self._kv, {}
        for events in kv.values():
            events.end(None if by_close else EngineDead(str(reason)))
        for future in self._calls.values():
            if not future.done():
                future.set_exception(error("a call"))


def _encoded(method: str, arguments: msgspec.Struct) -> bytes:
    try:
        return encode(arguments)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(f"the arguments of {method} cannot be sent: {error}") from None

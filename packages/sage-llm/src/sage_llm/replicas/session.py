"""One client of a replica: its calls and its streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Protocol

import attrs
from sage_infer.contracts import BufferedTokenStream, KVEvents, KVSnapshot, TokenStream
from sage_infer.schemas import InstanceDescriptor, TokenDelta

from sage_llm.replicas.hand_over import HandOverRoom
from sage_llm.replicas.link import Link, encode
from sage_llm.replicas.methods import Opened, perform
from sage_llm.replicas.protocol import (
    MAX_FRAME_BYTES,
    Call,
    CallCancel,
    Credit,
    Delta,
    End,
    Fail,
    FromClient,
    Gauges,
    Hello,
    KVFrame,
    Part,
    Result,
    Step,
    StreamCancel,
)
from sage_llm.replicas.spans import OpenSpan, Spans
from sage_llm.replicas.wire_errors import to_wire
from sage_llm.tasks import Tasks

__all__ = ["Host", "Session"]


class Host(Protocol):
    """The server that a session belongs to."""

    backend: Any
    room: HandOverRoom
    descriptor: InstanceDescriptor
    window: int
    spans: Spans | None

    def hello(self) -> Hello: ...
    def gauges(self) -> Gauges: ...
    def forget(self, session: Session) -> None: ...


class _Window:
    """Number of items that may be sent to a consumer before it reads more."""

    def __init__(self, size: int) -> None:
        self.left = size
        self._more = asyncio.Event()

    def add(self, count: int) -> None:
        self.left += count
        self._more.set()

    async def take(self) -> None:
        while self.left <= 0:
            self._more.clear()
            await self._more.wait()
        self.left -= 1


@attrs.frozen
class _Outgoing:
    """A stream that is being sent: the task that sends it, and the engine's stream of tokens."""

    task: asyncio.Task[None]
    window: _Window
    stream: TokenStream | None

    def cancel(self) -> None:
        if self.stream is not None:
            self.stream.cancel()  # the task may not have started
        self.task.cancel()


class Session:
    """Calls and streams of one connection. All of them end with it."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._link = Link(FromClient, self._receive, self._lost, self._connected)
        self._parts: dict[int, list[bytes]] = {}
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._streams: dict[int, _Outgoing] = {}
        self._held: set[str] = set()  # requests whose prefill is held for this client
        self._answers: list[Result | Fail] = []
        self._deltas: list[Delta] = []
        self._ends: list[End] = []
        self._finishing: set[int] = set()  # slots whose last delta may have been sent
        self._flushing = False
        self._closed = asyncio.Event()
        self._tasks = Tasks()

    # --- the server's side

    @property
    def link(self) -> Link:
        return self._link

    def report(self, gauges: Gauges) -> None:
        """Send a report, unless the client does not read."""
        if not self._link.is_congested:
            self._link.send(gauges)

    def silence(self, interval_s: float) -> float:
        """Return how long the client has been silent, in seconds; called every ``interval_s`` seconds."""
        self._link.tick(interval_s)
        return self._link.silent_s

    def abort(self, reason: str) -> None:
        """Close the connection immediately."""
        self._link.abort(reason)

    def close(self, reason: str) -> None:
        """Close the connection after sending what is pending."""
        self._flush()
        self._link.close(reason)

    async def wait_closed(self) -> None:
        await self._closed.wait()

    # --- frames of the client

    def _connected(self) -> None:
        self._link.send(self._host.hello())

    def _receive(self, frame: FromClient) -> None:
        if isinstance(frame, Credit):
            if frame.slot in self._streams:
                self._streams[frame.slot].window.add(frame.count)
        elif isinstance(frame, Call):
            self._calls[frame.call] = self._tasks.spawn(self._answer(frame))
        elif isinstance(frame, Part):
            self._parts.setdefault(frame.call, []).append(frame.data)
        elif isinstance(frame, StreamCancel):
            if frame.slot in self._streams:
                self._streams.pop(frame.slot).cancel()
        elif isinstance(frame, CallCancel) and frame.call in self._calls:
            self._calls[frame.call].cancel()

    def _lost(self, reason: str) -> None:
        self._host.forget(self)
        for task in self._calls.values():
            task.cancel()
        for outgoing in self._streams.values():
            outgoing.cancel()
        self._streams.clear()
        for request_id in self._held:
            self._tasks.spawn(self._host.room.release(request_id))
        self._closed.set()

    # --- calls

    async def _answer(self, frame: Call) -> None:
        parts, host = self._parts.pop(frame.call, None), self._host
        try:
            arguments = b"".join(parts) if parts else frame.arguments
            result = await perform(host.backend, host.room, frame.method, arguments, self._held, host.spans)
            if isinstance(result, Opened):
                self._open(frame.slots, result)
                result = None
            elif isinstance(result, KVSnapshot):
                result = attrs.evolve(result, generation=self._host.descriptor.generation)
            value = await self._link.send_parts(frame.call, encode(result))
        except Exception as error:
            self._say(Fail(frame.call, to_wire(error)))
        else:
            self._say(Result(frame.call, value))
        finally:
            self._calls.pop(frame.call, None)

    def _say(self, answer: Result | Fail) -> None:
        self._answers.append(answer)
        self._schedule()

    def _open(self, slots: tuple[int, ...], opened: Opened) -> None:
        if opened.events is not None:
            window = _Window(self._host.window)
            task = self._tasks.spawn(self._pump_kv(slots[0], opened.events, window))
            self._streams[slots[0]] = _Outgoing(task, window, None)
        for slot, stream in zip(slots, opened.streams, strict=False):
            window = _Window(self._host.window)
            task = self._tasks.spawn(self._pump(slot, stream, window, opened.span))
            self._streams[slot] = _Outgoing(task, window, stream)

    # --- streams

    async def _pump(self, slot: int, stream: TokenStream, window: _Window, span: OpenSpan | None) -> None:
        """Forward a stream. If the consumer is slow, deltas wait in the engine's stream."""

        def take(delta: TokenDelta) -> bool:
            if window.left <= 0:
                self._finishing.discard(slot)  # more is to come
                return False
            window.left -= 1
            self._put(slot, delta)
            if delta.finish_reason is not None:
                self._finishing.add(slot)
            return True

        if isinstance(stream, BufferedTokenStream):
            stream.on_delta(take)
        try:
            async with stream:
                async for delta in stream:
                    await window.take()
                    self._put(slot, delta)
            end = End(slot, stream.finish_reason, stream.usage, stream.timing)
        except Exception as error:
            end = End(slot, stream.finish_reason, stream.usage, stream.timing, to_wire(error))
        finally:
            if span is not None:
                usage = stream.usage
                if usage is not None:
                    span.set({"gen_ai.usage.output_tokens": usage.completion_tokens})
                span.end(
                    None if stream.finish_reason in ("stop", "length") else stream.finish_reason or "lost"
                )
        self._end(end)

    async def _pump_kv(self, slot: int, events: AsyncIterator[KVEvents], window: _Window) -> None:
        """Forward KV events. An event that is too long is left out, and the client sees the gap."""
        try:
            async for event in events:
                await window.take()
                await self._link.drain()
                frame = KVFrame(slot, attrs.evolve(event, generation=self._host.descriptor.generation))
                if len(encode(frame)) <= MAX_FRAME_BYTES:
                    self._link.send(frame)
            end = End(slot)
        except Exception as error:
            end = End(slot, error=to_wire(error))
        self._end(end)

    def _put(self, slot: int, delta: TokenDelta) -> None:
        self._deltas.append(
            Delta(
                slot,
                delta.text,
                delta.token_ids,
                delta.index,
                delta.logprobs,
                delta.finish_reason,
                delta.reasoning,
                delta.tool_calls,
            )
        )
        self._schedule()

    def _end(self, end: End) -> None:
        if self._streams.pop(end.slot, None) is None:
            return  # the end was sent with the last delta
        self._ends.append(end)
        self._schedule()

    def _end_finished(self) -> None:
        """Send the end of streams that have finished with their last delta, without waiting for their tasks."""
        for slot in sorted(self._finishing):
            outgoing = self._streams.get(slot)
            stream = None if outgoing is None else outgoing.stream
            if stream is not None and stream.finish_reason in ("stop", "length"):
                self._ends.append(End(slot, stream.finish_reason, stream.usage, stream.timing))
                del self._streams[slot]
        self._finishing.clear()

    def _schedule(self) -> None:
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Send answers, deltas and ends since the last call, after the load that they have caused."""
        self._flushing = False
        if self._finishing:
            self._end_finished()
        if (self._answers or self._ends) and self._link.is_open:
            self._link.send(self._host.gauges())
        for answer in self._answers:
            self._link.send(answer)
        self._answers.clear()
        if self._deltas or self._ends:
            deltas, ends, self._deltas, self._ends = self._deltas, self._ends, [], []
            self._link.send(Step(deltas, ends))

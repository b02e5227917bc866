"""Streams over HTTP: what a client saw of each, and when."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

from attrs import define, field
from sage_infer.compat import timeout
from sage_infer_serve.http.client import Client, Disconnected, Server

__all__ = ["LLM", "Stream", "Streams", "body", "differences", "read"]

LLM = "smollm2-135m"
GUARD_S = 300.0


@define
class Stream:
    """One request and its answer.

    Attributes:
        number: decides prompt and parameters; even ones are greedy, odd ones are seeded.
        id: the response's.
        text, usage, reason: the answer.
        error: why it failed, or empty.
        times: when each part of the text arrived.
    """

    number: int
    id: str = ""
    text: str = ""
    usage: tuple[int, int] = (0, 0)
    reason: str | None = None
    error: str = ""
    sent: float = field(factory=time.perf_counter)
    times: list[float] = field(factory=list)

    @property
    def answer(self) -> tuple[str, tuple[int, int], str | None]:
        return self.text, self.usage, self.reason

    @property
    def ttft(self) -> float:
        return self.times[0] - self.sent if self.times else float("inf")

    def gap(self, since: float = 0.0) -> float:
        """The longest time without text that ended after ``since``, in seconds."""
        pairs = zip(self.times, self.times[1:], strict=False)
        return max((later - earlier for earlier, later in pairs if later > since), default=0.0)


def body(number: int, tokens: int, *, greedy: bool = False) -> dict[str, Any]:
    seeded = {"temperature": 0.9, "top_k": 8, "seed": number}
    sampling = seeded if number % 2 and not greedy else {"temperature": 0}
    return {
        "model": LLM, "max_tokens": tokens, "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": f"Write a short story about lighthouse number {number}."}],
        **sampling,
    }  # fmt: skip


async def read(url: str, stream: Stream, request: dict[str, Any]) -> Stream:
    """Send a request, and read its answer into ``stream``; errors are recorded there."""
    client, events = Client(Server.parse(url)), _Events(stream)
    try:
        async with timeout(GUARD_S):
            answer = await client.post("/v1/chat/completions", json.dumps(request).encode(), events.piece)
        if answer.status != 200:
            stream.error = f"status {answer.status}: {answer.body.decode(errors='replace')[:300]}"
        elif not events.are_complete and not stream.error:
            stream.error = "the stream ended early"
    except (Disconnected, TimeoutError) as error:
        stream.error = stream.error or f"{type(error).__name__}: {error}"
    finally:
        client.close()
    return stream


class _Events:
    """Server-sent events of a stream, in pieces as they arrive."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._rest = stream, b""
        self.are_complete = False

    def piece(self, data: bytes, now: float) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            event = line.removeprefix(b"data: ").strip()
            if event == b"[DONE]":
                self.are_complete = True
            elif line.startswith(b"data: "):
                self._take(json.loads(event), now)

    def _take(self, event: dict[str, Any], now: float) -> None:
        stream = self._stream
        if "error" in event:
            stream.error = str(event["error"].get("message", event["error"]))
        stream.id = event.get("id", stream.id)
        for choice in event.get("choices", ()):
            if text := choice["delta"].get("content"):
                stream.text += text
                stream.times.append(now)
            stream.reason = choice.get("finish_reason") or stream.reason
        if usage := event.get("usage"):
            stream.usage = usage["prompt_tokens"], usage["completion_tokens"]


class Streams:
    """A number of concurrent streams."""

    def __init__(self, url: str, count: int, tokens: int, *, greedy: bool = False) -> None:
        self.all = [Stream(number) for number in range(count)]
        self._reading = [
            asyncio.ensure_future(read(url, s, body(s.number, tokens, greedy=greedy))) for s in self.all
        ]

    async def reach(self, parts: int, share: float = 0.5) -> None:
        """Wait until a share of the streams have so many parts, or all have ended."""
        async with timeout(GUARD_S):
            while sum(len(s.times) >= parts for s in self.all) < share * len(self.all):
                if all(task.done() for task in self._reading):
                    return
                await asyncio.sleep(0.005)

    async def end(self) -> list[Stream]:
        await asyncio.gather(*self._reading)
        return self.all

    @property
    def is_open(self) -> bool:
        return not all(task.done() for task in self._reading)


def differences(streams: Sequence[Stream], reference: Sequence[Stream]) -> list[str]:
    """Problems of streams, compared with undisturbed ones."""
    found = []
    for stream in streams:
        if stream.error:
            found.append(f"stream {stream.number}: {stream.error}")
        elif stream.answer != reference[stream.number].answer:
            found.append(f"stream {stream.number}: another answer{_where(stream, reference[stream.number])}")
    return found


def _where(stream: Stream, reference: Stream) -> str:
    """Where the text of an answer begins to differ, and how it continues there."""
    if stream.text == reference.text:
        return f", {stream.answer[1:]} instead of {reference.answer[1:]}"
    pairs = zip(stream.text, reference.text, strict=False)
    at = next((n for n, (one, other) in enumerate(pairs) if one != other), len(stream.text))
    return f" from character {at}: {stream.text[at : at + 60]!r} instead of {reference.text[at : at + 60]!r}"

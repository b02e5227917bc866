"""Reads responses: times of text, token counts, and errors.

The formats are those of https://platform.openai.com/docs/api-reference, read tolerantly, as servers differ.
"""

from __future__ import annotations

import math
from array import array
from typing import Any

import msgspec

from sage_infer_serve.bench.sse import EventParser

__all__ = ["BadAnswer", "StreamReader", "Usage", "error_message", "model_ids", "read_answer"]


class BadAnswer(Exception):
    """An error response, or one that does not follow the API. Messages are short, as equal ones are counted."""


class Usage(msgspec.Struct):
    """Token counts of the server."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None  # of the prompt; None if the server does not say


class _Text(msgspec.Struct):
    content: Any = None  # a list of parts from Mistral's reasoning models
    reasoning_content: Any = None  # vLLM, SGLang, DeepSeek
    reasoning: Any = None  # newer vLLM; an object from others
    refusal: Any = None
    tool_calls: Any = None


class _Choice(msgspec.Struct):
    delta: _Text | None = None
    text: Any = None
    finish_reason: Any = None

    def has_output(self) -> bool:
        delta = self.delta
        if delta is None:
            return bool(self.text)
        return bool(
            delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls or delta.refusal
        )


class _Chunk(msgspec.Struct):
    """The fields of a chunk that are read; other fields are skipped without validation."""

    choices: list[_Choice | None] | None = None
    usage: Any = None
    error: Any = None


class _Answer(msgspec.Struct):
    choices: list[msgspec.Raw] | None = None  # of generation requests
    data: list[msgspec.Raw] | None = None  # of embedding requests
    usage: Any = None
    error: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode


class StreamReader:
    """Reads one streamed response. Times are those of the caller's clock, in seconds.

    Attributes:
        first: time of the first text; None before it.
        last: time of the latest text.
        gaps: seconds between chunks with text, in order.
        usage: the server's count, if sent.
    """

    __slots__ = ("_done", "_parser", "error", "first", "gaps", "last", "usage")

    def __init__(self) -> None:
        self._parser = EventParser()
        self._done = False
        self.first: float | None = None
        self.last = 0.0
        self.gaps: array[float] = array("d")
        self.usage: Usage | None = None
        self.error: str | None = None

    def feed(self, piece: bytes, now: float) -> None:
        for data in self._parser.feed(piece):
            if self.error is None:
                self._event(data, now)

    def end(self) -> None:
        """Call at the end of the body.

        Raises:
            BadAnswer: the stream contained an error, was truncated, or is not a stream of this API.
        """
        if self.error is not None:
            raise BadAnswer(self.error)
        if not self._done:
            raise BadAnswer("stream truncated" if self.first is not None else "stream without an answer")

    @property
    def chunks(self) -> int:
        """Number of chunks with text."""
        return 0 if self.first is None else len(self.gaps) + 1

    def _event(self, data: bytes, now: float) -> None:
        if data.startswith(b"[DONE]"):
            self._done = True
            return
        try:
            chunk = _decode_chunk(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.error = "stream: a chunk does not follow the API"
            return
        if chunk.error is not None:
            self.error = f"stream: {error_message(data)}"
            return
        if chunk.usage is not None:
            self.usage = _usage(chunk.usage)
        for choice in chunk.choices or ():
            if choice is None:
                continue
            if choice.finish_reason is not None:
                self._done = True  # some servers do not send [DONE]
            if choice.has_output():
                if self.first is None:
                    self.first = now
                else:
                    self.gaps.append(now - self.last)
                self.last = now


def read_answer(body: bytes, *, embeddings: bool) -> Usage | None:
    """The usage of an unstreamed response.

    Raises:
        BadAnswer: it is an error, or has no result.
    """
    try:
        answer = _decode_answer(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadAnswer("the response does not follow the API") from None
    if answer.error is not None:
        raise BadAnswer(error_message(body))
    if not (answer.data if embeddings else answer.choices):
        raise BadAnswer("the response has no result")
    return _usage(answer.usage)


def _usage(value: Any) -> Usage | None:
    """The counts in a server's ``usage``; a missing count is 0. None for invalid counts: chunks are counted instead."""
    if not isinstance(value, dict):
        return None
    counts = [value.get(name, 0) for name in ("prompt_tokens", "completion_tokens")]
    if not all(isinstance(c, int | float) and not isinstance(c, bool) and math.isfinite(c) for c in counts):
        return None
    prompt, completion = (max(int(count), 0) for count in counts)
    return Usage(prompt, completion, _cached_tokens(value.get("prompt_tokens_details")))


def _cached_tokens(details: Any) -> int | None:
    count = details.get("cached_tokens") if isinstance(details, dict) else None
    return max(count, 0) if isinstance(count, int) and not isinstance(count, bool) else None


def error_message(body: bytes) -> str:
    """The message in any server's error body; the start of the body if none is found."""
    try:
        data = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        data = None
    if isinstance(data, dict):
        error = data.get("error") or data
        message = error.get("message") or error.get("detail") if isinstance(error, dict) else error
        if message:
            return _one_line(str(message))
    return _one_line(body[:300].decode("utf-8", "replace")) or "no message"


def model_ids(body: bytes) -> list[str]:
    """The ids in a response of ``GET /v1/models``.

    Raises:
        BadAnswer: it is malformed.
    """
    try:
        data = msgspec.json.decode(body)
        return [str(model["id"]) for model in data["data"]]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise BadAnswer("the list of models does not follow the API") from None


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:199]}…"

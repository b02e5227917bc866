"""Chunks of a stream as server-sent events. Constant parts are encoded once per response, only text per token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

__all__ = ["DONE", "ChunkWriter", "event", "token_ids_field"]

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.encode


def token_ids_field(name: str, ids: Sequence[int]) -> bytes:
    """A further field of a choice or chunk, with the comma before it."""
    return b',"%b":%b' % (name.encode(), _encode(ids))


def event(data: Any) -> bytes:
    """Encode any data as an event."""
    return b"data: " + _encode(data) + b"\n\n"


class ChunkWriter:
    """Encodes the chunks of one response. ``kind`` is their ``object``."""

    __slots__ = ("_chat", "_head", "_prefixes", "_tail", "_text_tail", "_usage_head")

    def __init__(
        self,
        answer_id: str,
        kind: str,
        created: int,
        model: str,
        *,
        with_usage: bool,
        fingerprint: str,
    ) -> None:
        self._chat = kind == "chat.completion.chunk"
        head = b'data: {"id":%b,"object":%b,"created":%d,"model":%b,"system_fingerprint":%b,"choices":[' % (
            _encode(answer_id),
            _encode(kind),
            created,
            _encode(model),
            _encode(fingerprint),
        )
        self._usage_head = head + b'],"usage":'
        self._head = head + b'{"index":'
        # With include_usage every chunk but the last has a null usage.
        self._tail = b'}],"usage":null}\n\n' if with_usage else b"}]}\n\n"
        self._text_tail = (
            (b"}," if self._chat else b",") + b'"logprobs":null,"finish_reason":null' + self._tail
        )
        self._prefixes: dict[int, bytes] = {}

    def text(self, index: int, text: str) -> bytes:
        """New text of a completion."""
        prefix = self._prefixes.get(index)
        if prefix is None:
            opening = b',"delta":{"content":' if self._chat else b',"text":'
            prefix = self._prefixes[index] = b"%b%d%b" % (self._head, index, opening)
        return prefix + _encode(text) + self._text_tail

    def delta(
        self,
        index: int,
        delta: bytes,
        *,
        logprobs: bytes = b"null",
        reason: str | None = None,
        more: bytes = b"",
    ) -> bytes:
        """Any delta of a chat, as JSON; ``more`` are further fields of the choice."""
        return b'%b%d,"delta":%b,"logprobs":%b,"finish_reason":%b%b%b' % (
            self._head, index, delta, logprobs, _encode(reason), more, self._tail,
        )  # fmt: skip

    def opening(self, index: int, delta: bytes, more: bytes) -> bytes:
        """The first delta of a chat; ``more`` are further fields of the chunk."""
        return b'%b%d,"delta":%b,"logprobs":null,"finish_reason":null}]%b%b' % (
            self._head, index, delta, more, self._tail.removeprefix(b"}]"),
        )  # fmt: skip

    def completion(
        self, index: int, text: str, logprobs: bytes, reason: str | None, more: bytes = b""
    ) -> bytes:
        """New text of a completion with its log probabilities; ``more`` are further fields of the choice."""
        return b'%b%d,"text":%b,"logprobs":%b,"finish_reason":%b%b%b' % (
            self._head, index, _encode(text), logprobs, _encode(reason), more, self._tail,
        )  # fmt: skip

    def finish(self, index: int, reason: str) -> bytes:
        """The finish reason of a chat completion."""
        return b'%b%d,"delta":{},"logprobs":null,"finish_reason":%b%b' % (
            self._head, index, _encode(reason), self._tail,
        )  # fmt: skip

    def usage(self, usage: bytes) -> bytes:
        """The last chunk, without choices."""
        return self._usage_head + usage + b"}\n\n"

"""Log probabilities in OpenAI's two formats."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable, Iterator
from typing import Any

from sage_infer.schemas import TokenDelta, TokenLogprob

__all__ = ["TextOffsets", "chat_logprobs", "completion_logprobs", "joined", "of_text"]

_LOWEST = -9999.0  # for impossible tokens: JSON has no minus infinity, and OpenAI uses this value
_UNKNOWN = "\ufffd"  # decoded from an incomplete character


def of_text(delta: TokenDelta) -> list[TokenLogprob]:
    """The delta's log probabilities, without that of the stop token, which is not part of the text."""
    return [one for one in delta.logprobs or () if not one.is_end]


def chat_logprobs(logprobs: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """One entry per token, with its alternatives."""
    return [
        {
            **_token(one.text, one.data, one.logprob),
            "top_logprobs": [_token(text, data, value) for _, text, data, value in _alternatives(one)],
        }
        for one in logprobs
    ]


class TextOffsets:
    """Start offsets of tokens in characters; a character split over tokens counts with the token that completes it."""

    def __init__(self, start: int) -> None:
        self._at = start
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: TokenLogprob) -> int:
        """The start of the next token."""
        start = self._at
        self._at += len(token.text if token.data is None else self._decoder.decode(token.data))
        return start


def completion_logprobs(logprobs: Iterable[TokenLogprob], offsets: TextOffsets) -> dict[str, Any]:
    """Parallel lists. The alternatives include the chosen token, so they may be one more than requested."""
    lists: dict[str, list[Any]] = {
        "tokens": [],
        "token_logprobs": [],
        "top_logprobs": [],
        "text_offset": [],
    }
    for one in logprobs:
        lists["tokens"].append(_named(one.text, one.data, "bytes:"))
        lists["token_logprobs"].append(_finite(one.logprob))
        lists["top_logprobs"].append(_top(one))
        lists["text_offset"].append(offsets.add(one))
    return lists


def joined(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """One result of ``completion_logprobs`` from those of successive deltas."""
    whole: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for part in parts:
        for name, values in part.items():
            whole[name] += values
    return whole


def _top(one: TokenLogprob) -> dict[str, float]:
    found: dict[str, float] = {}
    entries = list(_alternatives(one))
    if all(token != one.token_id for token, *_ in entries):
        entries.append((one.token_id, one.text, one.data, one.logprob))
    for token, text, data, value in entries:
        name = _named(text, data, "bytes:")
        # Different tokens can have the same text: vLLM's notation with the token id keeps both.
        found[f"token_id:{token}" if name in found else name] = _finite(value)
    return found


def _alternatives(one: TokenLogprob) -> Iterator[tuple[int, str, bytes | None, float]]:
    known = len(one.alternative_data) == len(one.alternatives)
    for place, (token, text, value) in enumerate(one.alternatives):
        yield token, text, one.alternative_data[place] if known else None, value


def _token(text: str, data: bytes | None, logprob: float) -> dict[str, Any]:
    if data is None and _UNKNOWN not in text:
        data = text.encode("utf-8", "replace")
    return {
        "token": _named(text, data, ""),
        "logprob": _finite(logprob),
        "bytes": None if data is None else list(data),
    }


def _named(text: str, data: bytes | None, prefix: str) -> str:
    """The token's text; for part of a character, its bytes escaped in OpenAI's notation."""
    if data is None or _UNKNOWN not in text:
        return text
    try:
        return data.decode()
    except UnicodeDecodeError:
        return prefix + "".join(f"\\x{byte:02x}" for byte in data)


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _LOWEST

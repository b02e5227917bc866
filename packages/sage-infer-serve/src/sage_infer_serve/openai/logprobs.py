"""Log probabilities in OpenAI's two formats."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from sage_infer.schemas import TokenLogprob

__all__ = ["chat_logprobs", "completion_logprobs"]

_LOWEST = -9999.0  # for impossible tokens: JSON has no minus infinity, and OpenAI uses this value


def chat_logprobs(logprobs: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """One entry per token, with its alternatives."""
    return [
        {
            **_token(one.text, one.logprob),
            "top_logprobs": [_token(text, logprob) for _, text, logprob in one.alternatives],
        }
        for one in logprobs
    ]


def completion_logprobs(logprobs: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """Parallel lists; ``offset`` is the position of the first token in the text."""
    offsets = []
    for one in logprobs:
        offsets.append(offset)
        offset += len(one.text)
    return {
        "tokens": [one.text for one in logprobs],
        "token_logprobs": [_finite(one.logprob) for one in logprobs],
        "top_logprobs": [{text: _finite(value) for _, text, value in one.alternatives} for one in logprobs],
        "text_offset": offsets,
    }


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode("utf-8", "replace"))}


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _LOWEST

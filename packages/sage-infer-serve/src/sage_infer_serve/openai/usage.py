"""Token counts in OpenAI's format."""

from __future__ import annotations

from typing import Any

from sage_infer.schemas import Usage

__all__ = ["usage_dict"]


def usage_dict(usage: Usage | None, reasoning_tokens: int = 0) -> dict[str, Any]:
    """A stream's usage; zeros if the backend does not count. ``reasoning_tokens`` are those that the gateway saw."""
    if usage is None:
        usage = Usage(prompt_tokens=0)
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": max(usage.reasoning_tokens, reasoning_tokens)},
    }

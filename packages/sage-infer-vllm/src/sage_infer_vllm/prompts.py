"""Prompts as token ids that fit, or the error that says why not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from attrs import frozen
from sage_infer.contracts import PromptLike, as_prompts
from sage_infer.errors import InvalidRequest, UnsupportedFeature
from sage_infer.schemas import Prompt

__all__ = ["TokenizedPrompt", "tokenize"]

_INLINE_CHARACTERS = 2000  # a longer text is tokenized in a thread, so that other requests go on


@frozen
class TokenizedPrompt:
    token_ids: list[int]
    text: str | None


async def tokenize(
    tokenizer: Any, prompts: PromptLike | Sequence[PromptLike], *, vocab_size: int, limit: int
) -> list[TokenizedPrompt]:
    """Every prompt's token ids.

    Raises:
        InvalidRequest: there are no prompts; one is empty, leaves no room for output within ``limit`` tokens, or
            has a token id outside the vocabulary.
        UnsupportedFeature: a prompt has media.
    """
    found = as_prompts(prompts)
    if not found:
        raise InvalidRequest("no prompts; expected at least one")
    tokenized = []
    for index, prompt in enumerate(found):
        which = "prompt" if len(found) == 1 else f"prompt {index}"
        if prompt.media:
            raise UnsupportedFeature(f"{which} has media, and this backend reads text only")
        ids = await _ids(tokenizer, prompt)
        _check(ids, which, vocab_size=vocab_size, limit=limit)
        tokenized.append(TokenizedPrompt(ids, prompt.text))
    return tokenized


async def _ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    if prompt.token_ids is not None:
        return list(prompt.token_ids)
    text, special = prompt.text or "", prompt.add_special_tokens
    if len(text) <= _INLINE_CHARACTERS:
        return list(tokenizer.encode(text, add_special_tokens=special))
    return list(await asyncio.to_thread(tokenizer.encode, text, add_special_tokens=special))


def _check(ids: list[int], which: str, *, vocab_size: int, limit: int) -> None:
    if not ids:
        raise InvalidRequest(f"{which} has no tokens; expected some text")
    largest = max(ids)
    if largest >= vocab_size or min(ids) < 0:
        raise InvalidRequest(f"{which} has token id {largest}; the vocabulary ends at {vocab_size - 1}")
    if len(ids) >= limit:
        raise InvalidRequest(
            f"{which} has {len(ids)} tokens, and the limit is {limit} for prompt and output together; shorten it"
        )

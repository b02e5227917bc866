"""Prompts as token ids within the limits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from attrs import frozen
from sage_infer.errors import ContextLengthExceeded, InvalidRequest
from sage_infer.schemas import Prompt

__all__ = ["TokenizedPrompt", "text_of", "tokenize", "tokens_of"]

_INLINE_CHARACTERS = 2000  # longer texts are tokenized in a thread, so that other requests continue


@frozen
class TokenizedPrompt:
    token_ids: list[int]
    text: str | None


async def tokenize(
    tokenizer: Any, prompts: Sequence[Prompt], *, vocab_size: int, limit: int
) -> list[TokenizedPrompt]:
    """Every prompt's token ids.

    Raises:
        InvalidRequest: there are no prompts; one is empty, leaves no room for output within ``limit`` tokens, or
            has a token id outside the vocabulary.
    """
    if not prompts:
        raise InvalidRequest("no prompts; expected at least one")
    tokenized = []
    for index, prompt in enumerate(prompts):
        which = "prompt" if len(prompts) == 1 else f"prompt {index}"
        ids = await tokens_of(tokenizer, prompt, which, vocab_size=vocab_size)
        if len(ids) >= limit:
            raise ContextLengthExceeded(
                f"this model's maximum context length is {limit} tokens for prompt and output together, but "
                f"{which} has {len(ids)} tokens; shorten it"
            )
        tokenized.append(TokenizedPrompt(ids, prompt.text))
    return tokenized


async def tokens_of(tokenizer: Any, prompt: Prompt, which: str, *, vocab_size: int) -> list[int]:
    """One prompt's token ids, without a check of their number. ``which`` names it in errors.

    Raises:
        InvalidRequest: there are none, or one is outside the vocabulary.
    """
    if prompt.token_ids is not None:
        ids = list(prompt.token_ids)
    else:
        text = prompt.text or ""
        if len(text) <= _INLINE_CHARACTERS:
            ids = _encode(tokenizer, text, prompt.add_special_tokens)
        else:
            ids = await asyncio.to_thread(_encode, tokenizer, text, prompt.add_special_tokens)
    if not ids:
        raise InvalidRequest(f"{which} has no tokens; expected some text")
    _check_range(ids, which, vocab_size)
    return ids


def text_of(tokenizer: Any, token_ids: Sequence[int], *, vocab_size: int) -> str:
    """The text of token ids, including special tokens.

    Raises:
        InvalidRequest: one is outside the vocabulary.
    """
    if not token_ids:
        return ""
    _check_range(token_ids, "the text", vocab_size)
    return str(
        tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    )


def _encode(tokenizer: Any, text: str, add_special_tokens: bool) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=add_special_tokens))


def _check_range(ids: Sequence[int], which: str, vocab_size: int) -> None:
    smallest, largest = min(ids), max(ids)
    if largest >= vocab_size or smallest < 0:
        wrong = smallest if smallest < 0 else largest
        raise InvalidRequest(f"{which} has token id {wrong}; expected 0 to {vocab_size - 1}")

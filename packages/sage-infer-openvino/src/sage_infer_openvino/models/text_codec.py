"""A model's tokenizer and chat template as the contract's ``TextCodec``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen
from sage_infer.contracts import ChatMessage, PromptLike, as_prompts
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import Prompt
from sage_infer.sdk import check_claims

from sage_infer_openvino.models.tokenizer import TextTokenizer

__all__ = ["INLINE_CHARACTERS", "DecoderTexts"]

INLINE_CHARACTERS = 4096  # tokenizing shorter texts is faster than waking up another thread


@frozen
class DecoderTexts:
    """Tokenizer and chat template of one model with a vocabulary of ``vocab_size`` tokens."""

    tokenizer: TextTokenizer
    vocab_size: int

    @property
    def longest_token(self) -> int:
        """Maximum number of characters per token."""
        return self.tokenizer.longest_token

    async def render_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        text = self.tokenizer.render_chat(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, variables=template_variables
        )
        return Prompt(text=text, add_special_tokens=False)

    async def tokenize(self, prompt: PromptLike) -> list[int]:
        (one,) = as_prompts(prompt)
        if len(one.text or "") <= INLINE_CHARACTERS:
            return list(self.tokens_of(one))
        return list(await asyncio.to_thread(self.tokens_of, one))

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        if token_ids:
            self.check_tokens(token_ids)
        if len(token_ids) <= INLINE_CHARACTERS:
            return self.tokenizer.decode(token_ids, skip_special=False)
        return await asyncio.to_thread(self.tokenizer.decode, token_ids, skip_special=False)

    def tokens_of(self, prompt: Prompt) -> tuple[int, ...]:
        """A prompt's token ids, without a check of their number.

        Raises:
            InvalidRequest: there are none, or one is outside the vocabulary.
            UnsupportedFeature: the prompt has media.
        """
        check_claims((), backend="the openvino backend", prompts=(prompt,))
        tokens = prompt.token_ids
        if tokens is None:
            tokens = tuple(self.tokenizer.encode(prompt.text or "", prompt.add_special_tokens))
            if not tokens:
                raise InvalidRequest(f"the prompt {prompt.text!r} has no tokens; expected at least one")
        self.check_tokens(tokens)
        return tokens

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """Raises:
        InvalidRequest: an id is outside the vocabulary.
        """
        low, high = min(tokens), max(tokens)
        if low < 0 or high >= self.vocab_size:
            raise InvalidRequest(
                f"token id {low if low < 0 else high} is not in the vocabulary of {self.vocab_size} tokens"
            )

"""``tokenize`` and ``detokenize`` agree with ``generate``."""

from __future__ import annotations

from typing import Any

import pytest
from sage_infer.contracts import Tokenizing
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import Prompt

from sage_infer_testing.features import when_claimed
from sage_infer_testing.kits.generation.base import GenerationSuite
from sage_infer_testing.reading import generate_one, greedy
from sage_infer_testing.shape import shape_problems

__all__ = ["TokenTests"]

_TEXT = "Tokens are counted before they are paid for."
_UNKNOWN = 2**31 - 1
_SPACE = " \N{REPLACEMENT CHARACTER}"  # that tokenizers drop, or cannot decide yet


class TokenTests(GenerationSuite, kit=True):
    """Tests of ``tokenize`` and ``detokenize``, if they are claimed."""

    @when_claimed("tokenize")
    async def test_shown_tokens_are_those_computed(self, backend: Any) -> None:
        """A text and its token ids from ``tokenize`` are equivalent prompts: same token count, same output.

        How to fix: encode text in ``tokenize`` as in ``generate``, including the model's start tokens.
        """
        problems = shape_problems(backend, Tokenizing)
        assert not problems, f"not a Tokenizing: {'; '.join(problems)}"
        token_ids = await backend.tokenize(_TEXT)
        of_text = await generate_one(backend, _TEXT, greedy(8))
        of_ids = await generate_one(backend, token_ids, greedy(8))
        computed = of_text.counted().prompt_tokens
        assert len(token_ids) == computed, (
            f"tokenize returns {len(token_ids)} tokens, but {computed} were computed"
        )
        assert of_ids.token_ids == of_text.token_ids, "the text and its token ids produce different outputs"
        bare = Prompt(text=_TEXT, add_special_tokens=False)
        shown = await backend.tokenize(bare)
        computed = (await generate_one(backend, bare, greedy(1))).counted().prompt_tokens
        assert len(shown) == computed, (
            f"add_special_tokens=False: tokenize returns {len(shown)} tokens, but {computed} were computed"
        )

    @when_claimed("tokenize")
    async def test_text_is_that_of_the_tokens(self, backend: Any) -> None:
        """The text of an output is what ``detokenize`` makes of its token ids.

        How to fix: emit each token's id in the delta with its text, in the order of generation; text that is held back
        comes with a later delta.
        """
        for prompt in self.prompts[:3]:
            output = await generate_one(backend, prompt, greedy(self.max_output, skip_special_tokens=False))
            text = await backend.detokenize(output.token_ids)
            assert output.text.strip(_SPACE) == text.strip(_SPACE), (
                f"the deltas say {output.text!r}, their token ids {text!r}"
            )

    @when_claimed("tokenize")
    async def test_tokens_become_their_text(self, backend: Any) -> None:
        """``detokenize`` restores a tokenized text.

        How to fix: decode all ids in one call, with special tokens and without clean-up of white space.
        """
        token_ids = await backend.tokenize(Prompt(text=_TEXT, add_special_tokens=False))
        text = await backend.detokenize(token_ids)
        assert text.strip() == _TEXT, f"{_TEXT!r} became {text!r}"

    @when_claimed("tokenize")
    async def test_unknown_token_ids_have_no_text(self, backend: Any) -> None:
        """A token id outside the vocabulary is an ``InvalidRequest``.

        How to fix: compare the ids with the vocabulary before decoding them.
        """
        for wrong in ([_UNKNOWN], [-1]):
            with pytest.raises(InvalidRequest):
                await backend.detokenize(wrong)

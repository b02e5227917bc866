"""Conversion of a completion's tokens to deltas, including stops and held-back text."""

from __future__ import annotations

from collections.abc import Callable, Collection

from sage_infer.schemas import FinishReason, SamplingParams, TokenDelta, TokenLogprob
from sage_infer.sdk.stop_strings import StopStringDetector

__all__ = ["Completion"]


class Completion:
    """One output during generation. It applies the fields of ``SamplingParams`` that end an output: ``max_tokens``,
    ``min_tokens``, ``stop``, ``stop_token_ids`` and ``ignore_eos``.

    Attributes:
        token_ids: token ids of the output so far.
        finish_reason: None until the last token.

    Args:
        max_tokens: room for output in the sequence; ``params.max_tokens`` may be less.
        decode: returns the text of the next token; empty while it is only part of a character.
        flush: returns text held back by ``decode``, at the end of the output.
        eos_token_ids: end-of-sequence tokens.
        index: index of the completion among the request's ``n``.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        max_tokens: int,
        decode: Callable[[int], str],
        flush: Callable[[], str] = str,
        eos_token_ids: Collection[int] = (),
        index: int = 0,
    ) -> None:
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._params, self._index = params, index
        self._longest = max_tokens if params.max_tokens is None else min(max_tokens, params.max_tokens)
        self._decode, self._flush = decode, flush
        self._ends = {*params.stop_token_ids, *(() if params.ignore_eos else eos_token_ids)}
        self._stops = StopStringDetector(params.stop) if params.stop else None

    def push(self, token: int, logprob: TokenLogprob | None = None) -> TokenDelta:
        """Return the delta of the next token.

        The token that ends an output adds no text. The last delta has the held-back text.
        """
        self.token_ids.append(token)
        may_end = len(self.token_ids) >= self._params.min_tokens
        is_end = may_end and token in self._ends
        text = "" if is_end else self._decode(token)
        if is_end or len(self.token_ids) >= self._longest:
            self.finish_reason = "stop" if is_end else "length"
            text += self._flush()
        if self._stops is not None and may_end:
            text, found = self._stops.push(text)
            if found:
                self.finish_reason = "stop"
            elif self.finish_reason is not None:
                text += self._stops.flush()
        if logprob is not None:
            logprob.is_end = is_end
        return TokenDelta(
            text, (token,), self._index, None if logprob is None else (logprob,), self.finish_reason
        )

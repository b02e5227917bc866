"""Makes requests of what callers send, and refuses what cannot be served before anything is started."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence

from sage_infer.contracts import PromptLike, as_prompts, request_ids
from sage_infer.errors import InvalidRequest, UnsupportedFeature
from sage_infer.schemas import DecodeState, Prompt, SamplingParams

from sage_infer_openvino.engine.grammar import GrammarMatcher
from sage_infer_openvino.engine.sequence import EngineRequest, SequenceState
from sage_infer_openvino.engine.stop_strings import StopStringDetector
from sage_infer_openvino.models.tokenizer import TextTokenizer

__all__ = ["RequestFactory"]


class RequestFactory:
    """Requests for one loaded model. Call it in the consumer's event loop: that is where streams will be fed."""

    def __init__(
        self, model_id: str, tokenizer: TextTokenizer, *, vocab_size: int, max_sequence_length: int
    ) -> None:
        self._model_id = model_id
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._limit = max_sequence_length

    def from_prompts(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        params: SamplingParams,
        request_id: str,
        *,
        priority: int = 0,
        deadline: float | None = None,
        grammar: GrammarMatcher | None = None,
    ) -> list[EngineRequest]:
        """One request a prompt, in their order. ``deadline`` is in seconds from now, ``grammar`` is what
        ``params.guided`` was compiled to.

        Raises:
            InvalidRequest, UnsupportedFeature: as ``InferenceBackend.generate`` says.
        """
        _check_options(request_id, priority, deadline)
        _reject_unsupported(params)
        token_ids = [self._encode(prompt) for prompt in as_prompts(prompts)]
        if not token_ids:
            raise InvalidRequest("no prompt given; expected at least one")
        due = None if deadline is None or math.isinf(deadline) else time.perf_counter() + deadline
        requests = [
            self._request(part, tokens, params, priority, due, grammar)
            for part, tokens in zip(request_ids(request_id, len(token_ids)), token_ids, strict=True)
        ]
        for request in requests:
            request.siblings = requests
        return requests

    def from_state(self, state: DecodeState, grammar: GrammarMatcher | None = None) -> EngineRequest:
        """The request that a state was made of, before its first token.

        Raises:
            InvalidRequest, UnsupportedFeature: this instance could not have made such a state.
        """
        _reject_unsupported(state.params)
        if state.params.n != 1 or len(state.output_token_ids) != 1:
            raise InvalidRequest(
                f"the state of request {state.request_id!r} has {state.params.n} completions and "
                f"{len(state.output_token_ids)} tokens of output; a state after prefill has one of each"
            )
        self._check_tokens((*state.prompt_token_ids, *state.output_token_ids))
        self._check_length(len(state.prompt_token_ids))
        request = self._request(state.request_id, state.prompt_token_ids, state.params, grammar=grammar)
        request.seed = state.seed
        return request

    def _request(
        self,
        request_id: str,
        prompt: tuple[int, ...],
        params: SamplingParams,
        priority: int = 0,
        deadline: float | None = None,
        grammar: GrammarMatcher | None = None,
    ) -> EngineRequest:
        request = EngineRequest(
            request_id=request_id,
            params=params,
            prompt=prompt,
            loop=asyncio.get_running_loop(),
            priority=priority,
            deadline=deadline,
        )
        if params.seed is not None:
            request.seed = params.seed
        longest = (
            self._limit if params.max_tokens is None else min(self._limit, len(prompt) + params.max_tokens)
        )
        request.sequences = [
            SequenceState(
                request=request,
                index=index,
                tokens=list(prompt),
                prompt_length=len(prompt),
                max_length=longest,
                detokenizer=self._tokenizer.detokenizer(params.skip_special_tokens),
                stop_strings=StopStringDetector(params.stop) if params.stop else None,
                grammar=grammar.copy() if grammar is not None else None,
            )
            for index in range(params.n)
        ]
        return request

    def tokens_of(self, prompt: Prompt) -> tuple[int, ...]:
        """A prompt's token ids, however many they are.

        Raises:
            InvalidRequest: there are none, or one is outside the vocabulary.
            UnsupportedFeature: the prompt has media.
        """
        if prompt.media:
            raise UnsupportedFeature(f"model {self._model_id!r} takes text only, and the prompt has media")
        tokens = prompt.token_ids
        if tokens is None:
            tokens = tuple(self._tokenizer.encode(prompt.text or "", prompt.add_special_tokens))
            if not tokens:
                raise InvalidRequest(f"the prompt {prompt.text!r} has no tokens; expected at least one")
        self._check_tokens(tokens)
        return tokens

    def text_of(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included.

        Raises:
            InvalidRequest: one is outside the vocabulary.
        """
        if token_ids:
            self._check_tokens(token_ids)
        return self._tokenizer.decode(token_ids, skip_special=False)

    def _encode(self, prompt: Prompt) -> tuple[int, ...]:
        tokens = self.tokens_of(prompt)
        self._check_length(len(tokens))
        return tokens

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        if max(tokens) >= self._vocab_size:
            raise InvalidRequest(
                f"token id {max(tokens)} is not in the vocabulary of {self._vocab_size} tokens"
            )

    def _check_length(self, length: int) -> None:
        if length >= self._limit:
            raise InvalidRequest(
                f"the prompt has {length} tokens, and the limit is {self._limit} with at least one token of output; "
                "shorten it, or raise max_sequence_length if the model allows"
            )


def _check_options(request_id: object, priority: object, deadline: object) -> None:
    """What would otherwise only fail in the engine thread, at everybody's cost."""
    if not isinstance(request_id, str) or not request_id:
        raise InvalidRequest(f"request_id must be a string that is not empty, got {request_id!r}")
    if not isinstance(priority, int):
        raise InvalidRequest(f"priority must be an integer, got {priority!r}")
    if deadline is not None and (not isinstance(deadline, int | float) or math.isnan(deadline)):
        raise InvalidRequest(f"deadline must be a number of seconds from now, got {deadline!r}")


def _reject_unsupported(params: SamplingParams) -> None:
    if params.adapter is not None:
        raise UnsupportedFeature(
            f"the openvino backend has no LoRA adapters; {params.adapter!r} was asked for"
        )

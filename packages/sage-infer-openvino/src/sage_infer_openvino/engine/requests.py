"""Creates requests from callers' arguments, and rejects unsupported ones before they start."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sage_infer.contracts import PromptLike, as_prompts, request_ids
from sage_infer.errors import CapabilityMismatch, ContextLengthExceeded, InvalidRequest
from sage_infer.schemas import DecodeState, Prompt, RequestOptions, SamplingParams
from sage_infer.sdk import StopStringDetector

from sage_infer_openvino.engine.grammar.compiler import GrammarMatcher
from sage_infer_openvino.engine.sequence import EngineRequest, SequenceState
from sage_infer_openvino.models.text_codec import INLINE_CHARACTERS, DecoderTexts

__all__ = ["RequestFactory", "check_request_id", "due_at"]


_USUAL_CHARACTERS = 8  # per token, which few texts exceed
_PIECE = 1024


class RequestFactory:
    """Creates requests for one loaded model. Call it in the consumer's event loop, which will receive the streams."""

    def __init__(self, texts: DecoderTexts, *, max_sequence_length: int) -> None:
        self._texts = texts
        self._limit = max_sequence_length

    async def read(self, prompts: PromptLike | Sequence[PromptLike], *, most: int) -> list[Prompt]:
        """At most ``most`` prompts for ``from_prompts``. Long texts are tokenized in a thread, to keep the event loop
        responsive.

        Raises:
            InvalidRequest: there are more.
            ContextLengthExceeded: a text has too many characters for the limit; checked before tokenization.
        """
        found = as_prompts(prompts)
        if len(found) > most:
            raise InvalidRequest(f"{len(found)} prompts in one call exceed the limit of {most} (max_queue)")
        for prompt in found:
            self.check_characters(prompt)
        if sum(len(prompt.text or "") for prompt in found) <= INLINE_CHARACTERS:
            return found
        return await asyncio.to_thread(
            lambda: [Prompt(token_ids=self._encode(p)) if p.text is not None else p for p in found]
        )

    def check_characters(self, given: PromptLike) -> Prompt:
        """Refuse a text whose tokens cannot fit, without tokenizing it.

        Raises:
            ContextLengthExceeded: it has too many characters.
        """
        (prompt,) = as_prompts(given)
        if prompt.text is not None and len(prompt.text) > self._limit * self._texts.longest_token:
            raise self._too_many(f"the prompt has {len(prompt.text)} characters, which are more")
        return prompt

    def check_chat(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Refuse a chat whose tokens cannot fit, without rendering it.

        Raises:
            ContextLengthExceeded: its messages have too many characters.
        """
        texts = (message.get("content") for message in messages)
        characters = sum(len(text) for text in texts if isinstance(text, str))
        if characters > self._limit * self._texts.longest_token:
            raise self._too_many(f"the messages have {characters} characters, which are more")

    def check_length(self, prompt: Prompt) -> None:
        """Refuse a text with far too many tokens after tokenizing a part of it. May take milliseconds.

        The tokens of pieces are counted, which are a few more than those of the whole text; so the limit is doubled.

        Raises:
            ContextLengthExceeded: it has more than twice as many tokens as fit.
        """
        text = prompt.text or ""
        if len(text) <= _USUAL_CHARACTERS * self._limit:
            return
        piece, tokens = max(_PIECE, 4 * self._limit), 0
        for start in range(0, len(text), piece):
            tokens += len(self._texts.tokenizer.encode(text[start : start + piece], False))
            if tokens > 2 * self._limit + _PIECE:
                raise self._too_many(f"the prompt has more than {2 * self._limit} tokens")

    def from_prompts(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        request_id: str,
        *,
        options: RequestOptions | None = None,
        grammar: GrammarMatcher | None = None,
    ) -> list[EngineRequest]:
        """One request per prompt, in order; ``grammar`` is the compiled ``params.guided``.

        Raises:
            InvalidRequest, UnsupportedFeature: see ``InferenceBackend.generate``.
        """
        check_request_id(request_id)
        options = options or RequestOptions()
        due = due_at(options)
        token_ids = [self._encode(prompt) for prompt in prompts]
        if not token_ids:
            raise InvalidRequest("no prompt given; expected at least one")
        requests = [
            self._request(part, tokens, params, options.priority, due, grammar)
            for part, tokens in zip(request_ids(request_id, len(token_ids)), token_ids, strict=True)
        ]
        for request in requests:
            request.siblings = requests
            request.call, request.tenant = requests[0].call, options.tenant
            request.salt = options.cache_salt.encode()
        return requests

    def from_state(self, state: DecodeState, grammar: GrammarMatcher | None = None) -> EngineRequest:
        """Reconstruct the request of a state, before its first token.

        Raises:
            InvalidRequest, UnsupportedFeature: the state is invalid for this instance.
        """
        if state.params.n != 1 or len(state.output_token_ids) != 1:
            raise InvalidRequest(
                f"the state of request {state.request_id!r} has {state.params.n} completions and "
                f"{len(state.output_token_ids)} output tokens, expected one of each after prefill"
            )
        self._texts.check_tokens((*state.prompt_token_ids, *state.output_token_ids))
        self._check_length(len(state.prompt_token_ids))
        request = self._request(state.request_id, state.prompt_token_ids, state.params, grammar=grammar)
        request.seed = state.seed
        return request

    def from_states(
        self,
        states: Sequence[DecodeState],
        request_id: str,
        *,
        options: RequestOptions | None = None,
        grammar: GrammarMatcher | None = None,
    ) -> EngineRequest:
        """The request of these states (``checked_states``), for ``replay``.

        Raises:
            InvalidRequest: the id is empty, or a token is outside the vocabulary.
            CapabilityMismatch: a sequence is too long for this instance.
        """
        check_request_id(request_id)
        options = options or RequestOptions()
        first = states[0]
        self._texts.check_tokens(first.prompt_token_ids)
        for state in states:
            self._check_output(state)
        request = self._request(
            request_id, first.prompt_token_ids, first.params, options.priority, due_at(options), grammar,
            indices=[state.index for state in states],
        )  # fmt: skip
        request.seed, request.salt = first.seed, options.cache_salt.encode()
        request.tenant = options.tenant
        return request

    def _check_output(self, state: DecodeState) -> None:
        for position, token in enumerate(state.output_token_ids):
            if token >= self._texts.vocab_size:
                raise InvalidRequest(
                    f"token {position} of the output of completion {state.index} is {token}, which is not in "
                    f"the vocabulary of {self._texts.vocab_size} tokens"
                )
        length = len(state.prompt_token_ids) + len(state.output_token_ids)
        if length >= self._limit:
            raise CapabilityMismatch(
                f"completion {state.index} has {length} tokens with its prompt, but the limit is {self._limit} "
                "including at least one more token; raise max_sequence_length, or resume it on another instance"
            )

    def _request(
        self,
        request_id: str,
        prompt: tuple[int, ...],
        params: SamplingParams,
        priority: int = 0,
        deadline: float | None = None,
        grammar: GrammarMatcher | None = None,
        indices: Sequence[int] | None = None,
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
                detokenizer=self._texts.tokenizer.detokenizer(params.skip_special_tokens),
                stop_strings=StopStringDetector(params.stop) if params.stop else None,
                grammar=grammar.copy() if grammar is not None else None,
            )
            for index in (range(params.n) if indices is None else indices)
        ]
        return request

    def _encode(self, prompt: Prompt) -> tuple[int, ...]:
        self.check_length(prompt)
        tokens = self._texts.tokens_of(prompt)
        self._check_length(len(tokens))
        return tokens

    def _check_length(self, length: int) -> None:
        if length >= self._limit:
            raise self._too_many(
                f"the prompt has {length} tokens", including=" including at least one output token"
            )

    def _too_many(self, what: str, *, including: str = "") -> ContextLengthExceeded:
        return ContextLengthExceeded(
            f"this model's maximum context length is {self._limit} tokens{including}, and {what}; shorten it, or raise "
            "max_sequence_length if the model allows"
        )


def check_request_id(request_id: object) -> None:
    """Reject invalid ids, which would otherwise stop the engine thread and end every request."""
    if not isinstance(request_id, str) or not request_id:
        raise InvalidRequest(f"request_id must be a non-empty string, got {request_id!r}")


def due_at(options: RequestOptions) -> float | None:
    """The deadline in the time of ``time.perf_counter``."""
    return None if options.deadline is None else time.perf_counter() + options.deadline

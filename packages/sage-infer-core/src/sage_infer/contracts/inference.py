"""Contract of text generation engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from attrs import frozen

from sage_infer.contracts.lifecycle import Lifecycle
from sage_infer.contracts.stream import TokenStream
from sage_infer.schemas import (
    DecodeState,
    KVCacheSchema,
    Prompt,
    QuantizationProfile,
    RequestOptions,
    SamplingParams,
    Timing,
    Usage,
)

__all__ = [
    "ChatMessage",
    "DecodeResult",
    "InferenceBackend",
    "PrefillResult",
    "PromptLike",
    "as_prompts",
    "request_ids",
]

PromptLike = str | Sequence[int] | Prompt
"""Text, token ids, or a ``Prompt`` (which can have media)."""

ChatMessage = Mapping[str, Any]
"""A message in OpenAI format: ``role`` and ``content``, and optional keys such as ``tool_calls``."""


@frozen(kw_only=True)
class PrefillResult:
    """Result of a prefill.

    Attributes:
        states: one state per prompt, in the order of the prompts.
        usage: tokens of the prompts, and the first token of each.
        timing: durations of the whole call.
    """

    states: tuple[DecodeState, ...]
    usage: Usage
    timing: Timing


@frozen(kw_only=True)
class DecodeResult:
    """Result of a decode.

    Attributes:
        stream: starts with the token that prefill sampled, so its deltas equal those of ``generate``.
    """

    stream: TokenStream


@runtime_checkable
class InferenceBackend(Lifecycle, Protocol):
    """An engine with one loaded generative model."""

    async def prefill(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        *,
        request_id: str,
        params: SamplingParams | None = None,
        options: RequestOptions | None = None,
        hold_s: float | None = None,
    ) -> PrefillResult:
        """Compute the KV and the first token of each prompt.

        The KV is held until ``decode`` takes it over, ``abort(request_id)`` frees it, or ``hold_s`` seconds have
        passed. None means the backend's own limit.

        Raises:
            UnsupportedFeature: the backend does not claim ``prefill_decode``, or a feature that ``params`` or
                ``options`` requires.
            InvalidRequest, Overloaded: as for ``generate``.
        """
        ...

    async def decode(
        self, state: DecodeState, *, request_id: str, options: RequestOptions | None = None
    ) -> DecodeResult:
        """Continue a sequence whose KV is in this instance, from ``prefill`` or ``import_kv``.

        ``request_id`` may equal the state's. If prefill already ended the request, the stream only delivers its
        result. Such a state holds no KV, so it can be decoded any number of times.

        Raises:
            InvalidRequest: this instance does not hold the KV (unknown, already decoded or freed).
            CapabilityMismatch: the state belongs to another model or KV schema.
        """
        ...

    async def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> list[TokenStream]:
        """Start generation and return one stream per prompt.

        The streams of several prompts have the ids ``id/0``, ``id/1``, … (see ``request_ids``). ``max_tokens``
        is an upper bound: an output that reaches ``max_sequence_length`` ends earlier, with "length".

        Raises:
            InvalidRequest: there are no prompts, a prompt is empty or has a token id outside the vocabulary, or
                ``request_id`` belongs to an open request. Nothing was started.
            ContextLengthExceeded: a prompt leaves no room for an output token within ``max_sequence_length``;
                the message states both numbers. A subclass of ``InvalidRequest``.
            UnsupportedFeature: ``params`` or ``options`` requires a feature that this backend does not claim
                (``sage_infer.sdk.check_claims``).
            Overloaded: the queue is full; nothing was started.
            EngineDead: the engine has stopped.
        """
        ...

    async def render_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        """Render a chat to a prompt with the model's chat template.

        ``template_variables`` are additional variables of the template, such as ``enable_thinking``. Content
        parts other than text become the prompt's media.

        Raises:
            UnsupportedFeature: the model has no chat template; the call has ``template_variables`` and the
                backend does not claim ``template_variables``; or a message has media and the backend does not
                claim ``multimodal``.
            InvalidRequest: there are no messages, a message has no role, a user message has no content, or the
                template rejects the messages.
        """
        ...

    async def abort(self, request_id: str) -> None:
        """End a request and its parts (``id/0``, …) with ``RequestCancelled``. Unknown ids are ignored."""
        ...

    def get_kv_schema(self) -> KVCacheSchema:
        """Return the exact memory layout of this instance's KV cache; equals the capability's ``kv_schema``.

        Raises:
            UnsupportedFeature: the instance has no KV cache, or one that a schema cannot describe. In these
                cases the capability's ``kv_schema`` is null and the instance claims no KV features.
        """
        ...

    def load_quant_profile(self, profile: QuantizationProfile) -> None:
        """Apply a quantization profile. Called before ``start``, it configures the engine.

        Raises:
            CapabilityMismatch: the platform or the checkpoint does not support the profile; the message names
                the unsupported parts.
            UnsupportedFeature: the backend does not claim ``quant_profile``.
        """
        ...


def as_prompts(prompts: PromptLike | Sequence[PromptLike]) -> list[Prompt]:
    """Convert one or several prompts to a list of ``Prompt`` objects.

    A flat list of integers is one prompt of token ids.

    Raises:
        SchemaError: a prompt is empty, or neither text nor token ids.
    """
    if isinstance(prompts, str | Prompt):
        return [_as_prompt(prompts)]
    if prompts and isinstance(prompts[0], int):
        return [_as_prompt(prompts)]  # type: ignore[arg-type]  # token ids, recognized by their first element
    return [_as_prompt(prompt) for prompt in prompts]  # type: ignore[arg-type]  # a sequence of prompts


def _as_prompt(prompt: PromptLike) -> Prompt:
    if isinstance(prompt, Prompt):
        return prompt
    return Prompt(text=prompt) if isinstance(prompt, str) else Prompt(token_ids=tuple(prompt))


def request_ids(request_id: str, count: int) -> list[str]:
    """Return one id per prompt: the request id itself for one prompt, ``id/0``, ``id/1``, … for several."""
    return [request_id] if count == 1 else [f"{request_id}/{i}" for i in range(count)]

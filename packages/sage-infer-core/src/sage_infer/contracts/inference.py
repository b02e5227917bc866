"""The contract of an engine that generates."""

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
"""Text, token ids, or either with media."""

ChatMessage = Mapping[str, Any]
"""A message in OpenAI's form: ``role`` and ``content``, and ``tool_calls`` and the like where they apply."""


@frozen(kw_only=True)
class PrefillResult:
    """One state per prompt, in the prompts' order."""

    states: tuple[DecodeState, ...]
    usage: Usage
    timing: Timing


@frozen(kw_only=True)
class DecodeResult:
    """The rest of a request after prefill.

    ``stream`` begins with the token that prefill chose, so that its deltas are those of ``generate``.
    """

    stream: TokenStream


@runtime_checkable
class InferenceBackend(Lifecycle, Protocol):
    """An engine with one generating model loaded."""

    async def prefill(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        *,
        request_id: str,
        params: SamplingParams | None = None,
        options: RequestOptions | None = None,
        hold_s: float | None = None,
    ) -> PrefillResult:
        """Compute the prompts' KV and the first token of each.

        The KV stays held until ``decode`` takes it over, ``abort(request_id)`` frees it, or ``hold_s``
        seconds have passed; None is the backend's own limit.

        Raises:
            UnsupportedFeature: the backend does not claim ``prefill_decode``, or what ``params`` and
                ``options`` ask for.
            InvalidRequest, Overloaded: as for ``generate``.
        """
        ...

    async def decode(
        self, state: DecodeState, *, request_id: str, options: RequestOptions | None = None
    ) -> DecodeResult:
        """Continue from ``state``, whose KV is in this instance (prefilled here, or brought by
        ``import_kv``).

        ``request_id`` may be the state's own. A state that prefill has already ended is only delivered, any
        number
        of times: it is plain data, and nothing is held for it.

        Raises:
            InvalidRequest: the KV is not here (unknown, already decoded or freed).
            CapabilityMismatch: the state is of another model or KV schema.
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
        """Start generating; one stream per prompt.

        Several prompts share ``request_id`` as ``id/0``, ``id/1``, … (see ``request_ids``). ``max_tokens``
        is an upper bound: an output that fills ``max_sequence_length`` ends with "length".

        Raises:
            InvalidRequest: there are no prompts; one is empty or has a token id outside the vocabulary; or
                ``request_id`` belongs to an open request. Nothing was started.
            ContextLengthExceeded: a prompt leaves no room for a token of output within ``max_sequence_length``
                (the message names both numbers). It is an ``InvalidRequest``.
            UnsupportedFeature: ``params`` or ``options`` set what this backend does not claim
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
        """A chat as a prompt, by the model's own template.

        ``template_variables`` are further variables that the template reads, such as ``enable_thinking``;
        content parts other than text become the prompt's media.

        Raises:
            UnsupportedFeature: the model has no chat template; or the call has ``template_variables``, or
                messages with media, and the backend claims neither ``template_variables`` nor ``multimodal``.
            InvalidRequest: no messages, one without a role, a user's without content, or the template refuses
                them.
        """
        ...

    async def abort(self, request_id: str) -> None:
        """End a request and its parts (``id/0``, …) with ``RequestCancelled``; unknown ids are ignored."""
        ...

    def get_kv_schema(self) -> KVCacheSchema:
        """Form of this instance's KV cache, exact to the byte; the same that ``get_capability`` names.

        Raises:
            UnsupportedFeature: the instance holds no KV, or KV in a form that a schema cannot describe;
                exactly where the capability's ``kv_schema`` is null. Such an instance claims no KV features.
        """
        ...

    def load_quant_profile(self, profile: QuantizationProfile) -> None:
        """Use a quantization profile; before ``start`` it configures the engine.

        Raises:
            CapabilityMismatch: not supported by platform or checkpoint; the message names the missing parts.
            UnsupportedFeature: the backend does not claim ``quant_profile``.
        """
        ...


def as_prompts(prompts: PromptLike | Sequence[PromptLike]) -> list[Prompt]:
    """One or several prompts in any form, as ``Prompt`` objects.

    A flat list of integers is one prompt of token ids.

    Raises:
        SchemaError: a prompt is empty or of no known form.
    """
    if isinstance(prompts, str | Prompt):
        return [_as_prompt(prompts)]
    if prompts and isinstance(prompts[0], int):
        return [_as_prompt(prompts)]  # type: ignore[arg-type]  # token ids: told apart by their first element
    return [_as_prompt(prompt) for prompt in prompts]  # type: ignore[arg-type]  # and these are prompts


def _as_prompt(prompt: PromptLike) -> Prompt:
    if isinstance(prompt, Prompt):
        return prompt
    return Prompt(text=prompt) if isinstance(prompt, str) else Prompt(token_ids=tuple(prompt))


def request_ids(request_id: str, count: int) -> list[str]:
    """Ids of a request's parts: itself for one prompt, ``id/0``, ``id/1``, … for several."""
    return [request_id] if count == 1 else [f"{request_id}/{i}" for i in range(count)]

"""The contract of an engine that generates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from attrs import field, frozen

from sage_infer.contracts.stream import TokenStream
from sage_infer.schemas import (
    CapabilityDescriptor,
    DecodeState,
    KVCacheSchema,
    Prompt,
    QuantizationProfile,
    SamplingParams,
    Timing,
    Usage,
)

__all__ = [
    "ChatMessage",
    "DecodeResult",
    "EngineStats",
    "Health",
    "InferenceBackend",
    "KVTransfer",
    "Lifecycle",
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
class Health:
    """Whether an instance answers. ``reason`` says why not."""

    status: Literal["ok", "starting", "degraded", "dead"]
    reason: str = ""

    @property
    def ok(self) -> bool:
        return self.status in ("ok", "degraded")


@frozen(kw_only=True)
class EngineStats:
    """Gauges of an instance at one moment, and counters since it started.

    Attributes:
        running: sequences in the current batch.
        waiting: accepted requests that have not begun.
        kv_blocks_total: KV blocks (pages) there are; 0 for an instance without KV.
        kv_blocks_free: KV blocks that a new request could take; those held between prefill and decode are not.
        finished: requests that have ended, cancelled ones included.
        prompt_tokens: prompt tokens computed.
        output_tokens: tokens generated.
        prefix_hit_tokens: prompt tokens taken from a prefix cache.
        extensions: what only this engine has.
    """

    running: int
    waiting: int
    kv_blocks_total: int = 0
    kv_blocks_free: int = 0
    finished: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    prefix_hit_tokens: int = 0
    extensions: Mapping[str, float] = field(factory=dict)


@frozen(kw_only=True)
class PrefillResult:
    """One state a prompt, in the prompts' order."""

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
class Lifecycle(Protocol):
    """What every backend has, whatever it serves."""

    async def start(self) -> None:
        """Load the model and become ready. Called once.

        Raises:
            ModelFileError, UnsupportedFeature, CapabilityMismatch, OutOfMemory: the model cannot be loaded.
        """
        ...

    async def close(self) -> None:
        """End open requests with ``RequestCancelled`` and free everything.

        Safe to call twice, and without ``start``. Afterwards, as before ``start``, every method that asks for
        work raises ``EngineDead``; ``health`` says ``dead`` with a reason.
        """
        ...

    async def health(self) -> Health: ...
    def stats(self) -> EngineStats: ...
    def get_capability(self) -> CapabilityDescriptor:
        """What this instance can do, read from the loaded engine."""
        ...


@runtime_checkable
class InferenceBackend(Lifecycle, Protocol):
    """An engine with one generating model loaded."""

    async def prefill(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        *,
        request_id: str,
        params: SamplingParams | None = None,
    ) -> PrefillResult:
        """Compute the prompts' KV and the first token of each.

        The KV stays held until ``decode`` takes it over or ``abort(request_id)`` frees it.

        Raises:
            UnsupportedFeature: the backend does not claim ``prefill_decode``.
            InvalidRequest, Overloaded: as for ``generate``.
        """
        ...

    async def decode(self, state: DecodeState, *, request_id: str) -> DecodeResult:
        """Go on from ``state``, whose KV is in this instance (prefilled here, or brought by ``import_kv``).

        ``request_id`` may be the state's own. A state that prefill has already ended is only delivered, as often
        as it is asked for: it is plain data, and nothing is held for it.

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
        priority: int = 0,
        deadline: float | None = None,
    ) -> list[TokenStream]:
        """Start generating; one stream a prompt.

        Several prompts share ``request_id`` as ``id/0``, ``id/1``, … (see ``request_ids``). A smaller ``priority``
        goes first; ``deadline`` is in seconds from now, after which the request ends with ``RequestCancelled``.
        ``max_tokens`` is an upper bound: an output that fills ``max_sequence_length`` ends with "length".

        Raises:
            InvalidRequest: there are no prompts; one is empty, has a token id outside the vocabulary, or leaves
                no room for a token of output within ``max_sequence_length`` (the message names both numbers);
                or ``request_id`` belongs to an open request. Nothing was started.
            UnsupportedFeature: ``params``, ``priority`` or ``deadline`` ask for what this backend does not claim.
            Overloaded: the queue is full; nothing was started.
            EngineDead: the engine has stopped.
        """
        ...

    def render_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        """A chat as a prompt, by the model's own template.

        Raises:
            UnsupportedFeature: the model has no chat template.
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
            UnsupportedFeature: the instance holds no KV; exactly where the capability's ``kv_schema`` is null.
        """
        ...

    def load_quant_profile(self, profile: QuantizationProfile) -> None:
        """Use a quantization profile; before ``start`` it configures the engine.

        Raises:
            CapabilityMismatch: this platform or checkpoint cannot do it; the message names what is missing.
            UnsupportedFeature: the backend does not claim ``quant_profile``.
        """
        ...


@runtime_checkable
class KVTransfer(Protocol):
    """What a backend that claims ``kv_export`` and ``kv_import`` has besides."""

    async def export_kv(self, state: DecodeState) -> tuple[DecodeState, list[memoryview]]:
        """The state with checksummed chunks, and each chunk's bytes in the order of ``state.chunks``.

        The buffers are the caller's to keep; the blocks in the engine are freed by ``decode`` or ``abort``.

        Raises:
            InvalidRequest: this instance does not hold the state's KV.
        """
        ...

    async def import_kv(self, state: DecodeState, buffers: Sequence[memoryview]) -> DecodeState:
        """Take KV that another instance exported; returns the state for this instance's ``decode``.

        Raises:
            CapabilityMismatch: another model or KV schema.
            KVCorrupt: a buffer's size or checksum is wrong; nothing was taken.
            Overloaded: no free blocks now.
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

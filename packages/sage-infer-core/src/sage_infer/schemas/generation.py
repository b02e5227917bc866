"""Inputs and outputs of text generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from attrs import define, field, frozen

from sage_infer.checks import (
    Choice,
    Each,
    Entries,
    Flag,
    Instance,
    Integer,
    Json,
    Number,
    Text,
    as_optional_tuple,
    as_tuple,
    optional,
)
from sage_infer.errors import Problem, SchemaError
from sage_infer.schemas.base import schema
from sage_infer.schemas.kv import KVCacheSchema
from sage_infer.schemas.kv_chunk import KVChunk
from sage_infer.schemas.sampling import SamplingParams

__all__ = [
    "DecodeState",
    "FinishReason",
    "MediaItem",
    "Prompt",
    "Timing",
    "TokenDelta",
    "TokenLogprob",
    "ToolCallDelta",
    "Usage",
]

FinishReason = Literal["stop", "length", "cancelled", "error"]
MediaKind = Literal["image", "audio", "video"]


@schema("1.0")
@frozen(kw_only=True)
class MediaItem:
    """An image, an audio recording or a video clip in a prompt.

    Attributes:
        kind: image, audio or video.
        uri: ``file:``, ``http(s):`` or ``data:`` address of the bytes.
        mime_type: media type; null lets the backend detect it.
    """

    kind: MediaKind = field(validator=Choice(get_args(MediaKind)))
    uri: str = field(
        validator=Text(pattern="(file|https?|data):.+", hint="a file:, http(s): or data: address")
    )
    mime_type: str | None = field(
        default=None, validator=optional(Text(pattern="[^/ ]+/[^/ ]+", hint="type/subtype"))
    )


@schema("1.0")
@frozen(kw_only=True)
class Prompt:
    """Text or token ids, with media for multimodal models.

    Attributes:
        text: the prompt as text; the backend tokenizes it and adds the model's start tokens.
        token_ids: the prompt as token ids, used unchanged.
        media: media items for the prompt's placeholders, in order.
        add_special_tokens: whether to add the model's start tokens to ``text``; false for text rendered by a
            chat template, which already contains them.
    """

    text: str | None = field(default=None, validator=optional(Text()))
    token_ids: tuple[int, ...] | None = field(
        default=None,
        converter=as_optional_tuple,
        validator=optional(Each(Integer(ge=0))),
    )
    media: tuple[MediaItem, ...] = field(default=(), converter=as_tuple, validator=Each(Instance(MediaItem)))
    add_special_tokens: bool = field(default=True, validator=Flag())

    def __attrs_post_init__(self) -> None:
        if (self.text is None) == (self.token_ids is None):
            raise SchemaError("Prompt", [Problem("$", "exactly one of text and token_ids must be set")])
        if not self.text and not self.token_ids:
            raise SchemaError("Prompt", [Problem("$", "must not be empty")])


@schema("1.0")
@frozen(kw_only=True)
class Usage:
    """Token counts of a request.

    Attributes:
        prompt_tokens: tokens in the prompt.
        completion_tokens: token ids in the stream's deltas, over all n completions.
        cached_tokens: prompt tokens whose KV was found in a cache.
        reasoning_tokens: completion tokens spent on reasoning; included in completion_tokens.
    """

    prompt_tokens: int = field(validator=Integer(ge=0))
    completion_tokens: int = field(default=0, validator=Integer(ge=0))
    cached_tokens: int = field(default=0, validator=Integer(ge=0))
    reasoning_tokens: int = field(default=0, validator=Integer(ge=0))

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@schema("1.0")
@frozen(kw_only=True)
class Timing:
    """Durations of the phases of a request, in seconds.

    Attributes:
        queue_s: from acceptance to the first engine step.
        ttft_s: from acceptance to the first token.
        total_s: from acceptance to the end.
        inter_token_s: mean time between consecutive tokens of a completion; null for fewer than two tokens.
    """

    queue_s: float = field(validator=Number(ge=0))
    ttft_s: float = field(validator=Number(ge=0))
    total_s: float = field(validator=Number(ge=0))
    inter_token_s: float | None = field(default=None, validator=optional(Number(ge=0)))


@schema("1.0")
@frozen(kw_only=True)
class DecodeState:
    """State of a sequence that another engine can continue with ``decode`` or ``resume``.

    ``decode`` continues after prefill, ``resume`` after any number of output tokens. The state is plain data, so
    the other engine may run in another process.

    Attributes:
        request_id: id of the request.
        model_id: model that computed the state.
        instance_id: engine instance whose cache holds the KV.
        prompt_token_ids: token ids of the prompt.
        output_token_ids: tokens sampled so far; prefill samples the first one. May be empty for ``resume``.
        params: sampling parameters of the request.
        seed: the effective seed; prefill draws one if params has none.
        kv_schema: layout of the KV in ``chunks``; required if there are chunks.
        chunks: KV of the tokens computed so far, in token order.
        finish_reason: set if prefill already ended the request.
        first_logprobs: log probabilities of the first token as JSON, if requested.
        extensions: data private to the backend that made the state, under the backend's name.
        index: index of the completion among the request's ``n``.
        delivered_chars: number of characters of output text already delivered to the consumer; for ``resume``.
        weights_id: content hash of the model's weights, the same for every engine that loads them; empty
            if unknown.
        kv_tokens: number of tokens whose KV is in ``chunks``; null means the whole prompt.
        first_text: text of the first output token, if prefill knows it.
    """

    request_id: str = field(validator=Text(min_length=1))
    model_id: str = field(validator=Text(min_length=1))
    instance_id: str = field(validator=Text(min_length=1))
    prompt_token_ids: tuple[int, ...] = field(converter=as_tuple, validator=Each(Integer(ge=0), min_items=1))
    output_token_ids: tuple[int, ...] = field(default=(), converter=as_tuple, validator=Each(Integer(ge=0)))
    params: SamplingParams = field(validator=Instance(SamplingParams))
    seed: int = field(validator=Integer(ge=0))
    kv_schema: KVCacheSchema | None = field(default=None, validator=optional(Instance(KVCacheSchema)))
    chunks: tuple[KVChunk, ...] = field(default=(), converter=as_tuple, validator=Each(Instance(KVChunk)))
    finish_reason: FinishReason | None = field(
        default=None, validator=optional(Choice(get_args(FinishReason)))
    )
    first_logprobs: Mapping[str, Any] | None = field(default=None, validator=optional(Entries(Json())))
    extensions: Mapping[str, Any] = field(factory=dict, validator=Entries(Json()))
    index: int = field(default=0, validator=Integer(ge=0))
    delivered_chars: int = field(default=0, validator=Integer(ge=0))
    weights_id: str = field(default="", validator=Text())
    kv_tokens: int | None = field(default=None, validator=optional(Integer(ge=0)))
    first_text: str | None = field(default=None, validator=optional(Text()))

    def __attrs_post_init__(self) -> None:
        if self.chunks and self.kv_schema is None:
            raise SchemaError("DecodeState", [Problem("$.kv_schema", "is required when chunks are given")])


@define
class TokenLogprob:
    """Log probability of one sampled token and of its most likely alternatives.

    Attributes:
        token_id: id of the sampled token.
        text: text of the token; an incomplete character is U+FFFD.
        logprob: natural logarithm of its probability over the vocabulary.
        alternatives: id, text and log probability of the most likely tokens, most likely first.
        data: bytes of the token; None if only its text is known.
        alternative_data: bytes of each alternative, in the same order; empty if only their texts are known.
        is_end: whether the token ended the output (an end or stop token); such a token adds no text.
    """

    token_id: int
    text: str
    logprob: float
    alternatives: tuple[tuple[int, str, float], ...] = ()
    data: bytes | None = None
    alternative_data: tuple[bytes, ...] = ()
    is_end: bool = False


@define
class ToolCallDelta:
    """A fragment of a tool call.

    Attributes:
        index: which call of the answer it belongs to.
        name: the function; only the first fragment has it.
        arguments: a piece of the JSON text of the arguments.
    """

    index: int
    name: str = ""
    arguments: str = ""


@define
class TokenDelta:
    """One item of a stream: new text and its tokens.

    A delta is made for every sequence in every engine step, so it is not validated.

    Attributes:
        text: new text; empty while the tokens form only part of a character or of a possible stop string. The
            concatenated texts are the whole output.
        token_ids: the tokens of the text.
        index: which of the request's ``n`` completions it belongs to.
        logprobs: one entry per token, if the request asks for them.
        finish_reason: why the completion ended; only in its last delta.
        reasoning: reasoning text, which a backend that claims ``reasoning`` puts here instead of into ``text``.
        tool_calls: fragments of tool calls, from a backend that parses them while streaming.
    """

    text: str
    token_ids: tuple[int, ...]
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()

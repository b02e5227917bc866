"""What goes into a generation and what comes out of it."""

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
    """An image, a recording or a clip that goes with a prompt.

    Attributes:
        kind: image, audio or video.
        uri: ``file:``, ``https:`` or ``data:`` address of the bytes.
        mime_type: media type; null lets the backend find out.
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
        text: the prompt as text; the backend tokenizes it and adds what the model expects at the start.
        token_ids: the prompt as token ids, used as they are.
        media: what the prompt's placeholders stand for, in order.
        add_special_tokens: whether to add the model's start tokens to ``text``; false for text from a chat
            template, which writes them itself.
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
    """Tokens that a request took.

    Attributes:
        prompt_tokens: tokens of the prompt.
        completion_tokens: token ids that the stream's deltas carried, over all n completions.
        cached_tokens: prompt tokens whose KV was found in a cache.
        reasoning_tokens: completion tokens that were reasoning; they are part of completion_tokens.
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
    """Where a request's time went, in seconds.

    Attributes:
        queue_s: from acceptance to the first engine step.
        ttft_s: from acceptance to the first token.
        total_s: from acceptance to the end.
        inter_token_s: mean time between two tokens of one completion; null with fewer than two.
    """

    queue_s: float = field(validator=Number(ge=0))
    ttft_s: float = field(validator=Number(ge=0))
    total_s: float = field(validator=Number(ge=0))
    inter_token_s: float | None = field(default=None, validator=optional(Number(ge=0)))


@schema("1.0")
@frozen(kw_only=True)
class DecodeState:
    """A sequence between two engines: after prefill (``decode``), or after any number of tokens (``resume``).

    It is plain data that another process can continue.

    Attributes:
        request_id: the request that prefill ran for.
        model_id: model that computed it.
        instance_id: engine instance whose cache holds the KV.
        prompt_token_ids: the prompt.
        output_token_ids: tokens chosen so far; the first one by prefill. May be empty for ``resume``.
        params: sampling of the request.
        seed: the seed in force, drawn by prefill where params has none.
        kv_schema: form of the KV that ``chunks`` name; null where the state names none.
        chunks: KV of the tokens computed so far, in token order.
        finish_reason: set where prefill already ended the request.
        first_logprobs: log probabilities of the first token as JSON, where asked for.
        extensions: what only the backend that made it understands, under its name.
        index: which of the request's ``n`` completions it is.
        delivered_chars: characters of the output's text that the consumer has; for ``resume``.
        weights_id: content hash of the model's weights, the same for every engine that loads them; empty
            where unknown.
        kv_tokens: tokens whose KV ``chunks`` hold; null means all of the prompt.
        first_text: text of the first output token, where prefill knows it.
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
            raise SchemaError("DecodeState", [Problem("$.kv_schema", "must be given where chunks are")])


@define
class TokenLogprob:
    """One chosen token's log probability and the best alternatives, most likely first.

    Attributes:
        token_id: the chosen token.
        text: its text; a part of a character is U+FFFD.
        logprob: natural logarithm of its probability over all tokens.
        alternatives: id, text and log probability of the most likely tokens.
        data: the token's own bytes; None where only its text is known.
        alternative_data: those of the alternatives, in their order; empty where only their texts are known.
        is_end: the token ended the output (an end or stop token) and is no part of its text.
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
    """A piece of a tool call: the name comes with the first piece, the arguments' JSON text in pieces."""

    index: int
    name: str = ""
    arguments: str = ""


@define
class TokenDelta:
    """What a stream yields: new text and the tokens it came from.

    Made once per engine step and sequence, so it carries no checks. ``text`` can be empty while a token is
    only part of a character or of a possible stop string; the concatenated texts are the whole output. A
    backend that claims ``reasoning`` puts the text of the model's reasoning into ``reasoning`` instead of
    ``text``, and one that reads tool calls while it streams puts them into ``tool_calls``.
    """

    text: str
    token_ids: tuple[int, ...]
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()

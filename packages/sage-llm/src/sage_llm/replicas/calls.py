"""Arguments and results of the calls, as MessagePack."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec
from sage_infer.contracts import AnswerFormat
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import DecodeState, Prompt, RequestOptions, SamplingParams, TransportSettings, Usage
from sage_infer.sdk.answers import FAMILIES, THOUGHTS, ModelFormat

__all__ = [
    "Abort", "Decode", "Detokenize", "Embed", "Embedded", "Exported", "FetchKV", "Fetched", "FormatData",
    "Generate", "ImportKV", "KVSince", "Nothing", "ParseToolCalls", "PrefetchKV", "Prefill", "PublishKV", "RenderChat",
    "Rerank", "Resume", "State", "Tokenize", "format_data", "format_of", "packed_params", "params_of",
]  # fmt: skip

Text = str | tuple[int, ...]
_FORMS = tuple(dict.fromkeys(form for family in FAMILIES for form in family.forms))


class _Arguments(msgspec.Struct, array_like=True, gc=False):
    """Base of the arguments of a call; a later version may append fields with defaults."""


class Nothing(_Arguments):
    """No arguments."""


class Generate(_Arguments):
    prompts: tuple[Prompt, ...]
    params: bytes  # ``packed_params``
    request_id: str
    options: RequestOptions | None = None


class Resume(_Arguments):
    states: tuple[DecodeState, ...]
    request_id: str
    options: RequestOptions | None = None


class Prefill(_Arguments):
    prompts: tuple[Prompt, ...]
    request_id: str
    params: bytes | None = None
    options: RequestOptions | None = None
    hold_s: float | None = None


class Decode(_Arguments):
    state: DecodeState
    request_id: str
    options: RequestOptions | None = None


class State(_Arguments):
    """Arguments of ``export_kv``."""

    state: DecodeState


class Exported(_Arguments):
    """Result of ``export_kv``."""

    state: DecodeState
    buffers: tuple[bytes, ...]


class ImportKV(_Arguments):
    state: DecodeState
    buffers: tuple[bytes, ...]


class PrefetchKV(_Arguments):
    """Arguments of ``prefetch_kv``; the result is a number of pages."""

    token_ids: tuple[int, ...]
    cache_salt: str = ""


class PublishKV(_Arguments):
    """Arguments of ``publish_kv``; the result is the state with the locations of its KV."""

    state: DecodeState
    transport: str


class FetchKV(_Arguments):
    state: DecodeState
    transport: str
    settings: TransportSettings


class Fetched(_Arguments):
    """Result of ``fetch_kv``."""

    state: DecodeState
    nbytes: int


class RenderChat(_Arguments):
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    template_variables: dict[str, Any] | None = None
    add_generation_prompt: bool = True


class Tokenize(_Arguments):
    prompt: Prompt


class Detokenize(_Arguments):
    token_ids: tuple[int, ...]


class ParseToolCalls(_Arguments):
    text: str
    tools: list[dict[str, Any]] | None = None


class Embed(_Arguments):
    """Arguments of ``embed``, and with ``batch_size`` of ``embed_batch``."""

    texts: tuple[Text, ...]
    batch_size: int | None = None
    truncate: str = "error"
    request_id: str | None = None
    options: RequestOptions | None = None


class Embedded(_Arguments):
    """An ``EmbeddingResult``; the vectors are little-endian float32."""

    model_id: str
    dim: int
    data: bytes
    usage: Usage
    text_tokens: tuple[int, ...] | None = None


class Rerank(_Arguments):
    query: str
    documents: tuple[str, ...]
    top_n: int | None = None
    request_id: str | None = None
    options: RequestOptions | None = None


class Abort(_Arguments):
    request_id: str


class KVSince(_Arguments):
    since: int


class FormatData(_Arguments):
    """A ``ModelFormat``: marks of its forms, and the first mark of its reasoning."""

    family: str
    forms: tuple[tuple[str, str], ...]
    thoughts: str | None
    thoughts_need_special_tokens: bool


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(SamplingParams).decode


_cached = lru_cache(maxsize=1024)(_unpack)
_MAX_CACHED_BYTES = 4096


def packed_params(params: SamplingParams) -> bytes:
    """Return sampling parameters as MessagePack.

    Raises:
        InvalidRequest: a number has more than 64 bits, or a text is not Unicode.
    """
    try:
        return _pack(params)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(f"params cannot be sent: {error}") from None


def params_of(data: bytes) -> SamplingParams:
    """Return the parameters. Most requests of a service have equal ones, which are decoded and checked only once."""
    return _cached(data) if len(data) <= _MAX_CACHED_BYTES else _unpack(data)


def format_data(form: AnswerFormat | None) -> FormatData | None:
    """Return a format of the SDK as data; None for other formats, which do not travel."""
    if not isinstance(form, ModelFormat) or any(one not in _FORMS for one in form.forms):
        return None
    return FormatData(
        form.family,
        tuple((one.opens, one.closes) for one in form.forms),
        None if form.thoughts is None else form.thoughts.opens[0],
        form.thoughts_need_special_tokens,
    )


def format_of(data: FormatData | None) -> ModelFormat | None:
    """Return the format, or None if this version does not know all of its forms."""
    if data is None:
        return None
    forms = tuple(form for marks in data.forms for form in _FORMS if (form.opens, form.closes) == marks)
    thoughts = [form for form in THOUGHTS if form.opens[0] == data.thoughts]
    if len(forms) != len(data.forms) or (data.thoughts is not None and not thoughts):
        return None
    return ModelFormat(
        family=data.family,
        forms=forms,
        thoughts=thoughts[0] if thoughts else None,
        thoughts_need_special_tokens=data.thoughts_need_special_tokens,
    )

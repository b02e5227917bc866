"""``POST /v1/embeddings``."""

from __future__ import annotations

import math
import sys
from array import array
from base64 import b64encode
from collections.abc import Iterator
from itertools import islice

import msgspec
from sage_infer.schemas import EmbeddingResult

from sage_infer_serve.http.errors import wrong_request
from sage_infer_serve.http.exchange import Exchange
from sage_infer_serve.openai.inputs import as_inputs
from sage_infer_serve.openai.options import request_options
from sage_infer_serve.openai.schema import EmbeddingRequest
from sage_infer_serve.service import Service
from sage_infer_serve.work import EMBEDDING, Work

__all__ = ["embeddings"]

_PART = 16  # vectors written before yielding to other requests: about a millisecond
_encode = msgspec.json.encode


async def embeddings(service: Service, exchange: Exchange) -> None:
    request: EmbeddingRequest = await service.read(exchange, EmbeddingRequest)
    model = EMBEDDING.model(service, request.model)
    texts = as_inputs(request.input, "input")
    with Work(service, exchange, EMBEDDING, model) as work:
        result = await service.backend.embed(
            texts,
            model,
            truncate="end" if request.truncate else "error",
            request_id=exchange.request_id,
            options=request_options(service, exchange),
        )
        if request.dimensions is not None and request.dimensions > result.dim:
            raise wrong_request(
                f"dimensions: {model} has {result.dim} dimensions, not {request.dimensions}",
                "dimensions",
            )
        work.end(result.usage)
    items = _items(result, request.dimensions, as_base64=request.encoding_format == "base64")
    usage = {"prompt_tokens": result.usage.prompt_tokens, "total_tokens": result.usage.total_tokens}
    tail = b'],"model":%b,"usage":%b}' % (_encode(model), _encode(usage))
    head = b'{"object":"list","data":['
    if len(result) <= _PART:
        await exchange.respond(head + b",".join(items) + tail)
    else:
        await exchange.respond_in_parts(_parts(head, items, tail))


def _parts(head: bytes, items: Iterator[bytes], tail: bytes) -> Iterator[bytes]:
    before = head
    while some := list(islice(items, _PART)):
        yield before + b",".join(some)
        before = b","
    yield tail


def _items(result: EmbeddingResult, dimensions: int | None, *, as_base64: bool) -> Iterator[bytes]:
    """Each vector as a response entry: little-endian float32 in base64, or numbers."""
    numbers = result.data.cast("f")
    for index in range(len(result)):
        vector = array("f", numbers[index * result.dim : (index + 1) * result.dim])
        if dimensions is not None and dimensions < result.dim:
            vector = _shortened(vector, dimensions)
        embedding = b'"%b"' % b64encode(_little_endian(vector)) if as_base64 else _encode(vector.tolist())
        yield b'{"object":"embedding","index":%d,"embedding":%b}' % (index, embedding)


def _shortened(vector: array[float], dimensions: int) -> array[float]:
    """The first dimensions, renormalized (Matryoshka models keep most of the meaning there)."""
    short = vector[:dimensions]
    length = math.sqrt(sum(x * x for x in short))
    return array("f", (x / length for x in short)) if length > 0 else short


def _little_endian(vector: array[float]) -> bytes:
    if sys.byteorder == "big":
        vector = vector[:]
        vector.byteswap()
    return vector.tobytes()

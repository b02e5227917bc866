"""``POST /v1/rerank`` (Jina's path), ``/v2/rerank`` (Cohere's) and ``/rerank``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from sage_infer_serve.exchange import Exchange
from sage_infer_serve.openai.schema import RerankRequest

if TYPE_CHECKING:
    from sage_infer_serve.app import Gateway

__all__ = ["rerank"]


async def rerank(gateway: Gateway, exchange: Exchange) -> None:
    request: RerankRequest = await gateway.read(exchange, RerankRequest)
    documents = [d if isinstance(d, str) else d.text for d in request.documents]
    with gateway.embedding(exchange, "rerank", request.model) as work:
        result = await gateway.backend.rerank(
            request.query, documents, model=request.model, top_n=request.top_n
        )
        work.end(result.usage)
    tokens = result.usage.prompt_tokens
    # Cohere's answers have no documents, Jina's do unless told otherwise.
    with_documents = request.return_documents
    if with_documents is None:
        with_documents = not exchange.path.startswith("/v2/")
    hits = []
    for hit in result.hits:
        entry: dict[str, Any] = {"index": hit.index, "relevance_score": hit.score}
        if with_documents:
            entry["document"] = {"text": documents[hit.index]}
        hits.append(entry)
    answer = {
        "id": exchange.request_id,
        "object": "list",
        "model": request.model,
        "results": hits,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "meta": {"api_version": {"version": "2"}, "tokens": {"input_tokens": tokens}},
    }
    await exchange.respond(msgspec.json.encode(answer))

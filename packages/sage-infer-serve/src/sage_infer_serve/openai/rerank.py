"""``POST /v1/rerank`` (Jina's path), ``/v2/rerank`` (Cohere's) and ``/rerank``."""

from __future__ import annotations

from typing import Any

import msgspec

from sage_infer_serve.http.exchange import Exchange
from sage_infer_serve.openai.options import request_options
from sage_infer_serve.openai.schema import RerankRequest
from sage_infer_serve.service import Service
from sage_infer_serve.work import RERANKING, Work

__all__ = ["rerank"]


async def rerank(service: Service, exchange: Exchange) -> None:
    request: RerankRequest = await service.read(exchange, RerankRequest)
    model = RERANKING.model(service, request.model)
    documents = [d if isinstance(d, str) else d.text for d in request.documents]
    with Work(service, exchange, RERANKING, model) as work:
        result = await service.backend.rerank(
            request.query,
            documents,
            model,
            top_n=request.top_n,
            request_id=exchange.request_id,
            options=request_options(service, exchange),
        )
        work.end(result.usage)
    tokens = result.usage.prompt_tokens
    # Responses include documents never in Cohere's format, and by default in Jina's.
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
        "model": model,
        "results": hits,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "meta": {"api_version": {"version": "2"}, "tokens": {"input_tokens": tokens}},
    }
    await exchange.respond(msgspec.json.encode(answer))

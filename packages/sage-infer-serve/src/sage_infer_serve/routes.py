"""Every path of the gateway in one table, shared by router, limits, metrics and API description."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version

import msgspec

from sage_infer_serve.http.exchange import Exchange
from sage_infer_serve.openai import answers
from sage_infer_serve.openai.chat import chat_completions
from sage_infer_serve.openai.completions import completions
from sage_infer_serve.openai.embeddings import embeddings
from sage_infer_serve.openai.models import PREFIX, list_models, show_model
from sage_infer_serve.openai.rerank import rerank
from sage_infer_serve.openai.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    RerankRequest,
    TokenizeRequest,
)
from sage_infer_serve.openai.tokenize import detokenize, tokenize
from sage_infer_serve.openapi import document
from sage_infer_serve.routing import Route
from sage_infer_serve.service import Service
from sage_infer_serve.watch import probes
from sage_infer_serve.watch.pages import read_pages, send_page
from sage_infer_serve.work import CHAT, COMPLETION, EMBEDDING, RERANKING

__all__ = ["ROUTES"]


async def _openapi(service: Service, exchange: Exchange) -> None:
    await exchange.respond(_description())


@cache
def _description() -> bytes:
    return msgspec.json.encode(document(ROUTES, version("sage-infer-serve")))


ROUTES: tuple[Route, ...] = (
    Route(
        method="POST", path="/v1/chat/completions", handler=chat_completions, request=ChatRequest,
        summary="Create a chat completion, whole or as an event stream.",
        answer=answers.CHAT_COMPLETION, streams=True, is_counted=True,
        types=CHAT.types, takes_options=True,
    ),
    Route(
        method="POST", path="/v1/completions", handler=completions, request=CompletionRequest,
        summary="Create text completions.", answer=answers.TEXT_COMPLETION, streams=True, is_counted=True,
        types=COMPLETION.types, takes_options=True,
    ),
    Route(
        method="POST", path="/v1/embeddings", handler=embeddings, request=EmbeddingRequest,
        summary="Create embeddings of texts.", answer=answers.EMBEDDINGS, is_counted=True,
        types=EMBEDDING.types, takes_options=True,
    ),
    Route(
        method="POST", path="/v1/rerank", handler=rerank, request=RerankRequest,
        summary="Rank documents by relevance (Jina's format).", answer=answers.RERANKED, is_counted=True,
        types=RERANKING.types, takes_options=True,
    ),
    Route(
        method="POST", path="/v2/rerank", handler=rerank, request=RerankRequest,
        summary="Rank documents by relevance (Cohere's format).", answer=answers.RERANKED, is_counted=True,
        types=RERANKING.types, takes_options=True,
    ),
    Route(
        method="POST", path="/rerank", handler=rerank, request=RerankRequest,
        summary="Rank documents by relevance.", answer=answers.RERANKED, is_counted=True,
        types=RERANKING.types, takes_options=True,
    ),
    Route(
        method="POST", path="/tokenize", handler=tokenize, request=TokenizeRequest,
        summary="Convert a prompt or a chat to token ids.", answer=answers.TOKENS, is_counted=True,
    ),
    Route(
        method="POST", path="/detokenize", handler=detokenize, request=DetokenizeRequest,
        summary="Convert token ids to text.", answer=answers.TEXT, is_counted=True,
    ),
    Route(
        method="GET", path="/v1/models", handler=list_models, summary="List the models and their states.",
        answer=answers.MODELS,
    ),
    Route(
        method="GET", path=PREFIX + "{model}", handler=show_model, summary="Get a model by its id or an alias.",
        answer=answers.MODEL,
    ),
    Route(method="GET", path="/metrics", handler=probes.metrics, summary="Get metrics in Prometheus' text format."),
    Route(
        method="GET", path="/dashboard/state", handler=probes.dashboard_state,
        summary="Get the dashboard's data.", answer=answers.ANYTHING,
    ),
    Route(
        method="GET", path="/openapi.json", handler=_openapi, summary="Get this document.", answer=answers.ANYTHING,
        is_public=True,
    ),
    Route(
        method="GET", path="/health", handler=probes.health, summary="Check whether any model works.",
        answer=answers.STATUS, is_probe=True, is_public=True,
    ),
    Route(
        method="GET", path="/ready", handler=probes.ready, summary="Check whether new requests are accepted.",
        answer=answers.STATUS, is_probe=True, is_public=True,
    ),
    *(Route(method="GET", path=path, handler=send_page, is_public=True) for path in read_pages()),
)  # fmt: skip

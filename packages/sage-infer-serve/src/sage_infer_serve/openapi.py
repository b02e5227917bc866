"""The gateway's description, OpenAPI 3.1: requests from the classes that decode them, answers as they are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from sage_infer_serve.app import ROUTES, Route

__all__ = ["document"]

_SUMMARIES: Mapping[str, str] = {
    "/v1/chat/completions": "Answer a chat, at once or as a stream of events.",
    "/v1/completions": "Continue texts.",
    "/v1/embeddings": "Turn texts into vectors.",
    "/v1/rerank": "Sort documents by relevance (Jina's form).",
    "/v2/rerank": "Sort documents by relevance (Cohere's form).",
    "/rerank": "Sort documents by relevance.",
    "/tokenize": "Token ids of a prompt or a chat.",
    "/detokenize": "Text of token ids.",
    "/v1/models": "The models here, and their state.",
    "/metrics": "Measurements in Prometheus' text format.",
    "/dashboard/state": "Everything that the dashboard shows.",
    "/openapi.json": "This document.",
    "/health": "Whether anything answers.",
    "/ready": "Whether requests are welcome.",
}
_STRING: dict[str, Any] = {"type": "string"}
_TEXT_OR_NULL: dict[str, Any] = {"type": ["string", "null"]}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_NUMBER: dict[str, Any] = {"type": "number"}
_ANYTHING: dict[str, Any] = {"type": "object"}


def _object(required: Mapping[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


def _list_of(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_USAGE = _object(
    {"prompt_tokens": _COUNT, "total_tokens": _COUNT},
    completion_tokens=_COUNT,
    prompt_tokens_details=_object({"cached_tokens": _COUNT}),
)
_REASON = {"enum": ["stop", "length", "tool_calls"]}
_CALL = _object(
    {
        "id": _STRING,
        "type": {"const": "function"},
        "function": _object({"name": _STRING, "arguments": _STRING}),
    }
)
_TOKEN_LOG = {"token": _STRING, "logprob": _NUMBER, "bytes": _list_of({"type": "integer"})}
_CHAT_LOGS = {
    "anyOf": [
        {"type": "null"},
        _object(
            {"content": _list_of(_object({**_TOKEN_LOG, "top_logprobs": _list_of(_object(_TOKEN_LOG))}))}
        ),
    ]
}
_MESSAGE = _object(
    {"role": {"const": "assistant"}, "content": _TEXT_OR_NULL, "refusal": _TEXT_OR_NULL},
    tool_calls=_list_of(_CALL),
)
_MODEL = _object(
    {
        "id": _STRING,
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": _STRING,
        "type": {"enum": ["llm", "embedding", "reranker", "multimodal"]},
        "state": {"enum": ["registered", "loading", "ready", "draining", "sleeping", "failed"]},
    },
    max_model_len={"type": ["integer", "null"]},
)
_STATUS = _object({"status": _STRING, "reason": _STRING})
_RERANKED = _object(
    {
        "id": _STRING,
        "object": {"const": "list"},
        "model": _STRING,
        "results": _list_of(
            _object({"index": _COUNT, "relevance_score": _NUMBER}, document=_object({"text": _STRING}))
        ),
        "usage": _USAGE,
        "meta": _ANYTHING,
    }
)


def _answer(kind: str, choice: Mapping[str, Any]) -> dict[str, Any]:
    return _object(
        {
            "id": _STRING,
            "object": {"const": kind},
            "created": {"type": "integer"},
            "model": _STRING,
            "choices": _list_of(choice),
            "usage": _USAGE,
        }
    )


_ANSWERS: Mapping[str, dict[str, Any]] = {
    "/v1/chat/completions": _answer(
        "chat.completion",
        _object({"index": _COUNT, "message": _MESSAGE, "logprobs": _CHAT_LOGS, "finish_reason": _REASON}),
    ),
    "/v1/completions": _answer(
        "text_completion",
        _object(
            {
                "index": _COUNT,
                "text": _STRING,
                "logprobs": {"type": ["object", "null"]},
                "finish_reason": _REASON,
            }
        ),
    ),
    "/v1/embeddings": _object(
        {
            "object": {"const": "list"},
            "data": _list_of(
                _object(
                    {
                        "object": {"const": "embedding"},
                        "index": _COUNT,
                        "embedding": {"anyOf": [_list_of(_NUMBER), _STRING]},
                    }
                )
            ),
            "model": _STRING,
            "usage": _USAGE,
        }
    ),
    "/v1/rerank": _RERANKED,
    "/v2/rerank": _RERANKED,
    "/rerank": _RERANKED,
    "/tokenize": _object(
        {"count": _COUNT, "max_model_len": {"type": ["integer", "null"]}, "tokens": _list_of(_COUNT)}
    ),
    "/detokenize": _object({"prompt": _STRING}),
    "/v1/models": _object({"object": {"const": "list"}, "data": _list_of(_MODEL)}),
    "/v1/models/{model}": _MODEL,
    "/dashboard/state": _ANYTHING,
    "/openapi.json": _ANYTHING,
    "/health": _STATUS,
    "/ready": _STATUS,
}
_ERROR = {"$ref": "#/components/schemas/Error"}


def document(version: str) -> dict[str, Any]:
    """The whole description."""
    kinds = sorted(
        {route.request for route in ROUTES.values() if route.request}, key=lambda kind: kind.__name__
    )
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    requests = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, Any] = {}
    for (method, path), route in ROUTES.items():
        request = requests[route.request] if route.request is not None else None
        paths.setdefault(path, {})[method.lower()] = _operation(path, route, request)
    model = _operation("/v1/models/{model}", Route(ROUTES["GET", "/v1/models"].handler), None)
    model["parameters"] = [
        {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    ]
    paths["/v1/models/{model}"] = {"get": model}
    error = _object(
        {
            "error": _object(
                {"message": _STRING, "type": _STRING, "param": _TEXT_OR_NULL, "code": _TEXT_OR_NULL}
            )
        }
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sage-infer-serve",
            "version": version,
            "description": "OpenAI's API over models of one's own, with reranking and tokens besides.",
        },
        "paths": paths,
        "components": {
            "schemas": {**components, "Error": error},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(path: str, route: Route, request: Mapping[str, Any] | None) -> dict[str, Any]:
    answers: dict[str, Any] = {"200": {"description": "The answer.", "content": _content(path)}}
    codes = {"4XX": "The request is wrong, or over a limit."}
    if route.works or path in ("/health", "/ready"):
        codes["503"] = "Nothing can answer now."
    for code, text in codes.items():
        schema = _ANSWERS[path] if path in ("/health", "/ready") and code == "503" else _ERROR
        answers[code] = {"description": text, "content": {"application/json": {"schema": schema}}}
    operation: dict[str, Any] = {
        "summary": _SUMMARIES.get(path, "One model, by its id or an alias."),
        "responses": answers,
        "security": [{}] if route.open_to_all else [{}, {"key": []}],
    }
    if request is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": request}}}
    return operation


def _content(path: str) -> dict[str, Any]:
    if path == "/metrics":
        return {"text/plain": {"schema": _STRING}}
    content: dict[str, Any] = {"application/json": {"schema": _ANSWERS[path]}}
    if path in ("/v1/chat/completions", "/v1/completions"):
        content["text/event-stream"] = {"schema": _STRING}
    return content

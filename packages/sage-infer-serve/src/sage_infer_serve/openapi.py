"""The OpenAPI 3.1 description, generated from the route table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from sage_infer_serve.openai.answers import ERROR, STRING
from sage_infer_serve.routing import Route

__all__ = ["document"]

_ERROR = {"$ref": "#/components/schemas/Error"}


def document(routes: Iterable[Route], version: str) -> dict[str, Any]:
    """The description of all routes with a summary."""
    described = [route for route in routes if route.summary]
    kinds = sorted({route.request for route in described if route.request}, key=lambda kind: kind.__name__)
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    requests = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, Any] = {}
    for route in described:
        request = None if route.request is None else requests[route.request]
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, request)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sage-infer-serve",
            "version": version,
            "description": "OpenAI's API for self-hosted models, with reranking and tokenization.",
        },
        "paths": paths,
        "components": {
            "schemas": {**components, "Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route, request: Mapping[str, Any] | None) -> dict[str, Any]:
    answers: dict[str, Any] = {
        "200": {"description": "The response.", "content": _content(route)},
        "4XX": _json("The request is invalid or exceeds a limit.", _ERROR),
    }
    if route.is_counted or route.is_probe:
        form = route.answer if route.is_probe and route.answer is not None else _ERROR
        answers["503"] = _json("The service is unavailable.", form)
    operation: dict[str, Any] = {
        "summary": route.summary,
        "responses": answers,
        "security": [{}] if route.is_public else [{}, {"key": []}],
    }
    if route.parameter is not None:
        text = {"type": "string", "minLength": 1}
        operation["parameters"] = [{"name": route.parameter, "in": "path", "required": True, "schema": text}]
    if request is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": request}}}
    return operation


def _json(description: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _content(route: Route) -> dict[str, Any]:
    if route.answer is None:
        return {"text/plain": {"schema": STRING}}
    content: dict[str, Any] = {"application/json": {"schema": route.answer}}
    if route.streams:
        content["text/event-stream"] = {"schema": STRING}
    return content

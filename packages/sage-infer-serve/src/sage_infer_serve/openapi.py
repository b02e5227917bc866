"""The OpenAPI 3.1 description, generated from the route table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from sage_infer_serve.http.headers import DEADLINE, DESCRIBED_OPTIONS, IGNORED_FIELDS, MAX_DEADLINE_DIGITS
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
        "200": {"description": "The response.", "content": _content(route), "headers": _headers(route)},
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
    parameters: list[dict[str, Any]] = []
    if route.parameter is not None:
        text = {"type": "string", "minLength": 1}
        parameters.append({"name": route.parameter, "in": "path", "required": True, "schema": text})
    if route.takes_options:
        parameters += [_option(name, meaning) for name, meaning in DESCRIBED_OPTIONS.items()]
        answers["504"] = _json("The request missed its deadline.", _ERROR)
    if parameters:
        operation["parameters"] = parameters
    if request is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": request}}}
    return operation


def _option(name: str, meaning: str) -> dict[str, Any]:
    """A request header that becomes an option."""
    form: dict[str, Any] = STRING
    if name == DEADLINE:
        form = {"type": "integer", "minimum": 1, "maximum": 10**MAX_DEADLINE_DIGITS - 1}
    return {"name": name, "in": "header", "required": False, "description": meaning, "schema": form}


def _headers(route: Route) -> dict[str, Any]:
    """Headers of the response."""
    found = {"x-request-id": "Id of the request, that of its header x-request-id if it has one."}
    if route.request is not None:
        found[IGNORED_FIELDS] = (
            "Fields of the request that have no effect, separated by commas; absent without any."
        )
    return {name: {"description": text, "schema": STRING} for name, text in found.items()}


def _json(description: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _content(route: Route) -> dict[str, Any]:
    if route.answer is None:
        return {"text/plain": {"schema": STRING}}
    content: dict[str, Any] = {"application/json": {"schema": route.answer}}
    if route.streams:
        content["text/event-stream"] = {"schema": STRING}
    return content

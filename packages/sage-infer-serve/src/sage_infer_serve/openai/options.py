"""``RequestOptions`` from a request's API key, headers and fields."""

from __future__ import annotations

import time
from typing import Any

from sage_infer.schemas import RequestOptions

from sage_infer_serve.http.errors import wrong_request
from sage_infer_serve.http.exchange import Exchange
from sage_infer_serve.http.headers import CHAIN, DEADLINE, MAX_DEADLINE_DIGITS, SESSION, TRACE
from sage_infer_serve.openai.schema import Sampling
from sage_infer_serve.service import Service

__all__ = ["request_options"]

_AUTO = "auto"  # OpenAI's word for a service tier that the server chooses


def request_options(
    service: Service, exchange: Exchange, request: Sampling | None = None
) -> RequestOptions | None:
    """Options of a request; None without any.

    The tenant is the API key's name, or without keys the client's address. With keys, the cache salt is derived from
    the key and the client's own salt, so clients cannot choose another tenant's cache.

    Raises:
        HTTPError: a header has an invalid value.
    """
    given: dict[str, Any] = {}
    if exchange.client:
        given["tenant"] = exchange.client
    salt = None if request is None else request.cache_salt
    if exchange.key is not None:
        given["cache_salt"] = exchange.key.cache_salt(salt)
    elif salt is not None:
        given["cache_salt"] = salt
    if (session := _header(exchange, SESSION)) is not None:
        given["session"] = session
    if (chain := _header(exchange, CHAIN)) is not None:
        given["chain"] = chain
    if (deadline := _header(exchange, DEADLINE)) is not None:
        given["deadline"] = _seconds_left(deadline, exchange.started)
    if request is not None:
        if request.prompt_cache_key:
            given["session"] = request.prompt_cache_key
        if request.service_tier not in (None, _AUTO):
            given["service_class"] = request.service_tier
        if request.priority:
            given["priority"] = request.priority
    if service.tracing is not None:
        given["trace"] = service.tracing.carrier()
    else:
        pairs = ((name, _header(exchange, name)) for name in TRACE)
        if trace := {name: value for name, value in pairs if value is not None}:
            given["trace"] = trace
    return RequestOptions(**given) if given else None


def _header(exchange: Exchange, name: str) -> str | None:
    value = exchange.headers.get(name.encode())
    return value.decode("latin-1") if value else None


def _seconds_left(text: str, started: float) -> float:
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_DEADLINE_DIGITS and int(text) > 0):
        raise wrong_request(
            f"{DEADLINE} must be a whole number of milliseconds above 0 of at most {MAX_DEADLINE_DIGITS} digits, "
            f"got {text[:40]!r}",
            DEADLINE,
        )
    return int(text) / 1000 - (time.perf_counter() - started)

"""Errors in the format of OpenAI's API: a status, and ``{"error": {"message", "type", "param", "code"}}``.

The format is documented at https://platform.openai.com/docs/guides/error-codes; additional codes are those of
``sage_infer.errors``.
"""

from __future__ import annotations

import math

import msgspec
from sage_infer.errors import (
    BackendUnavailable,
    CapabilityMismatch,
    EngineDead,
    InvalidRequest,
    ModelNotFound,
    OutOfMemory,
    Overloaded,
    RequestCancelled,
    SageInferError,
    UnsupportedFeature,
)

__all__ = [
    "HTTPError",
    "as_http_error",
    "error_body",
    "limited",
    "unauthorized",
    "unavailable",
    "wrong_request",
]

Headers = tuple[tuple[bytes, bytes], ...]

_INVALID = "invalid_request_error"
_SERVER = "server_error"
_STATUS: tuple[tuple[type[SageInferError], int, str], ...] = (
    (ModelNotFound, 404, _INVALID),
    (InvalidRequest, 400, _INVALID),
    (UnsupportedFeature, 400, _INVALID),
    (CapabilityMismatch, 400, _INVALID),
    (OutOfMemory, 503, _SERVER),
    (EngineDead, 503, _SERVER),
    (BackendUnavailable, 503, _SERVER),
    (RequestCancelled, 503, _SERVER),
)


class HTTPError(Exception):
    """An error response."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = _INVALID,
        code: str | None = None,
        param: str | None = None,
        headers: Headers = (),
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.code, self.param, self.headers = code, param, headers


def wrong_request(
    message: str, param: str | None = None, *, status: int = 400, code: str | None = None
) -> HTTPError:
    """Invalid input; ``param`` is its location in the request, such as ``messages[0].content``."""
    return HTTPError(status, message, code=code, param=param)


def unauthorized(message: str) -> HTTPError:
    headers = ((b"www-authenticate", b"Bearer"),)
    return HTTPError(401, message, kind="authentication_error", code="invalid_api_key", headers=headers)


def limited(message: str, retry_after: float, *, code: str) -> HTTPError:
    """429 with ``Retry-After`` in whole seconds, and ``retry-after-ms`` for OpenAI clients."""
    seconds = max(1, math.ceil(retry_after))
    headers = (
        (b"retry-after", str(seconds).encode()),
        (b"retry-after-ms", str(max(1, math.ceil(retry_after * 1000))).encode()),
    )
    return HTTPError(429, message, kind="rate_limit_error", code=code, headers=headers)


def unavailable(message: str, retry_after: float, *, code: str) -> HTTPError:
    """503 with the headers of ``limited``."""
    error = limited(message, retry_after, code=code)
    error.status, error.kind = 503, _SERVER
    return error


def as_http_error(error: SageInferError) -> HTTPError:
    """The response to a backend's error."""
    if isinstance(error, Overloaded):
        return limited(error.message, error.retry_after, code=error.code)
    if isinstance(error, RequestCancelled) and error.by == "deadline":
        return HTTPError(504, error.message, kind=_SERVER, code="deadline_exceeded")
    for cls, status, kind in _STATUS:
        if isinstance(error, cls):
            param = "model" if cls is ModelNotFound else None
            return HTTPError(status, error.message, kind=kind, code=error.code, param=param)
    return HTTPError(500, error.message, kind=_SERVER, code=error.code)


def error_body(error: HTTPError) -> bytes:
    fields = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
    return msgspec.json.encode({"error": fields})

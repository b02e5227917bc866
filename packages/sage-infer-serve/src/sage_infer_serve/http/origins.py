"""Origin checks: CORS for allowed origins, rejection of all others.

A server on loopback without keys trusts all clients that reach it, and every web page in the user's browser can.
So the ``Host`` must be that of this machine (DNS names that point here do not count), and pages of
other origins are rejected.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

from sage_infer_serve.http.errors import wrong_request
from sage_infer_serve.http.exchange import Exchange
from sage_infer_serve.http.headers import OPTION_HEADERS
from sage_infer_serve.settings import GatewaySettings

__all__ = ["Origins", "is_loopback"]

Headers = tuple[tuple[bytes, bytes], ...]

_HEADERS = (b"authorization", b"content-type", b"x-request-id", *(name.encode() for name in OPTION_HEADERS))
_SDK_HEADERS = (b"x-stainless-", b"openai-")  # sent by OpenAI clients with every request
_HEADER_NAME = re.compile(rb"[a-z0-9-]{1,64}")


class Origins:
    """Checks a request's ``Host`` and ``Origin``. ``is_checked`` is False if no check is needed."""

    def __init__(self, settings: GatewaySettings, *, has_keys: bool) -> None:
        self._allowed = frozenset(origin.encode() for origin in settings.cors_origins)
        self._any = b"*" in self._allowed
        self._guarded = not has_keys and not settings.insecure and is_loopback(settings.host)
        self.is_checked = self._guarded or bool(self._allowed)

    def check(self, exchange: Exchange) -> Headers:
        """Headers for the response.

        Raises:
            HTTPError: the origin is not allowed (403).
        """
        origin = exchange.headers.get(b"origin")
        if self._guarded:
            host = exchange.headers.get(
                b"host", b"localhost"
            ).lower()  # host names are case-insensitive (RFC 9110 4.2.3)
            if not _is_here(host):
                raise wrong_request(
                    "without API keys this server accepts requests to localhost only; configure keys, or use localhost",
                    status=403, code="host_not_allowed",
                )  # fmt: skip
            if origin is not None and not self._fits(origin) and origin.lower().partition(b"://")[2] != host:
                raise wrong_request(
                    "cross-origin requests are not allowed; add the origin to the setting cors_origins",
                    status=403, code="origin_not_allowed",
                )  # fmt: skip
        if origin is None or not self._fits(origin):
            return ()
        return (
            (b"access-control-allow-origin", b"*" if self._any else origin),
            (
                b"access-control-expose-headers",
                b"x-request-id, retry-after, retry-after-ms, x-sage-ignored-fields",
            ),
            (b"vary", b"origin"),
        )

    def preflight(self, exchange: Exchange) -> Headers:
        """Preflight headers for an allowed origin; none for other requests."""
        origin = exchange.headers.get(b"origin")
        if origin is None or not self._fits(origin):
            return ()
        return (
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-allow-headers", _allowed_headers(exchange)),
            (b"access-control-max-age", b"600"),
        )

    def _fits(self, origin: bytes) -> bool:
        return self._any or origin in self._allowed


def _allowed_headers(exchange: Exchange) -> bytes:
    """Allowed request headers: those that this server reads, and requested headers of the SDKs."""
    asked = exchange.headers.get(b"access-control-request-headers", b"")
    names = (name.strip().lower() for name in asked.split(b","))
    sdk = (name for name in names if name.startswith(_SDK_HEADERS) and _HEADER_NAME.fullmatch(name))
    return b", ".join(dict.fromkeys((*_HEADERS, *sdk)))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host."""
    host = host.lower().removesuffix(".")  # a final dot denotes the DNS root
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@lru_cache(maxsize=64)
def _is_here(host: bytes) -> bool:
    name = host.decode("latin-1")
    name = name.rpartition(":")[0] if ":" in name and not name.endswith("]") else name
    return is_loopback(name)

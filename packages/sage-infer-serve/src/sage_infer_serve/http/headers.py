"""Request headers that become options, and response headers added by the gateway."""

from __future__ import annotations

__all__ = ["CHAIN", "DEADLINE", "IGNORED_FIELDS", "OPTION_HEADERS", "SESSION", "TRACE"]

DEADLINE = "x-sage-deadline-ms"
CHAIN = "x-sage-chain"
SESSION = "x-session-id"
TRACE = ("traceparent", "tracestate")
OPTION_HEADERS = (*TRACE, SESSION, CHAIN, DEADLINE)
IGNORED_FIELDS = "x-sage-ignored-fields"  # of a response: the fields of the request that have no effect

"""Headers of a request that the gateway reads into its options."""

from __future__ import annotations

__all__ = ["CHAIN", "DEADLINE", "OPTION_HEADERS", "SESSION", "TRACE"]

DEADLINE = "x-sage-deadline-ms"
CHAIN = "x-sage-chain"
SESSION = "x-session-id"
TRACE = ("traceparent", "tracestate")
OPTION_HEADERS = (*TRACE, SESSION, CHAIN, DEADLINE)

"""Request headers that become options, and response headers added by the gateway."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = [
    "CHAIN", "DEADLINE", "DESCRIBED_OPTIONS", "IGNORED_FIELDS", "MAX_DEADLINE_DIGITS", "OPTION_HEADERS", "SESSION",
    "TRACE",
]  # fmt: skip

DEADLINE = "x-sage-deadline-ms"
CHAIN = "x-sage-chain"
SESSION = "x-session-id"
TRACE = ("traceparent", "tracestate")
MAX_DEADLINE_DIGITS = 15  # 30,000 years

DESCRIBED_OPTIONS: Mapping[str, str] = {
    TRACE[0]: "W3C trace context: the span that the request belongs to.",
    TRACE[1]: "W3C trace context: state of tracing systems.",
    SESSION: "Conversation that the request belongs to; the field prompt_cache_key has precedence.",
    CHAIN: "Chain of calls that the request belongs to.",
    DEADLINE: "Milliseconds from the arrival of the request until it ends with 504 (deadline_exceeded).",
}
"""Request headers that become options, with their meaning."""

OPTION_HEADERS = tuple(DESCRIBED_OPTIONS)
IGNORED_FIELDS = "x-sage-ignored-fields"  # of a response: the fields of the request that have no effect

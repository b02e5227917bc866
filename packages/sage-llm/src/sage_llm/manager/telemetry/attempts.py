"""Spans of dispatches: which instance a request went to, why, and how that ended."""

from __future__ import annotations

from sage_llm.manager.live_instance import Attempt
from sage_llm.manager.request import ManagedRequest
from sage_llm.replicas.spans import OpenSpan, Spans

__all__ = ["AttemptSpans"]


class AttemptSpans:
    """Starts and ends the spans of dispatches.

    Args:
        spans: None records nothing.
    """

    def __init__(self, spans: Spans | None) -> None:
        self._spans = spans

    def begin(self, request: ManagedRequest, attempt: Attempt) -> OpenSpan:
        """A request is sent to an instance."""
        if self._spans is None:
            return _NOTHING
        instance = attempt.instance
        span = self._spans.begin(f"chat {request.model_id}", request.options.trace or {}, serves=False)
        span.set(
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": instance.descriptor.capability.backend_name,
                "gen_ai.request.model": request.model_id,
                "gen_ai.response.id": attempt.request_id,
                "sage_llm.instance": instance.instance_id,
                "sage_llm.attempt": attempt.number,
                "sage_llm.migrations": request.migrations,
                "sage_llm.output_before": request.ledger.tokens,
            }
        )
        return span

    def end(self, request: ManagedRequest, attempt: Attempt) -> None:
        """A request has left an instance, or has ended."""
        if self._spans is None:
            return
        span = attempt.span
        span.set(
            {
                "gen_ai.usage.input_tokens": request.prompt_tokens,
                "gen_ai.usage.output_tokens": attempt.output_tokens,
            }
        )
        span.end(None if request.outcome == "finished" else request.outcome or "moved")


_NOTHING = OpenSpan()

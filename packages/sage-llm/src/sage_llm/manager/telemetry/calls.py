"""Spans of embedding and reranking requests: which instance each was sent to, in which batch, and how that ended."""

from __future__ import annotations

from collections.abc import Sequence

from sage_infer.schemas import Usage

from sage_llm.manager.calls.call import ManagedCall
from sage_llm.manager.live_instance import LiveInstance
from sage_llm.replicas.spans import OpenSpan, Spans

__all__ = ["CallSpans"]

_OPERATIONS = {"embed": "embeddings", "rerank": "rerank"}


class CallSpans:
    """Starts and ends the spans of dispatches. The replica's span of a batch is below the span of its first request.

    Args:
        spans: None records nothing.
    """

    def __init__(self, spans: Spans | None) -> None:
        self._spans = spans

    def begin(self, call: ManagedCall, instance: LiveInstance) -> None:
        """A request is sent to an instance."""
        if self._spans is None:
            return
        operation = _OPERATIONS[call.kind]
        call.span = self._spans.begin(f"{operation} {call.model_id}", call.options.trace or {}, serves=False)
        call.span.set(
            {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": instance.descriptor.capability.backend_name,
                "gen_ai.request.model": call.model_id,
                "sage_llm.instance": instance.instance_id,
                "sage_llm.attempt": call.number,
            }
        )

    def join(self, calls: Sequence[ManagedCall]) -> None:
        """Requests are computed by one call of the engine: the others are linked to the span of the first one."""
        if self._spans is None:
            return
        for call in calls:
            call.span.set({"sage_llm.batch_requests": len(calls)})
            if call is not calls[0]:
                call.span.link(calls[0].span.carrier)

    def end(self, call: ManagedCall, usage: Usage | None = None) -> None:
        """A request has its result, has left its instance, or has ended; a second call has no effect.

        Args:
            usage: of its result, if it has one.
        """
        if self._spans is None:
            return
        span, call.span = call.span, OpenSpan()
        if usage is not None:
            span.set({"gen_ai.usage.input_tokens": usage.prompt_tokens})
        span.end(None if usage is not None else call.outcome or "moved")

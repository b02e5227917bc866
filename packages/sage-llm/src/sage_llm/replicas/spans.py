"""OpenTelemetry spans of a request on its way: one per dispatch in the control plane, one per call in a replica.

They follow the semantic conventions for generative AI and never contain texts. The W3C trace context travels in the
options of a request (``RequestOptions.trace``), so that all spans of a request belong to one trace.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sage_infer.errors import ConfigError, SageInferError

__all__ = ["TRACING_VARIABLE", "OpenSpan", "Spans", "export_spans", "spans_of_replica"]

TRACING_VARIABLE = "SAGE_LLM_TRACING"
"""Environment variable with the value 1 in replicas that export spans."""


class OpenSpan:
    """A span until its end; this base records nothing.

    Attributes:
        carrier: its trace context, for the next process.
    """

    carrier: Mapping[str, str] | None = None

    def set(self, attributes: Mapping[str, Any]) -> None:
        """Set attributes; None sets none."""

    def link(self, carrier: Mapping[str, str] | None) -> None:
        """Link it to the span with this context, which also works for this one; None links to nothing."""

    def end(self, error: BaseException | str | None = None) -> None:
        """End it. Of an error only its code is recorded, as messages may contain text of a request."""


class _Span(OpenSpan):
    def __init__(self, span: Any, carrier: Mapping[str, str]) -> None:
        self._span, self.carrier = span, carrier

    def set(self, attributes: Mapping[str, Any]) -> None:
        for name, value in attributes.items():
            if value is not None:
                self._span.set_attribute(name, value)

    def link(self, carrier: Mapping[str, str] | None) -> None:
        if carrier is not None:
            from opentelemetry import propagate, trace

            self._span.add_link(trace.get_current_span(propagate.extract(dict(carrier))).get_span_context())

    def end(self, error: BaseException | str | None = None) -> None:
        if error is not None:
            from opentelemetry.trace import StatusCode

            code = error if isinstance(error, str) else _code(error)
            self._span.set_attribute("error.type", code)
            self._span.set_status(StatusCode.ERROR, code)
        self._span.end()


class Spans:
    """Creates spans with the tracer provider of the process.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """

    def __init__(self) -> None:
        try:
            from opentelemetry import propagate, trace
        except ImportError:
            raise ConfigError("tracing needs OpenTelemetry: pip install 'sage-infer-serve[otel]'") from None
        self._propagate, self._trace = propagate, trace
        self._tracer = trace.get_tracer("sage_llm")

    def begin(self, name: str, parent: Mapping[str, str], *, serves: bool) -> OpenSpan:
        """Start a span below the context of another process or module.

        Args:
            serves: whether the caller is in another process; else this span calls another one.
        """
        kind = self._trace.SpanKind.SERVER if serves else self._trace.SpanKind.CLIENT
        span = self._tracer.start_span(name, context=self._propagate.extract(dict(parent)), kind=kind)
        carrier: dict[str, str] = {}
        self._propagate.inject(carrier, self._trace.set_span_in_context(span))
        return _Span(span, carrier)


def spans_of_replica() -> Spans | None:
    """The spans of a replica process; None unless its environment has ``SAGE_LLM_TRACING=1``."""
    return Spans() if _is_on() else None


def export_spans() -> Any:
    """Export the spans of a replica process by OTLP; returns the provider to shut down, or None without tracing."""
    if not _is_on():
        return None
    from sage_infer_serve.watch.tracing import Tracing

    return Tracing.export_by_otlp("sage-llm-replica")


def _is_on() -> bool:
    return os.environ.get(TRACING_VARIABLE) == "1"


def _code(error: BaseException) -> str:
    return error.code if isinstance(error, SageInferError) else type(error).__name__

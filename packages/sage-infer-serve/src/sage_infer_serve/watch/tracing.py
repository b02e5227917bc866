"""OpenTelemetry traces with the semantic conventions for generative AI. Requires the extra ``otel``.

A request's span belongs to the trace of its ``traceparent`` header (W3C Trace Context). It is current while the
backend is called, so spans of the backend are its children. Texts are never recorded.
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sage_infer.errors import ConfigError, SageInferError
from sage_infer.schemas import SamplingParams, Usage

from sage_infer_serve.http.errors import HTTPError
from sage_infer_serve.http.exchange import Exchange
from sage_infer_serve.http.headers import TRACE

__all__ = ["Span", "Tracing"]

_PARAMETERS = ("temperature", "top_p", "top_k", "max_tokens", "frequency_penalty", "presence_penalty", "seed")


class Tracing:
    """Creates spans with the tracer provider of the process.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """

    def __init__(self) -> None:
        try:
            from opentelemetry import context, propagate, trace
        except ImportError:
            raise ConfigError("tracing needs OpenTelemetry: pip install 'sage-infer-serve[otel]'") from None
        self._context, self._propagate, self._trace = context, propagate, trace
        self._tracer = trace.get_tracer("sage_infer_serve")

    def begin(
        self,
        operation: str,
        model: str,
        exchange: Exchange,
        params: SamplingParams | None,
        *,
        is_streamed: bool,
    ) -> Span:
        """Start a request's span and make it the current one, in the request's own task."""
        carrier = {
            name: value.decode("latin-1")
            for name in ("traceparent", "tracestate", "baggage")
            if (value := exchange.headers.get(name.encode())) is not None
        }
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "sage_infer",
            "gen_ai.request.model": model,
            "gen_ai.response.id": exchange.request_id,
            "gen_ai.response.model": model,
        }
        if params is not None:
            asked = {name: getattr(params, name) for name in _PARAMETERS}
            attributes |= {
                f"gen_ai.request.{name}": value for name, value in asked.items() if value is not None
            }
            if params.n > 1:
                attributes["gen_ai.request.choice.count"] = params.n
            if params.stop:
                attributes["gen_ai.request.stop_sequences"] = list(params.stop)
        if is_streamed:
            attributes["gen_ai.request.stream"] = True
        span = self._tracer.start_span(
            f"{operation} {model}",
            context=self._propagate.extract(carrier),
            kind=self._trace.SpanKind.SERVER,
            attributes=attributes,
        )
        self._context.attach(self._trace.set_span_in_context(span))  # ends with the request's task
        return Span(span)

    def carrier(self) -> dict[str, str]:
        """The current span as a W3C trace context, to continue the trace in another process."""
        found: dict[str, str] = {}
        self._propagate.inject(found)
        return {name: value for name, value in found.items() if name in TRACE}

    @staticmethod
    def export_by_otlp(service: str = "sage-infer-serve") -> Any:
        """Export spans to ``OTEL_EXPORTER_OTLP_ENDPOINT``. Returns the provider, which the caller shuts down.

        ``service`` is the ``service.name`` of the spans.

        Raises:
            ConfigError: the extra ``otel`` is not installed.
        """
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise ConfigError("tracing needs OpenTelemetry: pip install 'sage-infer-serve[otel]'") from None
        provider = TracerProvider(resource=Resource.create({"service.name": service}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(provider)
        return provider


class Span:
    """A request's span until it ends."""

    def __init__(self, span: Any) -> None:
        self._span = span

    def first_token(self) -> None:
        self._span.add_event("gen_ai.first_token")

    def end(self, usage: Usage | None, finish_reasons: Sequence[str]) -> None:
        if usage is not None:
            self._span.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
            self._span.set_attribute("gen_ai.usage.output_tokens", usage.completion_tokens)
            self._span.set_attribute("gen_ai.usage.cache_read.input_tokens", usage.cached_tokens)
        if finish_reasons:
            self._span.set_attribute("gen_ai.response.finish_reasons", list(finish_reasons))
        self._span.end()

    def fail(self, error: BaseException | None) -> None:
        """Record only the error's class: its message may contain text of the request."""
        from opentelemetry.trace import StatusCode

        kind = type(error).__name__ if error is not None else "error"
        if isinstance(error, SageInferError):
            kind = error.code
        elif isinstance(error, HTTPError):
            kind = error.code or str(error.status)
        self._span.set_attribute("error.type", kind)
        self._span.set_status(StatusCode.ERROR, kind)
        self._span.end()

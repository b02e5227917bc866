"""Backend work for one request: its metrics, trace, token charges and error conversion."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import TracebackType

from attrs import frozen
from sage_infer.compat import Self
from sage_infer.errors import OutOfMemory, RequestCancelled, SageInferError, UnsupportedFeature
from sage_infer.names import GENERATING, ModelType
from sage_infer.schemas import SamplingParams, Usage

from sage_infer_serve.http.auth import APIKey
from sage_infer_serve.http.errors import HTTPError, as_http_error, wrong_request
from sage_infer_serve.http.exchange import Exchange
from sage_infer_serve.service import Service
from sage_infer_serve.watch.observe import Observation
from sage_infer_serve.watch.tracing import Span

__all__ = ["CHAT", "COMPLETION", "EMBEDDING", "RERANKING", "Operation", "Work"]


@frozen
class Operation:
    """A kind of work.

    Attributes:
        name: operation name in traces (``gen_ai.operation.name``).
        verb: verb for error messages ("the model cannot …").
        types: model types that support it.
    """

    name: str
    verb: str
    types: tuple[ModelType, ...]

    @property
    def generates(self) -> bool:
        return self.types == GENERATING

    def model(self, service: Service, name: str | None) -> str:
        """The requested model; without a name, the first suitable model that is ready, else the first suitable one.

        Raises:
            HTTPError: no model supports the operation (404).
        """
        if name is not None:
            return name
        backend = service.backend
        fitting = [m.model_id for m in backend.list_models() if m.model_type in self.types]
        if not fitting:
            message = f"no model of this server can {self.verb}"
            raise wrong_request(message, "model", status=404, code="model_not_found")
        return next((i for i in fitting if backend.get_model_status(i).state == "ready"), fitting[0])


_BYTES_PER_TOKEN = 4

CHAT = Operation("chat", "chat", GENERATING)
COMPLETION = Operation("text_completion", "complete text", GENERATING)
EMBEDDING = Operation("embeddings", "embed", ("embedding",))
RERANKING = Operation("rerank", "rerank", ("reranker",))


class Work:
    """A context manager for backend work. Call ``tokens`` for each delta, and ``end`` with the usage.

    An exception in the body is counted as an error. ``params`` and ``is_streamed`` are for the trace.

    Raises, on exit:
        HTTPError: 404 if the backend rejected the request because the model has another type.
    """

    __slots__ = (
        "_admission",
        "_charged",
        "_ended",
        "_exchange",
        "_model",
        "_operation",
        "_service",
        "_span",
        "_watch",
        "tokens",
    )

    def __init__(
        self,
        service: Service,
        exchange: Exchange,
        operation: Operation,
        model: str,
        params: SamplingParams | None = None,
        *,
        is_streamed: bool = False,
    ) -> None:
        self._admission = service.admit(model, exchange.client)
        self._service, self._exchange, self._operation, self._model = service, exchange, operation, model
        exchange.model = model if service.type_of(model) is not None else ""
        self._watch = Observation(service.recorder, exchange.model, exchange.started)
        self.tokens: Callable[[int], None] = self._watch.tokens
        self._span: Span | None = None
        self._ended = False
        self._charged = 0
        if exchange.key is not None and exchange.key.counts_tokens:
            self.tokens = self._charging(exchange.key)
        if service.tracing is not None:
            self._span = service.tracing.begin(
                operation.name, model, exchange, params, is_streamed=is_streamed
            )
        self.tokens = self._reporting_the_first(self._working())
        tenant = service.tenant(model, exchange.client)
        if params is None:
            self._admission.accepted(exchange, self._input_tokens(), at_most=False, tenant=tenant)
        else:
            self._admission.accepted(exchange, (params.max_tokens or math.inf) * params.n, tenant=tenant)

    def _input_tokens(self) -> int:
        return max(1, self._exchange.body_bytes // _BYTES_PER_TOKEN)

    def _charging(self, key: APIKey) -> Callable[[int], None]:
        """Charge tokens to the key as they are generated, so that clients which disconnect are charged too."""
        tokens = self._watch.tokens

        def charged(count: int) -> None:
            self._charged += count
            key.charge(count)
            tokens(count)

        return charged

    def _working(self) -> Callable[[int], None]:
        tokens, worked = self.tokens, self._admission.worked

        def counted(count: int) -> None:
            worked(count or 1)  # the text of a server that returns no token ids is work, too
            tokens(count)

        return counted

    def _reporting_the_first(self, tokens: Callable[[int], None]) -> Callable[[int], None]:
        def first(count: int) -> None:
            self._admission.answered(self._exchange)
            if self._span is not None:
                self._span.first_token()
            self.tokens = tokens
            tokens(count)

        return first

    def end(self, usage: Usage | None, finish_reasons: Sequence[str] = ()) -> None:
        """The work is done. Record it before the response is sent."""
        self._ended = True
        if not self._operation.generates:
            self._admission.worked(self._input_tokens())
        elif usage is not None:
            self._admission.ended(self._exchange, usage.completion_tokens)
        self._admission.answered(self._exchange)
        self._watch.end(usage, embedded=not self._operation.generates)
        if self._exchange.key is not None and usage is not None:
            self._exchange.key.charge(usage.total_tokens - self._charged)
        if self._span is not None:
            self._span.end(usage, finish_reasons)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not self._ended and _is_fault(error):
            self._admission.failed(self._exchange)
        else:
            self._admission.left(self._exchange)
        if self._ended:
            return
        if self._charged and self._exchange.key is not None:
            # The prompt was computed too, but its length is only known at the end of a stream: estimate it.
            self._exchange.key.charge(self._exchange.body_bytes // _BYTES_PER_TOKEN)
        if error is not None and self._exchange.model:
            self._watch.end(None, failed=True)
        if self._span is not None:
            self._span.fail(error)
        if isinstance(error, UnsupportedFeature):
            found = self._service.type_of(self._model)
            if found is not None and found not in self._operation.types:
                raise self._wrong_kind(found) from None

    def _wrong_kind(self, found: ModelType) -> HTTPError:
        fitting = [
            m.model_id for m in self._service.backend.list_models() if m.model_type in self._operation.types
        ]
        hint = f"use {' or '.join(fitting)}" if fitting else "no model of this server can"
        message = f"model {self._model!r} has the type {found} and cannot {self._operation.verb}; {hint}"
        return wrong_request(message, "model", status=404, code="model_not_found")


def _is_fault(error: BaseException) -> bool:
    """Whether the model failed, rather than that the request was wrong, refused or cancelled."""
    if isinstance(error, SageInferError):
        return as_http_error(error).status >= 500 and not isinstance(error, OutOfMemory | RequestCancelled)
    return isinstance(error, Exception) and not isinstance(error, HTTPError)

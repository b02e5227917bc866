"""One piece of an engine's work for a request: its measurements, its trace, and whose fault an error is."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from sage_infer.errors import UnsupportedFeature
from sage_infer.names import ModelType
from sage_infer.schemas import SamplingParams, Usage

from sage_infer_serve.errors import HTTPError, wrong_request
from sage_infer_serve.exchange import Exchange
from sage_infer_serve.observe import Observation
from sage_infer_serve.openai.schema import Sampling

if TYPE_CHECKING:
    from sage_infer_serve.app import Gateway
    from sage_infer_serve.tracing import Span

__all__ = ["Work"]

_WORDS = {"chat": "chat", "text_completion": "complete text", "embeddings": "embed", "rerank": "rerank"}


class Work:
    """A context: ``tokens`` for each piece that arrives, ``end`` with what was used; leaving it by an error counts one.

    Raises, on leaving:
        HTTPError: 404 where the backend refused because the model is of another kind.
    """

    __slots__ = (
        "_ended",
        "_exchange",
        "_gateway",
        "_kinds",
        "_model",
        "_operation",
        "_span",
        "_watch",
        "tokens",
    )

    def __init__(
        self, gateway: Gateway, exchange: Exchange, operation: str, model: str, kinds: Sequence[ModelType]
    ) -> None:
        self._gateway, self._exchange, self._operation = gateway, exchange, operation
        self._model, self._kinds = model, kinds
        exchange.model = model if gateway.type_of(model) is not None else ""
        self._watch = Observation(gateway.recorder, exchange.model, exchange.started)
        self.tokens = self._watch.tokens
        self._span: Span | None = None
        self._ended = False

    def trace(self, request: Sampling | None, params: SamplingParams | None) -> None:
        assert self._gateway.tracing is not None
        self._span = self._gateway.tracing.begin(
            self._operation, self._model, self._exchange, request, params
        )
        tokens, span = self._watch.tokens, self._span

        def first(count: int) -> None:
            span.first_token()
            self.tokens = tokens
            tokens(count)

        self.tokens = first

    def end(self, usage: Usage | None, finish_reasons: Sequence[str] = ()) -> None:
        """The work is done. Counted at once, before the answer is sent."""
        self._ended = True
        self._watch.end(usage, embedded=self._operation in ("embeddings", "rerank"))
        if self._exchange.key is not None and usage is not None:
            self._exchange.key.charge(usage.total_tokens)
        if self._span is not None:
            self._span.end(usage, finish_reasons)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ended:
            return
        if error is not None and self._exchange.model:
            self._watch.end(None, failed=True)
        if self._span is not None:
            self._span.fail(error)
        if isinstance(error, UnsupportedFeature):
            found = self._gateway.type_of(self._model)
            if found is not None and found not in self._kinds:
                raise self._wrong_kind(found) from None

    def _wrong_kind(self, found: ModelType) -> HTTPError:
        fitting = [m.model_id for m in self._gateway.backend.list_models() if m.model_type in self._kinds]
        hint = f"for that there is: {', '.join(fitting)}" if fitting else "no model here can"
        message = f"model {self._model!r} is of the kind {found} and cannot {_WORDS[self._operation]}; {hint}"
        return wrong_request(message, "model", status=404, code="model_not_found")

"""One embedding or reranking request, from its arrival to its one end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence, Sized
from typing import Any, Literal

import attrs
from attrs import define, field
from sage_infer.contracts import TextLike, Truncation
from sage_infer.errors import RequestCancelled, SageInferError
from sage_infer.schemas import EmbeddingResult, RequestOptions, RerankResult, Usage

from sage_llm.chains import ChainStep
from sage_llm.classifier import Classified
from sage_llm.manager.live_instance import LiveInstance
from sage_llm.manager.request import Outcome
from sage_llm.replicas.spans import OpenSpan
from sage_llm.types import RequestView

__all__ = ["CallKind", "ManagedCall", "embedding_tokens", "rerank_tokens", "split"]

CallKind = Literal["embed", "rerank"]
Result = EmbeddingResult | RerankResult
_CHARACTERS = 4  # per token
_FLOAT32 = 4


@define(eq=False)
class ManagedCall:
    """A request with one result. It has no side effect on an engine, so it may be repeated.

    Attributes:
        request_id: its id, unique among open requests.
        model_id: the model that it is for.
        kind: embed or rerank.
        texts: texts to embed, or documents to rank.
        prompt_tokens: estimated number of tokens to compute.
        truncate: handling of texts over the length limit, to embed only.
        query, top_n: to rerank only.
        done: has the result, or the error.
        number: number of attempts so far.
        crashes: number of instances that ended while it ran there; it runs in a batch of its own then.
        faults: number of attempts that failed otherwise.
        excluded: instances that it is not sent to again.
        classified, view: what policies see of it.
        step: its place in a chain; None without one.
        dispatched_at: time of its first dispatch.
        outcome: how it ended; None while it is open.
        leave: takes it out of its batch when it ends early.
        span: the span of its present attempt, if requests are traced.
    """

    request_id: str
    model_id: str
    kind: CallKind
    texts: Sequence[Any]
    options: RequestOptions
    prompt_tokens: int
    on_end: Callable[[ManagedCall], object]
    truncate: Truncation = "error"
    query: str = ""
    top_n: int | None = None
    done: asyncio.Future[Result] = field(init=False)
    number: int = 0
    crashes: int = 0
    faults: int = 0
    excluded: set[LiveInstance] = field(factory=set)
    classified: Classified | None = None
    view: RequestView | None = None
    step: ChainStep | None = None
    dispatched_at: float | None = None
    outcome: Outcome | None = None
    arrived: float = field(factory=time.monotonic)
    leave: Callable[[], object] = field(default=lambda: None)
    span: OpenSpan = field(factory=OpenSpan)

    def __attrs_post_init__(self) -> None:
        self.done = asyncio.get_running_loop().create_future()

    @property
    def is_open(self) -> bool:
        return self.outcome is None

    def key(self, options: RequestOptions) -> Hashable:
        """Calls with equal keys can share a batch; ``options`` are those that the engine accepts."""
        alone = self.request_id if self.crashes or not self.texts else ""
        common = attrs.evolve(options, deadline=None, trace={})  # observed here; they differ in each request
        return self.kind, self.truncate, alone, repr(common)

    def options_now(self) -> RequestOptions:
        """The options with the rest of the deadline, and the trace context of the present attempt."""
        options = self.options
        if self.span.carrier is not None:
            options = attrs.evolve(options, trace=self.span.carrier)
        if options.deadline is None:
            return options
        left = options.deadline - (time.monotonic() - self.arrived)
        return attrs.evolve(options, deadline=max(left, 0.0))

    async def on(self, backend: Any, request_id: str, options: RequestOptions) -> Result:
        """Compute it on ``backend``, alone."""
        result: Result
        if self.kind == "embed":
            result = await backend.embed(
                self.texts, truncate=self.truncate, request_id=request_id, options=options
            )
        else:
            result = await backend.rerank(
                self.query, self.texts, top_n=self.top_n, request_id=request_id, options=options
            )
        return result

    # --- its one end

    def finish(self, result: Result) -> None:
        if self._end("finished"):
            self.done.set_result(result)

    def fail(self, error: SageInferError) -> None:
        """End it with an error: refused if it was not sent to any instance."""
        outcome: Outcome = "cancelled" if isinstance(error, RequestCancelled) else "failed"
        if outcome == "failed" and not self.number:
            outcome = "refused"
        if self._end(outcome):
            self.done.set_exception(error)
            self.done.exception()  # retrieved, even if the caller has gone

    def _end(self, outcome: Outcome) -> bool:
        if self.outcome is not None:
            return False
        self.outcome = outcome
        self.on_end(self)
        self.leave()
        return True


def embedding_tokens(texts: Sequence[TextLike], limit: int = 0) -> int:
    """Estimated number of tokens of texts, each truncated to ``limit`` unless that is 0."""
    counts = map(_text_tokens, texts)
    return max(sum(min(count, limit) if limit else count for count in counts), 1)


def _text_tokens(text: TextLike) -> int:
    return len(text) // _CHARACTERS + 1 if isinstance(text, str) else len(text)


def rerank_tokens(query: object, documents: object, limit: int = 0) -> int:
    """Estimated number of tokens of the pairs of a query and documents; 1 for arguments of other types."""
    if not isinstance(query, str) or isinstance(documents, str) or not isinstance(documents, Sequence):
        return 1
    counts = ((len(query) + (len(d) if isinstance(d, Sized) else 0)) // _CHARACTERS + 1 for d in documents)
    return max(sum(min(count, limit) if limit else count for count in counts), 1)


def split(result: EmbeddingResult, calls: Sequence[ManagedCall]) -> list[EmbeddingResult]:
    """The results of the requests of a batch, in the order of the batch.

    If the engine has not counted the tokens of each text, a request's usage is its share of those of the batch, by
    the estimated tokens of its texts.
    """
    shares = _shares(result.usage.prompt_tokens, [call.prompt_tokens for call in calls])
    parts, start = [], 0
    width = result.dim * _FLOAT32
    for call, share in zip(calls, shares, strict=True):
        end = start + len(call.texts)
        tokens = None if result.text_tokens is None else result.text_tokens[start:end]
        parts.append(
            EmbeddingResult(
                model_id=result.model_id,
                dim=result.dim,
                data=result.data[start * width : end * width],
                usage=Usage(prompt_tokens=share if tokens is None else sum(tokens)),
                text_tokens=tokens,
            )
        )
        start = end
    return parts


def _shares(total: int, weights: Sequence[int]) -> list[int]:
    """Whole parts of ``total`` in proportion to positive weights; their sum is ``total``."""
    whole, before, found = sum(weights), 0, []
    for weight in weights:
        found.append(total * (before + weight) // whole - total * before // whole)
        before += weight
    return found

"""The control plane as one backend of the contract: several models, each on several instances."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from sage_infer.contracts import (
    AnswerFormat,
    ChatAnswer,
    ChatMessage,
    EngineStats,
    Health,
    Metric,
    PromptLike,
    TextLike,
    TokenStream,
    Truncation,
    as_prompts,
)
from sage_infer.errors import InvalidRequest
from sage_infer.names import GENERATING, ModelType
from sage_infer.schemas import (
    EmbeddingResult,
    Prompt,
    RequestOptions,
    RerankResult,
    SamplingParams,
)
from sage_infer.sdk.claims import FEATURE_OF, accepted_options, check_claims
from sage_infer.sdk.open_requests import OpenRequest
from sage_infer_planning.registry import ModelEntry

from sage_llm.manager import reports
from sage_llm.manager.ledger import Ledger
from sage_llm.manager.managed_models import ManagedModels
from sage_llm.manager.migration import with_seed
from sage_llm.manager.request import ManagedRequest

__all__ = ["ControlPlaneManager"]

_CHARACTERS = 4  # per token, where the tokenizer is unknown
_EVERY: tuple[ModelType, ...] = get_args(ModelType)


class ControlPlaneManager(ManagedModels):
    """``HybridInferenceBackend`` over the instances that an executor runs.

    Also implements ``HybridTokenizing``, ``HybridToolCalling``, ``HybridAnswerReading``, ``ModelReporting``,
    ``ModelSettings``, ``MetricsReporting`` and ``ClusterReporting``.

    Args:
        models: the models to serve.
        executor: starts their replicas.
        settings: policies and limits.
    """

    # --- life cycle

    async def start(self) -> None:
        """Start all replicas, and wait until they are ready.

        Raises:
            SageInferError: a replica did not start; the message names it.
        """
        self._check_open()
        if self._started:
            return
        self._started = True
        await self._start([self._registry.find(model_id) for model_id in self.served])

    async def close(self) -> None:
        self._closed = True
        self._requests.cancel_all("close")
        await self.dispatcher.close()
        await self.fleet.close()

    async def health(self) -> Health:
        if self._closed:
            return Health(status="dead", reason="the control plane was closed")
        if not self._started:
            return Health(status="starting", reason="start() has not been called")
        return reports.health(self.served, self.fleet, self.dispatcher.placement)

    def stats(self) -> EngineStats:
        """Combined gauges of all instances."""
        return reports.stats(self.fleet)

    def metrics(self) -> Iterator[Metric]:
        return reports.metrics(self.fleet, self.dispatcher)

    def cluster(self) -> dict[str, Any]:
        return reports.cluster(self.fleet, self.dispatcher, self.settings)

    # --- generation

    async def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        params: SamplingParams,
        model: str | None = None,
        *,
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> list[TokenStream]:
        entry = self._route(model, GENERATING)
        asked = as_prompts(prompts)
        if not asked:
            raise InvalidRequest("there is no prompt; expected at least one")
        given = _checked(options)
        opened = self._requests.accept(request_id, len(asked), options=options)
        requests: list[ManagedRequest] = []
        try:
            for one, prompt in zip(opened, asked, strict=True):
                one.check()
                requests.append(await self._managed(entry, one, prompt, params, given))
            return list(await asyncio.gather(*map(self.dispatcher.run, requests)))
        except BaseException:
            for request in requests:
                self.dispatcher.cancel(request)
            for one in opened:
                self._requests.finish(one)
            raise

    async def _managed(
        self,
        entry: ModelEntry,
        opened: OpenRequest,
        prompt: Prompt,
        params: SamplingParams,
        options: RequestOptions,
    ) -> ManagedRequest:
        model_id = entry.descriptor.model_id
        found = await self._texts[model_id].prompt(prompt)
        capability = self._capability(model_id)
        features = () if capability is None else capability.features

        def ended(request: ManagedRequest) -> None:
            self._requests.finish(opened)
            self.dispatcher.ended(request)

        request = ManagedRequest(
            opened.request_id,
            model_id,
            found,
            Ledger(found.token_ids, with_seed(params, features, secrets.randbits(63))),
            options,
            len(found.token_ids) if found.token_ids is not None else len(found.text or "") // _CHARACTERS + 1,
            on_end=ended,
            on_cancel=self.dispatcher.cancel,
        )
        opened.on_cancel(lambda error: self.dispatcher.cancel(request, error))
        return request

    async def chat(
        self,
        messages: Sequence[ChatMessage],
        params: SamplingParams,
        model: str | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> TokenStream:
        model_id = self._route(model, GENERATING).descriptor.model_id
        prompt = await self.render_chat(
            messages, model=model_id, tools=tools, template_variables=template_variables
        )
        (stream,) = await self.generate([prompt], params, model_id, request_id=request_id, options=options)
        return stream

    async def render_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        model: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        return await self._texts_of(model, GENERATING).render_chat(
            messages,
            tools=tools,
            template_variables=template_variables,
            add_generation_prompt=add_generation_prompt,
        )

    async def tokenize(self, prompt: PromptLike, *, model: str | None = None) -> list[int]:
        return await self._texts_of(model, GENERATING if model is None else _EVERY).tokenize(prompt)

    async def detokenize(self, token_ids: Sequence[int], *, model: str | None = None) -> str:
        return await self._texts_of(model, GENERATING if model is None else _EVERY).detokenize(token_ids)

    async def answer_format(self, *, model: str | None = None) -> AnswerFormat | None:
        return await self._texts_of(model, GENERATING).answer_format()

    async def parse_tool_calls(
        self, text: str, *, model: str | None = None, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> ChatAnswer:
        return await self._texts_of(model, GENERATING).parse_tool_calls(text, tools)

    # --- embedding and reranking

    async def embed(
        self,
        texts: TextLike | Sequence[TextLike],
        model: str | None = None,
        *,
        truncate: Truncation = "error",
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> EmbeddingResult:
        entry = self._route(model, ("embedding",))
        with self._requests.call(request_id, options=options) as opened:
            result: EmbeddingResult = await self._call(
                entry,
                opened,
                options,
                lambda backend, arguments: backend.embed(texts, truncate=truncate, **arguments),
            )
        return result

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        model: str | None = None,
        *,
        top_n: int | None = None,
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> RerankResult:
        entry = self._route(model, ("reranker",))
        with self._requests.call(request_id, options=options) as opened:
            result: RerankResult = await self._call(
                entry,
                opened,
                options,
                lambda backend, arguments: backend.rerank(query, documents, top_n=top_n, **arguments),
            )
        return result

    async def _call(
        self, entry: ModelEntry, opened: OpenRequest, options: RequestOptions | None, call: Any
    ) -> Any:
        """Run a call with one result; ``abort`` and the deadline end it."""
        given = _checked(options)

        async def on_instance(backend: Any) -> Any:
            accepted = accepted_options(backend.get_capability().features, given)
            return await call(backend, {"request_id": opened.request_id, "options": accepted})

        task = asyncio.ensure_future(self._calls.run(entry.descriptor.model_id, on_instance))
        opened.on_cancel(lambda error: task.cancel())
        try:
            return await task
        except asyncio.CancelledError:
            task.cancel()
            caller = asyncio.current_task()
            if caller is None or not caller.cancelling():
                opened.check()
            raise

    async def abort(self, request_id: str) -> None:
        self._requests.abort(request_id)


def _checked(options: RequestOptions | None) -> RequestOptions:
    """The options; refuses those of a later version by name. The control plane understands all others itself."""
    if options is None:
        return RequestOptions()
    check_claims(tuple(FEATURE_OF[RequestOptions]), backend="the control plane", options=options)
    return options

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
    as_texts,
    check_texts,
)
from sage_infer.errors import InvalidRequest
from sage_infer.names import GENERATING, ModelType
from sage_infer.schemas import (
    DecodeState,
    EmbeddingResult,
    Prompt,
    RequestOptions,
    RerankResult,
    SamplingParams,
)
from sage_infer.sdk.claims import FEATURE_OF, check_claims
from sage_infer.sdk.open_requests import OpenRequest
from sage_infer_planning.registry import ModelEntry

from sage_llm.chains import ChainStep
from sage_llm.manager import reports
from sage_llm.manager.calls.call import ManagedCall, embedding_tokens, rerank_tokens
from sage_llm.manager.ledger import Ledger
from sage_llm.manager.managed_models import ManagedModels
from sage_llm.manager.migration import with_seed
from sage_llm.manager.passed_chat import PassedChat, pass_chats
from sage_llm.manager.request import ManagedRequest

__all__ = ["ControlPlaneManager"]

_CHARACTERS = 4  # per token, where the tokenizer is unknown
_EVERY: tuple[ModelType, ...] = get_args(ModelType)


class ControlPlaneManager(ManagedModels):
    """``HybridInferenceBackend`` over the instances that an executor runs.

    Also implements ``HybridResuming``, ``HybridTokenizing``, ``HybridToolCalling``, ``HybridAnswerReading``,
    ``ModelReporting``, ``ModelSettings``, ``MetricsReporting`` and ``ClusterReporting``.

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
        await self.scaling.close()
        await self.fleet.close()

    async def health(self) -> Health:
        if self._closed:
            return Health(status="dead", reason="the control plane was closed")
        if not self._started:
            return Health(status="starting", reason="start() has not been called")
        awake = [name for name in self.served if not self.scaling.rests(name)]
        return reports.health(awake, self.fleet, self.dispatcher.placement)

    def stats(self) -> EngineStats:
        """Combined gauges of all instances."""
        return reports.stats(self.fleet)

    def metrics(self) -> Iterator[Metric]:
        yield from reports.metrics(self.fleet, self.dispatcher)
        yield from self.scaling.metrics()

    def cluster(self) -> dict[str, Any]:
        found = reports.cluster(self.fleet, self.dispatcher, self.settings)
        return {**found, "scaling": self.scaling.rows()}

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
        return await self._generate(entry, asked, params, request_id, options)

    async def _generate(
        self,
        entry: ModelEntry,
        asked: Sequence[Prompt],
        params: SamplingParams,
        request_id: str | None,
        options: RequestOptions | None,
        chat: PassedChat | None = None,
        states: Sequence[DecodeState] = (),
    ) -> list[TokenStream]:
        given, step = self.in_chain(entry.descriptor.model_id, _checked(options))
        opened = self._requests.accept(request_id, len(asked), options=given)
        requests: list[ManagedRequest] = []
        try:
            for one, prompt in zip(opened, asked, strict=True):
                one.check()
                requests.append(await self._managed(entry, one, prompt, params, given, step, chat, states))
            if len(requests) == 1:
                return [await self.dispatcher.run(requests[0])]
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
        step: ChainStep | None,
        chat: PassedChat | None = None,
        states: Sequence[DecodeState] = (),
    ) -> ManagedRequest:
        model_id = entry.descriptor.model_id
        found = prompt if self._passes(model_id) else await self._texts[model_id].prompt(prompt)
        opened.check()  # it may have been cancelled meanwhile
        capability = self._capability(model_id)
        features = () if capability is None else capability.features

        def ended(request: ManagedRequest) -> None:
            self._requests.finish(opened)
            self.dispatcher.ended(request)
            self.left_chain(request)

        request = ManagedRequest(
            opened.request_id,
            model_id,
            found,
            Ledger.of_states(states, with_seed(params, features, states[0].seed))
            if states
            else Ledger(found.token_ids, with_seed(params, features, secrets.randbits(63))),
            options,
            len(found.token_ids) if found.token_ids is not None else len(found.text or "") // _CHARACTERS + 1,
            on_end=ended,
            on_cancel=self.dispatcher.cancel,
            step=step,
            chat=chat,
        )
        opened.on_cancel(lambda error: self.dispatcher.cancel(request, error))
        return request

    async def resume(
        self,
        states: Sequence[DecodeState],
        *,
        model: str | None = None,
        request_id: str,
        options: RequestOptions | None = None,
    ) -> TokenStream:
        """Continue a request that began elsewhere; from now on, it migrates like others."""
        entry = self._route(model, GENERATING)
        if not states:
            raise InvalidRequest("no state to resume; expected one for each unfinished completion")
        prompt, params = Prompt(token_ids=states[0].prompt_token_ids), states[0].params
        (stream,) = await self._generate(entry, [prompt], params, request_id, options, states=states)
        return stream

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
        entry = self._route(model, GENERATING)
        model_id = entry.descriptor.model_id
        if self._passes(model_id):
            chat = PassedChat(messages=messages, tools=tools, template_variables=template_variables)
            (stream,) = await self._generate(entry, [chat.prompt], params, request_id, options, chat)
            return stream
        prompt = await self._texts[model_id].render_chat(
            messages, tools=tools, template_variables=template_variables, add_generation_prompt=True
        )
        (stream,) = await self._generate(entry, [prompt], params, request_id, options)
        return stream

    def _passes(self, model_id: str) -> bool:
        """Whether chats and texts go to the model's servers as they are."""
        if self._texts[model_id].is_local:
            return False
        return pass_chats(self.dispatcher.placement.instances(model_id))

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
        model_id = self._route(model, ("embedding",)).descriptor.model_id
        several = as_texts(texts)
        check_texts(several, truncate)
        limit = self._longest(model_id) if truncate == "end" else 0
        given, step = self.in_chain(model_id, _checked(options))
        with self._requests.call(request_id, options=given) as opened:
            call = ManagedCall(
                opened.request_id,
                model_id,
                "embed",
                several,
                given,
                embedding_tokens(several, limit),
                on_end=self._call_ended,
                truncate=truncate,
                step=step,
            )
            result: EmbeddingResult = await self._called(call, opened)
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
        model_id = self._route(model, ("reranker",)).descriptor.model_id
        given, step = self.in_chain(model_id, _checked(options))
        with self._requests.call(request_id, options=given) as opened:
            call = ManagedCall(
                opened.request_id,
                model_id,
                "rerank",
                documents,
                given,
                rerank_tokens(query, documents, self._longest(model_id)),
                on_end=self._call_ended,
                query=query,
                top_n=top_n,
                step=step,
            )
            result: RerankResult = await self._called(call, opened)
        return result

    def _call_ended(self, call: ManagedCall) -> None:
        self.dispatcher.calls.ended(call)
        self.left_chain(call)

    def _longest(self, model_id: str) -> int:
        """Length limit of a model's texts in tokens; 0 if unknown."""
        capability = self._capability(model_id)
        return 0 if capability is None else capability.max_sequence_length

    async def _called(self, call: ManagedCall, opened: OpenRequest) -> Any:
        """Run a request with one result; ``abort`` and the deadline end it."""
        opened.on_cancel(call.fail)
        return await self.dispatcher.calls.run(call)

    async def abort(self, request_id: str) -> None:
        self._requests.abort(request_id)


def _checked(options: RequestOptions | None) -> RequestOptions:
    """The options; refuses those of a later version by name. The control plane understands all others itself."""
    if options is None:
        return RequestOptions()
    check_claims(tuple(FEATURE_OF[RequestOptions]), backend="the control plane", options=options)
    return options

"""The control plane as one backend of the contract: several models, each on several instances."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from typing import Any, get_args

import attrs
from sage_infer.contracts import (
    AnswerFormat,
    ChatAnswer,
    ChatMessage,
    EngineStats,
    Executor,
    Health,
    Metric,
    ModelStatus,
    PromptLike,
    TextLike,
    TokenStream,
    Truncation,
    as_prompts,
)
from sage_infer.errors import BackendUnavailable, EngineDead, InvalidRequest
from sage_infer.names import GENERATING, ModelType
from sage_infer.schemas import (
    CapabilityDescriptor,
    EmbeddingResult,
    HybridCapabilityDescriptor,
    ModelDescriptor,
    Prompt,
    RequestOptions,
    RerankResult,
    SamplingParams,
)
from sage_infer.sdk.claims import FEATURE_OF, accepted_options, check_claims
from sage_infer.sdk.open_requests import OpenRequest, OpenRequests
from sage_infer_planning.registry import ModelEntry, ModelRegistry
from sage_infer_planning.router import ModelRouter

from sage_llm import policies
from sage_llm.manager import reports
from sage_llm.manager.batch_calls import BatchCalls
from sage_llm.manager.dispatch import Dispatcher
from sage_llm.manager.fleet import Drained, Fleet
from sage_llm.manager.ledger import Ledger
from sage_llm.manager.migration import with_seed
from sage_llm.manager.models import ServedModel
from sage_llm.manager.placing import Placement
from sage_llm.manager.request import ManagedRequest
from sage_llm.manager.settings import ControlPlaneSettings
from sage_llm.manager.texts import ModelTexts

__all__ = ["ControlPlaneManager"]

_EVERY: tuple[ModelType, ...] = get_args(ModelType)


class ControlPlaneManager:
    """``HybridInferenceBackend`` over the instances that an executor runs.

    Also implements ``HybridTokenizing``, ``HybridToolCalling``, ``HybridAnswerReading``, ``ModelReporting``,
    ``ModelSettings``, ``MetricsReporting`` and ``ClusterReporting``.

    Args:
        models: the models to serve.
        executor: starts their replicas.
        settings: policies and limits.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        executor: Executor,
        settings: ControlPlaneSettings | None = None,
    ) -> None:
        self.settings = settings or ControlPlaneSettings()
        self._registry = ModelRegistry()
        self._router = ModelRouter(self._registry)
        self.served: dict[str, ServedModel] = {}
        self._texts: dict[str, ModelTexts] = {}
        self._capabilities: dict[str, CapabilityDescriptor] = {}
        self.dispatcher = Dispatcher(
            Placement(
                policies.placement(self.settings.policy),
                policies.order(self.settings.order),
                None
                if self.settings.target_wait_s is None
                else policies.admission(target_s=self.settings.target_wait_s),
            ),
            on_lost=lambda instance, reason: self.fleet.lose(instance, reason),
            expects=lambda model_id: self.fleet.expects(model_id),
            limits=self.settings.recovery,
        )
        self.fleet = Fleet(
            executor, self.dispatcher, health=self.settings.health, restarts=self.settings.restarts
        )
        self._calls = BatchCalls(
            self.dispatcher.placement,
            on_lost=self.fleet.lose,
            expects=self.fleet.expects,
            wait_s=self.settings.recovery.wait_s,
        )
        self._requests = OpenRequests()
        self._started = self._closed = False
        for model in models:
            self._register(model)

    def _register(self, model: ServedModel) -> ModelEntry:
        model_id = model.descriptor.model_id
        if model_id in self.served:
            raise InvalidRequest(
                f"model {model_id!r} is already served; give one of the two another model_id"
            )
        entry = self._registry.register(model.descriptor, model.aliases)
        self.served[model_id] = model
        self._texts[model_id] = ModelTexts(model.descriptor, model.backend, self._calls)
        return entry

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

    async def _start(self, entries: Sequence[ModelEntry | None]) -> None:
        found = [entry for entry in entries if entry is not None]
        specs = []
        for entry in found:
            self._registry.move(entry, "loading")
            model = self.served[entry.descriptor.model_id]
            specs += [model.spec(number) for number in range(model.replicas)]
        try:
            await asyncio.gather(
                self.fleet.start(specs),
                *(
                    self._texts[e.descriptor.model_id].load()
                    for e in found
                    if e.descriptor.model_type in GENERATING
                ),
            )
        except BaseException as error:
            for entry in found:
                self._registry.move(entry, "failed", str(error))
            raise
        for entry in found:
            self._registry.move(entry, "ready")

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

    # --- models

    def list_models(self) -> list[ModelDescriptor]:
        return [entry.descriptor for entry in self._registry.entries()]

    def get_model_status(self, model_id: str) -> ModelStatus:
        entry = self._named(model_id)
        return reports.model_status(entry, self.fleet, self.dispatcher.placement)

    def get_model_capability(self, model_id: str) -> CapabilityDescriptor:
        entry = self._named(model_id)
        capability = self._capability(entry.descriptor.model_id)
        if capability is None:
            raise BackendUnavailable(f"model {model_id!r} is {entry.state}, no instance has been ready")
        return capability

    def get_model_settings(self, model_id: str) -> dict[str, Any]:
        model = self.served[self._named(model_id).descriptor.model_id]
        return {"backend": model.backend, "options": dict(model.options), "replicas": model.replicas}

    def get_hybrid_capability(self) -> HybridCapabilityDescriptor:
        self._check_open()
        ready = [
            e
            for e in self._registry.entries()
            if self.get_model_status(e.descriptor.model_id).state == "ready"
        ]
        kinds = sorted(
            {c.hardware_backend for e in ready if (c := self._capability(e.descriptor.model_id))} - {"cpu"}
        )
        return HybridCapabilityDescriptor(
            backend_name="llm",
            hardware_backend=kinds[0] if kinds else "cpu",
            loaded_models=tuple(entry.descriptor for entry in ready),
            gpu_sharing_mode="exclusive",
            memory_isolation=True,
        )

    def load_model(self, model: ModelDescriptor) -> Awaitable[None]:
        """Serve another model with one replica, on the configured backend for its type."""
        self._check_open()
        served = ServedModel(descriptor=model, backend=self.settings.backend_for(model.model_type))
        entry = self._register(served)
        if not self._started:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done
        return asyncio.ensure_future(self._start([entry]))

    async def unload_model(self, model_id: str) -> None:
        entry = self._named(model_id)
        name = entry.descriptor.model_id
        self._registry.move(entry, "draining")
        await asyncio.gather(*(self.fleet.stop(r) for r in self.fleet.of(name)))
        self._registry.move(entry, "registered")
        del self.served[name], self._texts[name]

    # --- operation, for the commands

    async def drain(self, replica_id: str, deadline_s: float = 2.0) -> Drained:
        """Stop a replica; its requests end in time or move to other instances."""
        return await self.fleet.drain(self.fleet.find(replica_id), deadline_s)

    async def restart(self, model_id: str | None = None, deadline_s: float = 0.0) -> list[Drained]:
        """Restart all replicas of a model, or of all models, one after another."""
        names = [self._named(model_id).descriptor.model_id] if model_id is not None else list(self.served)
        replicas = [replica for name in names for replica in self.fleet.of(name)]
        return [await self.fleet.restart(replica, deadline_s) for replica in replicas]

    async def scale(self, model_id: str, replicas: int) -> list[str]:
        """Start or drain replicas of a model until there are ``replicas``; return the ids of the changed ones."""
        name = self._named(model_id).descriptor.model_id
        if replicas < 1:
            raise InvalidRequest(f"the number of replicas must be at least 1, got {replicas}")
        running = self.fleet.of(name)
        if len(running) > replicas:
            surplus = running[replicas:]
            await asyncio.gather(*(self.fleet.drain(replica) for replica in surplus))
            changed = [replica.replica_id for replica in surplus]
        else:
            used = {replica.replica_id for replica in running}
            free = (
                s
                for n in range(len(running) + replicas)
                if (s := self.served[name].spec(n)).replica_id not in used
            )
            specs = [next(free) for _ in range(replicas - len(running))]
            await self.fleet.start(specs)
            changed = [spec.replica_id for spec in specs]
        self.served[name] = attrs.evolve(self.served[name], replicas=replicas)
        return changed

    # --- look-ups

    def _check_open(self) -> None:
        if self._closed:
            raise EngineDead("the control plane was closed; open a new one")

    def _route(self, name: str | None, types: Sequence[ModelType]) -> ModelEntry:
        self._check_open()
        if not self._started:
            raise EngineDead("the control plane is not started; call start() first")
        return self._router.route(name, types)

    def _named(self, name: str) -> ModelEntry:
        entry = self._router.named(name)
        assert entry is not None
        return entry

    def _texts_of(self, name: str | None, types: Sequence[ModelType]) -> ModelTexts:
        return self._texts[self._route(name, types).descriptor.model_id]

    def _capability(self, model_id: str) -> CapabilityDescriptor | None:
        """Capability of the model's instances, also while none runs."""
        for instance in self.dispatcher.placement.instances(model_id):
            self._capabilities[model_id] = instance.descriptor.capability
            break
        return self._capabilities.get(model_id)


_CHARACTERS = 4  # per token, where the tokenizer is unknown


def _checked(options: RequestOptions | None) -> RequestOptions:
    """The options; refuses those of a later version by name. The control plane understands all others itself."""
    if options is None:
        return RequestOptions()
    check_claims(tuple(FEATURE_OF[RequestOptions]), backend="the control plane", options=options)
    return options

"""The backend that exposes the engine through the contract."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal

from attrs import evolve
from sage_infer.contracts import (
    AnswerFormat,
    ChatAnswer,
    ChatMessage,
    EngineStats,
    Health,
    KVEvents,
    KVSnapshot,
    ProgressReport,
    PromptLike,
    TokenStream,
)
from sage_infer.errors import EngineDead, InvalidRequest, UnsupportedFeature
from sage_infer.schemas import (
    CapabilityDescriptor,
    InstanceDescriptor,
    InstanceReport,
    KVCacheSchema,
    ModelDescriptor,
    Prompt,
    QuantizationProfile,
    RequestOptions,
    SamplingParams,
)
from sage_infer.sdk import Reporter, check_claims
from sage_infer.sdk.answers import read_whole

from sage_infer_openvino.device import hardware_of
from sage_infer_openvino.divided import DividedRequests, stream_of
from sage_infer_openvino.engine.engine import DecoderEngine
from sage_infer_openvino.engine.kv_events import KVEventLog
from sage_infer_openvino.engine.kv_reuse import KVReuse
from sage_infer_openvino.engine.kv_schema import check_page_size, wanted_precision
from sage_infer_openvino.engine.sequence import EngineRequest
from sage_infer_openvino.loading import LoadedDecoder, load_model, no_progress
from sage_infer_openvino.models.text_codec import INLINE_CHARACTERS
from sage_infer_openvino.models.weight_format import WeightFormat
from sage_infer_openvino.ov_runtime import ov
from sage_infer_openvino.quant_profile import with_profile
from sage_infer_openvino.settings import DecoderSettings

__all__ = ["OpenVINOBackend"]

FEATURES = (
    "streaming", "logprobs", "seed", "parallel_sampling", "penalties", "min_p", "priority", "deadline", "tenant",
    "guided_json", "guided_regex", "guided_grammar", "guided_choice", "prefill_decode", "kv_export", "kv_import",
    "quant_profile", "tokenize", "reports", "resume",
)  # fmt: skip


class OpenVINOBackend(DividedRequests):
    """``InferenceBackend`` on OpenVINO's kernels, with our own scheduler and KV blocks.

    Also implements ``KVTransfer``, ``KVStateChecking``, ``KVFlushing``, ``KVPrefetching``, ``Tokenizing``,
    ``ToolCalling``, ``AnswerReading``, ``Resuming``, ``InstanceReporting``, ``KVEventSource`` and
    ``ProgressReporting``. See ``sage infer backend show openvino`` for the options.
    """

    def __init__(
        self,
        model: ModelDescriptor,
        *,
        weight_format: WeightFormat = "int8",
        precision: Literal["f32", "bf16", "f16"] = "f32",
        kv_precision: Literal["f32", "bf16", "f16", "u8"] | None = None,
        kv_schema: Mapping[str, Any] | None = None,
        dynamic_quantization: bool = False,
        kv_cache_gb: float = 1.0,
        max_batch_size: int = 32,
        max_sequence_length: int | None = None,
        max_queue: int = 1024,
        hold_s: float = 600.0,
        step_tokens: int = 512,
        decode_slowdown: float = 2.5,
        prefix_caching: bool = True,
        kv_store: str | Mapping[str, Any] | None = None,
        kv_store_wait_s: float = 1.0,
        device: str = "CPU",
        threads: int | None = None,
        cache_dir: str | None = None,
    ) -> None:
        self.model = model
        self._kv_schema = kv_schema
        self._settings = DecoderSettings(
            weight_format=weight_format, precision=precision,
            kv_precision=wanted_precision(kv_schema, kv_precision),
            dynamic_quantization=dynamic_quantization, kv_cache_gb=kv_cache_gb,
            max_batch_size=max_batch_size, max_sequence_length=max_sequence_length, max_queue=max_queue, hold_s=hold_s,
            step_tokens=step_tokens, decode_slowdown=decode_slowdown, prefix_caching=prefix_caching,
            kv_store=kv_store, kv_store_wait_s=kv_store_wait_s,
            device=device, threads=threads, cache_dir=cache_dir,
        )  # fmt: skip
        self._quant_profile_id: str | None = None
        self._loaded: LoadedDecoder | None = None
        self._engine: DecoderEngine | None = None
        self._reuse: KVReuse | None = None
        self._closed = False
        self._reporter = Reporter("openvino", model.model_id)
        self._on_progress: ProgressReport = no_progress

    # --- life cycle

    def on_progress(self, report: ProgressReport) -> None:
        self._on_progress = report

    async def start(self) -> None:
        self._check_open()
        if self._engine is None:
            loaded = await asyncio.to_thread(
                load_model,
                self.model,
                self._settings,
                instance_id=self._reporter.instance_id,
                report=self._on_progress,
            )
            self._check_open()  # it may have been closed in the meantime
            check_page_size(self._kv_schema, loaded.runner.block_size)
            self._reuse = await asyncio.to_thread(loaded.open_reuse, self._settings)
            engine = loaded.start_engine(self._settings, self._reporter.generation, self._reuse)
            self._loaded, self._engine = loaded, engine
            self._reporter.started(
                self.get_capability(),
                key_space=loaded.states.key_space,
                versions={"openvino": ov.get_version()},
            )

    async def close(self) -> None:
        self._closed = True
        engine, loaded = self._engine, self._loaded
        self._engine = self._loaded = None
        if engine is not None:
            await asyncio.to_thread(engine.close)
        if self._reuse is not None:
            await asyncio.to_thread(self._reuse.broker.close)
        if loaded is not None:
            await asyncio.to_thread(loaded.grammars.close)

    async def health(self) -> Health:
        return self._health()

    def _health(self) -> Health:
        if self._closed:
            return Health(status="dead", reason="the backend was closed")
        if self._engine is None:
            return Health(status="starting", reason="the model is not loaded yet")
        stopped = self._engine.stopped
        return Health(status="ok") if stopped is None else Health(status="dead", reason=str(stopped))

    def stats(self) -> EngineStats:
        if self._engine is None:
            return EngineStats(running=0, waiting=0)
        stats = self._engine.stats()
        if self._reuse is None:
            return stats
        pages = {f"kv_store_{name}": value for name, value in self._reuse.broker.counts().items()}
        return evolve(stats, extensions={**stats.extensions, **pages})

    def get_capability(self) -> CapabilityDescriptor:
        _, loaded = self._ready()
        return CapabilityDescriptor(
            backend_name="openvino",
            instance_type="general",
            hardware_backend=hardware_of(self._settings.device),
            max_batch_size=self._settings.max_batch_size,
            max_sequence_length=loaded.max_sequence_length,
            kv_cache_capacity_gb=loaded.runner.num_blocks * loaded.runner.block_nbytes / 2**30,
            supported_precisions=loaded.runner.supported_precisions,
            kv_schema=loaded.states.schema,
            quant_profile_id=self._quant_profile_id,
            features=self._features(loaded),
        )

    def _features(self, loaded: LoadedDecoder) -> tuple[str, ...]:
        return (
            *FEATURES,
            *(
                ("chat", "template_variables", "tool_calls")
                if loaded.tokenizer.chat_templates is not None
                else ()
            ),
            *(("prefix_caching", "cache_salt", "kv_events") if self._settings.prefix_caching else ()),
        )

    def get_kv_schema(self) -> KVCacheSchema:
        return self._ready()[1].states.schema

    def load_quant_profile(self, profile: QuantizationProfile) -> None:
        if self._engine is not None or self._closed:
            raise InvalidRequest(
                "the weights and KV of a started backend cannot change; load the profile before start()"
            )
        self._settings = with_profile(self._settings, profile)
        self._quant_profile_id = profile.profile_id

    # --- reports

    def describe(self) -> InstanceDescriptor:
        self._check_open()
        return self._reporter.describe()

    def report(self) -> InstanceReport:
        return self._reporter.report(self.stats(), self._health())

    async def kv_snapshot(self) -> KVSnapshot:
        return self._events().snapshot()

    def kv_events(self, since: int) -> AsyncIterator[KVEvents]:
        return self._events().events(since)

    def _events(self) -> KVEventLog:
        events = self._ready()[0].events
        if events is None:
            raise UnsupportedFeature(
                "KV events of the openvino backend require prefix_caching; set it to true"
            )
        return events

    # --- generation

    async def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> list[TokenStream]:
        engine, loaded = self._ready()
        self._check_claims(loaded, params, options)
        request_id = f"req-{uuid.uuid4().hex}" if request_id is None else request_id
        grammar = await loaded.compile_grammar(params, options)
        read = await loaded.requests.read(prompts, most=self._settings.max_queue)
        requests = loaded.requests.from_prompts(read, params, request_id, options=options, grammar=grammar)
        streams: list[TokenStream] = []
        for request in requests:
            request.stream = stream_of(engine, request)
            streams.append(request.stream)
        await self._submit(engine, requests)
        return streams

    async def render_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        loaded = self._ready()[1]
        loaded.requests.check_chat(messages)
        return await loaded.texts.render_chat(
            messages,
            tools=tools,
            template_variables=template_variables,
            add_generation_prompt=add_generation_prompt,
        )

    async def answer_format(self) -> AnswerFormat | None:
        return self._ready()[1].tokenizer.answer_format

    async def parse_tool_calls(
        self, text: str, *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> ChatAnswer:
        form = self._ready()[1].tokenizer.answer_format
        if form is None:
            raise UnsupportedFeature(
                "this model has no chat template, which determines the format of its calls (feature tool_calls)"
            )
        return read_whole(form.reader(tools=tools or (), reads_thoughts=False), text)

    async def tokenize(self, prompt: PromptLike) -> list[int]:
        loaded = self._ready()[1]
        checked = loaded.requests.check_characters(prompt)
        if len(checked.text or "") > INLINE_CHARACTERS:
            await asyncio.to_thread(loaded.requests.check_length, checked)
        return await loaded.texts.tokenize(checked)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return await self._ready()[1].texts.detokenize(token_ids)

    async def abort(self, request_id: str) -> None:
        engine = self._engine
        if engine is not None:
            await engine.abort(request_id)

    async def flush_kv(self) -> bool:
        self._ready()
        return self._reuse is not None and await asyncio.to_thread(self._reuse.broker.flush)

    async def prefetch_kv(self, token_ids: Sequence[int], *, cache_salt: str = "") -> int:
        loaded, engine = self._ready()[1], self._engine
        if self._reuse is None or engine is None or not token_ids:
            return 0
        loaded.texts.check_tokens(token_ids)
        return await self._reuse.prefetch(tuple(token_ids), cache_salt.encode(), engine.pool)

    async def _submit(self, engine: DecoderEngine, requests: list[EngineRequest]) -> None:
        if self._reuse is not None:
            await self._reuse.fetch(requests, engine.pool)
        engine.submit(requests)

    def _check_claims(
        self, loaded: LoadedDecoder, params: SamplingParams, options: RequestOptions | None
    ) -> None:
        check_claims(self._features(loaded), backend="the openvino backend", params=params, options=options)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineDead("the backend was closed; open a new one")

    def _ready(self) -> tuple[DecoderEngine, LoadedDecoder]:
        self._check_open()
        if self._engine is None or self._loaded is None:
            raise EngineDead("the backend is not started; call start() first, or use open_backend")
        return self._engine, self._loaded

"""The backend for generation on vLLM. Importing this module does not import vLLM."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sage_infer.contracts import (
    ChatAnswer,
    ChatMessage,
    DecodeResult,
    PrefillResult,
    PromptLike,
    TokenStream,
    as_prompts,
    request_ids,
)
from sage_infer.errors import UnsupportedFeature
from sage_infer.schemas import (
    DecodeState,
    KVCacheSchema,
    ModelDescriptor,
    Prompt,
    QuantizationProfile,
    RequestOptions,
    SamplingParams,
)
from sage_infer.sdk import check_claims, checked_hold

from sage_infer_vllm.base import BaseVLLMBackend
from sage_infer_vllm.disaggregation import Instance, check_state, decode, export_kv, import_kv, prefill
from sage_infer_vllm.models.quantization import quantization_for
from sage_infer_vllm.requests.chat import render_chat
from sage_infer_vllm.requests.prompts import text_of, tokenize, tokens_of
from sage_infer_vllm.requests.sampling import check_params, engine_params
from sage_infer_vllm.settings import VLLMSettings

if TYPE_CHECKING:
    from sage_infer_vllm.engine.engine import VLLMEngine

__all__ = ["VLLMBackend"]

FEATURES = (
    "streaming", "logprobs", "seed", "parallel_sampling", "penalties", "min_p", "priority", "deadline", "cache_salt",
    "guided_json", "guided_regex", "guided_grammar", "guided_choice", "quant_profile", "tokenize", "reports",
)  # fmt: skip


class VLLMBackend(BaseVLLMBackend):
    """``InferenceBackend`` on vLLM's ``AsyncLLM``.

    See ``sage infer backend show vllm`` for the options. A vendor's backend is a subclass with another ``platform``.
    """

    runner: ClassVar[Literal["generate", "pooling"]] = "generate"

    def __init__(
        self,
        model: ModelDescriptor,
        *,
        dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto",
        kv_schema: Mapping[str, Any] | None = None,
        kv_cache_gb: float | None = None,
        memory_fraction: float | None = None,
        max_batch_size: int | None = None,
        max_sequence_length: int | None = None,
        max_queue: int = 1024,
        hold_s: float = 600.0,
        tensor_parallel: int = 1,
        prefix_caching: bool | None = None,
        kv_store: str | Mapping[str, Any] | None = None,
        kv_store_wait_s: float = 1.0,
        eager: bool = False,
        quantization: str | None = None,
        adapters: Mapping[str, str] | None = None,
        max_adapter_rank: int = 16,
        threads: int | None = None,
        tool_parser: str | None = None,
        engine_options: Mapping[str, Any] | None = None,
        cache_dir: str | None = None,
    ) -> None:
        settings = VLLMSettings(
            dtype=dtype, kv_cache_gb=kv_cache_gb, memory_fraction=memory_fraction, max_batch_size=max_batch_size,
            max_sequence_length=max_sequence_length, max_queue=max_queue, hold_s=hold_s,
            tensor_parallel=tensor_parallel, prefix_caching=prefix_caching, kv_store=kv_store,
            kv_store_wait_s=kv_store_wait_s, eager=eager, quantization=quantization, adapters=adapters or {},
            max_adapter_rank=max_adapter_rank, threads=threads, tool_parser=tool_parser,
            engine_options=engine_options or {}, cache_dir=cache_dir,
        )  # fmt: skip
        super().__init__(model, settings, kv_schema)

    # --- what it is

    def served_features(self, engine: VLLMEngine) -> Sequence[str]:
        return FEATURES

    def get_kv_schema(self) -> KVCacheSchema:
        running = self._ready()
        schema = running.capability.kv_schema
        if schema is None:
            raise UnsupportedFeature(
                f"the KV cache of model {self.model.model_id!r} has no schema: "
                f"{running.undescribed or 'the model has no KV cache'}"
            )
        return schema

    def load_quant_profile(self, profile: QuantizationProfile) -> None:
        """Use a quantization profile.

        Before ``start`` it configures the engine. On a running engine, open requests are awaited and new ones wait; the
        engine is restarted, and ``start`` awaits this.

        Raises:
            CapabilityMismatch: not supported by platform or checkpoint; the message names the missing parts.
        """
        self._check_open()
        device = self._device() if self.platform.quantization is None else ""
        self._quantization = quantization_for(profile, self.model.model_path, self.platform, device=device)
        self._restart_later()

    # --- generation

    async def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> list[TokenStream]:
        running, options = await self._available(), options or RequestOptions()
        given = as_prompts(prompts)
        check_claims(
            running.capability.features, backend=self.name, params=params, options=options, prompts=given
        )
        check_params(params, max_logprobs=running.max_logprobs)
        adapter = running.adapter(params.adapter)
        found = await tokenize(
            running.tokenizer, given, vocab_size=running.vocab_size, limit=running.max_sequence_length
        )
        self._ready()  # it may have been closed during tokenization
        ids = request_ids(f"req-{uuid.uuid4().hex}" if request_id is None else request_id, len(found))
        running.check_ids(ids)
        running.requests.reserve(ids)
        started = [
            running.requests.add(
                part,
                prompt_tokens=len(prompt.token_ids),
                logprobs=params.logprobs,
                deadline=options.deadline,
            )
            for part, prompt in zip(ids, found, strict=True)
        ]
        try:
            stored = await running.stored_pages(found, adapter=params.adapter, options=options)
            for delivery, prompt, pages in zip(started, found, stored, strict=True):
                room, kv = running.max_sequence_length - len(prompt.token_ids), running.stored_params(pages)
                await running.submit(
                    delivery,
                    prompt,
                    engine_params(running.compat, params, room=room, kv=kv),
                    adapter=adapter,
                    options=options,
                    salt=options.cache_salt,
                    pages=pages,
                )
        except BaseException:
            for delivery in started:
                delivery.stream.cancel()
            raise
        return [delivery.stream for delivery in started]

    async def render_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        return render_chat(
            self._ready().chats,
            messages,
            tools=tools,
            template_variables=template_variables,
            add_generation_prompt=add_generation_prompt,
        )

    async def tokenize(self, prompt: PromptLike) -> list[int]:
        running, given = self._ready(), as_prompts(prompt)
        check_claims(running.capability.features, backend=self.name, prompts=given)
        return await tokens_of(running.tokenizer, given[0], "the prompt", vocab_size=running.vocab_size)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        running = self._ready()
        return text_of(running.tokenizer, token_ids, vocab_size=running.vocab_size)

    async def parse_tool_calls(
        self, text: str, *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> ChatAnswer:
        running = self._ready()
        if running.parse_tools is None:
            raise UnsupportedFeature(
                "the engine was opened without a tool parser; set the option tool_parser (hermes, llama3_json, …)"
            )
        return running.parse_tools(text, tools)

    # --- separate prefill and decode

    async def prefill(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        *,
        request_id: str,
        params: SamplingParams | None = None,
        options: RequestOptions | None = None,
        hold_s: float | None = None,
    ) -> PrefillResult:
        return await prefill(
            await self._instance(),
            as_prompts(prompts),
            params or SamplingParams(),
            options or RequestOptions(),
            request_id=request_id,
            hold_s=self._settings.hold_s if hold_s is None else checked_hold(hold_s),
        )

    async def decode(
        self, state: DecodeState, *, request_id: str, options: RequestOptions | None = None
    ) -> DecodeResult:
        return await decode(await self._instance(), state, options or RequestOptions(), request_id=request_id)

    async def export_kv(self, state: DecodeState) -> tuple[DecodeState, list[memoryview]]:
        return await export_kv(await self._instance(), state)

    async def check_state(self, state: DecodeState) -> None:
        check_state(await self._instance(), state)

    async def import_kv(self, state: DecodeState, buffers: Sequence[memoryview]) -> DecodeState:
        return await import_kv(await self._instance(), state, buffers)

    async def flush_kv(self) -> bool:
        reuse = self._ready().reuse
        return reuse is not None and await reuse.flush()

    async def prefetch_kv(self, token_ids: Sequence[int], *, cache_salt: str = "") -> int:
        reuse = self._ready().reuse
        return 0 if reuse is None else await reuse.prefetch(token_ids, salt=cache_salt)

    async def _instance(self) -> Instance:
        return Instance(await self._available(), self.name, self._settings.hold_s)

"""An engine with a loaded model, and its facts for the backends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import define, field
from sage_infer.contracts import ChatAnswer, EngineStats
from sage_infer.errors import EngineDead, InvalidRequest, ModelNotFound
from sage_infer.schemas import CapabilityDescriptor, RequestOptions
from sage_infer.sdk.kv_pages.notes import patience

from sage_infer_vllm.engine.kv_reuse import KVReuse, PromptPages
from sage_infer_vllm.handover.held import HeldStates
from sage_infer_vllm.handover.states import States
from sage_infer_vllm.kv.plan import PARAMS
from sage_infer_vllm.requests.chat import ChatRenderer
from sage_infer_vllm.requests.delivery import Delivery
from sage_infer_vllm.requests.load import load_of
from sage_infer_vllm.requests.open_requests import OpenRequests
from sage_infer_vllm.requests.prompts import TokenizedPrompt

if TYPE_CHECKING:
    from sage_infer_vllm.engine.engine import VLLMEngine

__all__ = ["Running"]

_CAUSE_S = 5.0  # a bound: the watch of the engine's processes finds the cause within milliseconds


@define(eq=False)
class Running:
    """A loaded model.

    Attributes:
        engine: the engine that runs it.
        compat: the module that imported vLLM.
        capability: its capabilities.
        tokenizer: the model's tokenizer; None without one.
        chats: renders chats; None without a chat template.
        requests: the open requests.
        adapters: LoRA adapters by name, as vLLM's requests.
        parse_tools: separates tool calls from an answer's text; None without the option ``tool_parser``.
        undescribed: reason why the KV cache has no schema; empty if it has one, or there is no KV.
        unsplit: reason why prefill and decode, or KV transfer, are not supported; empty if both are.
        key_space: ``contracts.key_space`` of the KV; None without a schema.
        states: makes and checks states between prefill and decode; None without a schema.
        reuse: the KV store below the engine; None without one.
        held: KV that waits for its decode.
    """

    engine: VLLMEngine
    compat: Any
    capability: CapabilityDescriptor
    tokenizer: Any
    chats: ChatRenderer | None
    requests: OpenRequests
    adapters: Mapping[str, Any]
    parse_tools: Callable[[str, Sequence[Mapping[str, Any]] | None], ChatAnswer] | None
    undescribed: str = ""
    unsplit: str = ""
    key_space: str | None = None
    states: States | None = None
    reuse: KVReuse | None = None
    held: HeldStates = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.held = HeldStates(self.release)

    @property
    def max_sequence_length(self) -> int:
        return self.capability.max_sequence_length

    @property
    def vocab_size(self) -> int:
        return int(self.engine.config.model_config.get_vocab_size())

    @property
    def max_logprobs(self) -> int:
        limit = int(self.engine.config.model_config.max_logprobs)
        return self.vocab_size if limit < 0 else limit

    @property
    def stopped(self) -> str:
        if not self.engine.stopped and self.engine.llm.errored:
            return "vLLM's engine reports a fatal error"
        return self.engine.stopped

    def dead(self) -> EngineDead:
        return EngineDead(f"the engine has stopped: {self.stopped or 'it exited'}; open the backend again")

    def adapter(self, name: str | None) -> Any:
        """vLLM's request for an adapter; None without one.

        Raises:
            ModelNotFound: there is no adapter with this name.
        """
        if name is None:
            return None
        if name not in self.adapters:
            raise ModelNotFound(f"no adapter {name!r}; available: {', '.join(sorted(self.adapters))}")
        return self.adapters[name]

    async def submit(
        self,
        delivery: Delivery,
        prompt: TokenizedPrompt,
        sampling: Any,
        *,
        adapter: Any,
        options: RequestOptions,
        salt: str = "",
        pages: PromptPages | None = None,
    ) -> None:
        """Hand a request to vLLM; its outputs go to ``delivery``. One that has ended already is not handed over.

        ``pages`` are those that the parameters ask the engine to load.

        Raises:
            InvalidRequest: vLLM rejects it.
            EngineDead: the engine has stopped.
        """
        compat, llm = self.compat, self.engine.llm
        if delivery.has_ended():
            return
        try:
            adding = compat.add_request(
                llm,
                delivery.request_id,
                compat.tokens_input(prompt.token_ids, prompt=prompt.text, cache_salt=salt or None),
                sampling,
                lora_request=adapter,
                trace_headers=options.trace or None,
                priority=options.priority,
            )
            collector = await (adding if pages is None else self._added(adding, pages))
        except compat.EngineDeadError as error:
            raise self.dead() from error
        except (compat.VLLMClientError, ValueError, TypeError) as error:
            raise InvalidRequest(f"vLLM rejects the request: {str(error).splitlines()[0]}") from error
        delivery.collector = collector
        if pages is not None and self.reuse is not None:
            self.reuse.submitted(delivery, pages, rows=sampling.n)
        delivery.failed = _fail_later
        compat.attach(collector, delivery.take)
        if delivery.has_ended():  # cancelled during the hand-over
            await compat.abort_now(llm, collector)
            if pages is not None and self.reuse is not None:
                self.reuse.abandon(pages)

    async def _added(self, adding: Awaitable[Any], pages: PromptPages) -> Any:
        """The collector of a request with stored pages; if the caller gives up meanwhile, it is aborted first."""
        task = asyncio.ensure_future(adding)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self.requests.run(self._abort_added(task, pages))
            raise

    async def _abort_added(self, adding: asyncio.Future[Any], pages: PromptPages) -> None:
        await self.compat.abort_now(self.engine.llm, await adding)
        if self.reuse is not None:
            self.reuse.abandon(pages)

    def check_ids(self, request_ids: Sequence[str]) -> None:
        """Raises:
        InvalidRequest: KV is held under one of these ids. Those of open requests are checked by ``requests``.
        """
        for request_id in request_ids:
            self.held.check_free(request_id)

    async def call_workers(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of every worker between two steps; the answers.

        Raises:
            EngineDead: the engine has stopped.
        """
        try:
            found: list[Any] = await self.engine.llm.collective_rpc(method, args=arguments)
        except self.compat.EngineDeadError as error:
            raise self.dead() from error
        return found

    async def fence(self) -> None:
        """Wait until the engine has dropped aborted requests, and the workers have ended all steps so far.

        Raises:
            EngineDead: the engine has stopped.
        """
        await self.requests.settled()
        await self.call_workers("sage_page_bytes")

    async def stored_pages(
        self, prompts: Sequence[TokenizedPrompt], *, adapter: str | None, options: RequestOptions
    ) -> list[PromptPages | None]:
        """The pages of each prompt that the KV store holds; None without a store."""
        reuse = self.reuse
        if reuse is None:
            return [None] * len(prompts)
        return list(
            await asyncio.gather(
                *(
                    reuse.fetch(
                        prompt.token_ids,
                        salt=options.cache_salt,
                        adapter=adapter,
                        patience_s=patience(priority=options.priority, deadline_s=options.deadline),
                    )
                    for prompt in prompts
                )
            )
        )

    def stored_params(self, pages: PromptPages | None) -> dict[str, Any]:
        """What a request's parameters say about these pages."""
        return {} if pages is None or self.reuse is None else self.reuse.params(pages)

    def release(self, name: str) -> None:
        """Have the engine free a hold; an unknown one is ignored."""
        params = {PARAMS: {"release": [name]}}
        self.requests.run(self.compat.release_held(self.engine.llm, params, name))

    def stats(self) -> EngineStats:
        counters, open_requests = self.engine.counters, len(self.requests)
        # vLLM does not report after the last request was cancelled; then no sequence runs, and blocks are only held.
        usage = counters.kv_usage if open_requests else None
        running = counters.running if open_requests else 0
        waiting = max(counters.waiting, open_requests - running) if open_requests else 0
        total = 0
        if self.capability.kv_cache_capacity_gb is not None:  # vLLM keeps one block for padding
            total = max((self.engine.config.cache_config.num_gpu_blocks or 0) - 1, 0)
        if usage is None:
            usage = self.held.blocks / total if total else 0.0
        load = load_of(self.requests.deliveries(), self.requests.calls(), waiting=waiting)
        prompt_rate, output_rate = counters.rates()
        queries = counters.cache_queries
        stored = {} if self.reuse is None else self.reuse.counts()
        return EngineStats(
            running=running,
            waiting=waiting,
            kv_blocks_total=total,
            kv_blocks_free=total - round(usage * total),
            kv_blocks_cached=None if total else 0,  # vLLM does not report them
            finished=self.requests.finished,
            prompt_tokens=counters.prompt_tokens,
            output_tokens=counters.output_tokens,
            prefix_hit_tokens=counters.cache_hits,
            waiting_prompt_tokens=load.waiting_prompt_tokens,
            running_context_tokens=load.running_context_tokens,
            oldest_wait_s=load.oldest_wait_s,
            steps=counters.steps,
            step_s=counters.step_s,
            extensions={
                "kv_usage": usage,
                "prefix_hit_rate": counters.cache_hits / queries if queries else 0.0,
                "prompt_tokens_per_s": prompt_rate,
                "output_tokens_per_s": output_rate,
                "preemptions": counters.preemptions,
                **{f"kv_store_{name}": value for name, value in stored.items()},
            },
        )

    async def drained(self) -> None:
        """Wait until no request is open."""
        while len(self.requests):
            await self.requests.one_ended()

    async def close(self) -> None:
        self.held.close()
        await self.requests.settled()
        await self.engine.close()
        if self.reuse is not None:
            await self.reuse.close()


def _fail_later(delivery: Delivery, error: EngineDead) -> None:
    """End a request with vLLM's error, unless the watch of the engine's processes ends it with the cause before."""
    asyncio.get_running_loop().call_later(_CAUSE_S, delivery.fail, error)

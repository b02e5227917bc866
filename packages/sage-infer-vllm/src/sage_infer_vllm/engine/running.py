"""An engine with a loaded model, and its facts for the backends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import define, field
from sage_infer.contracts import ChatAnswer, EngineStats
from sage_infer.errors import EngineDead, InvalidRequest, ModelNotFound
from sage_infer.schemas import CapabilityDescriptor, RequestOptions

from sage_infer_vllm.handover.held import HeldStates
from sage_infer_vllm.handover.states import States
from sage_infer_vllm.kv.plan import PARAMS
from sage_infer_vllm.requests.delivery import Delivery
from sage_infer_vllm.requests.load import load_of
from sage_infer_vllm.requests.open_requests import OpenRequests
from sage_infer_vllm.requests.prompts import TokenizedPrompt

if TYPE_CHECKING:
    from sage_infer_vllm.engine.engine import VLLMEngine

__all__ = ["Running"]


@define(eq=False)
class Running:
    """A loaded model.

    Attributes:
        engine: the engine that runs it.
        compat: the module that imported vLLM.
        capability: its capabilities.
        tokenizer: the model's tokenizer; None without one.
        requests: the open requests.
        adapters: LoRA adapters by name, as vLLM's requests.
        parse_tools: separates tool calls from an answer's text; None without the option ``tool_parser``.
        undescribed: reason why the KV cache has no schema; empty if it has one, or there is no KV.
        unsplit: reason why prefill and decode, or KV transfer, are not supported; empty if both are.
        key_space: ``contracts.key_space`` of the KV; None without a schema.
        states: makes and checks states between prefill and decode; None without a schema.
        held: KV that waits for its decode.
    """

    engine: VLLMEngine
    compat: Any
    capability: CapabilityDescriptor
    tokenizer: Any
    requests: OpenRequests
    adapters: Mapping[str, Any]
    parse_tools: Callable[[str, Sequence[Mapping[str, Any]] | None], ChatAnswer] | None
    undescribed: str = ""
    unsplit: str = ""
    key_space: str | None = None
    states: States | None = None
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
    ) -> None:
        """Hand a request to vLLM; its outputs go to ``delivery``.

        Raises:
            InvalidRequest: vLLM rejects it.
            EngineDead: the engine has stopped.
        """
        compat, llm = self.compat, self.engine.llm
        try:
            collector = await llm.add_request(
                delivery.request_id,
                compat.tokens_input(prompt.token_ids, prompt=prompt.text, cache_salt=salt or None),
                sampling,
                lora_request=adapter,
                trace_headers=options.trace or None,
                priority=options.priority,
            )
        except compat.EngineDeadError as error:
            raise self.dead() from error
        except (compat.VLLMClientError, ValueError, TypeError) as error:
            raise InvalidRequest(f"vLLM rejects the request: {str(error).splitlines()[0]}") from error
        delivery.collector = collector
        compat.attach(collector, delivery.take)
        if delivery.stream.finish_reason is not None:  # cancelled during the hand-over
            await compat.abort_now(llm, collector)

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

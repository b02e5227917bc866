"""Requests to vLLM and what it returns for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from vllm import PoolingParams, SamplingParams
from vllm.lora.request import LoRARequest
from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM

try:
    from vllm.exceptions import VLLMClientError
except ImportError:  # up to 0.23, which raises ValueError

    class VLLMClientError(Exception):  # type: ignore[no-redef]
        """Never raised."""


try:
    from vllm.inputs.engine import tokens_input
except ImportError:  # up to 0.18
    from vllm.inputs import TokensPrompt

    def tokens_input(
        prompt_token_ids: Sequence[int], *, prompt: str | None = None, cache_salt: str | None = None
    ) -> Any:
        """A prompt of token ids."""
        found = TokensPrompt(prompt_token_ids=list(prompt_token_ids))
        if prompt is not None:
            found["prompt"] = prompt
        if cache_salt is not None:
            found["cache_salt"] = cache_salt
        return found


__all__ = [
    "LoRARequest", "PoolingParams", "PoolingRequestOutput", "RequestOutput", "RequestOutputKind", "SamplingParams",
    "StructuredOutputsParams", "VLLMClientError", "abort_now", "add_request", "attach", "tokenizer_of", "tokens_input",
]  # fmt: skip


async def add_request(llm: AsyncLLM, request_id: str, prompt: Any, params: Any, **more: Any) -> Any:
    """Hand over a request; returns its collector, whose ``request_id`` is the one that ``abort_now`` requires."""
    collector = await llm.add_request(request_id, prompt, params, **more)
    if not hasattr(collector, "request_id"):  # up to 0.13, where the engine has no ids of its own
        collector.request_id = request_id
    return collector


def attach(collector: Any, put: Callable[[Any], None]) -> None:
    """Deliver a request's outputs to ``put`` on arrival, instead of to a waiting task.

    Saves a wake-up per token. Outputs that arrived before this call are delivered immediately.
    """
    collector.put = put
    arrived, collector.output = collector.output, None
    if arrived is not None:
        put(arrived)


def abort_now(llm: AsyncLLM, collector: Any) -> Any:
    """Abort the request behind a collector, as an awaitable."""
    if "internal" in inspect.signature(llm.abort).parameters:
        return llm.abort(collector.request_id, internal=True)
    return llm.abort(collector.request_id)  # up to 0.13


async def tokenizer_of(llm: AsyncLLM) -> Any:
    """The model's tokenizer; None without one."""
    found = llm.get_tokenizer()
    return await found if inspect.isawaitable(found) else found  # up to 0.13 a coroutine

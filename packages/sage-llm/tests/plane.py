"""What the tests of the manager share: an executor that opens backends in this process, and undisturbed outputs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sage_infer.backends import create_backend
from sage_infer.compat import timeout
from sage_infer.contracts import TokenStream
from sage_infer.schemas import ModelDescriptor, ReplicaSpec, SamplingParams, TokenDelta
from sage_infer.sdk import BackendReplica, BaseExecutor
from sage_llm.manager.manager import ControlPlaneManager
from sage_llm.manager.models import ServedModel
from sage_llm.manager.settings import ControlPlaneSettings

GUARD_S = 300
QUESTIONS = [f"Write a short story about lighthouse number {number}." for number in range(16)]


class InProcess(BaseExecutor):
    """Opens every replica in this process; ``kill`` closes its engine."""

    async def launch(self, spec: ReplicaSpec) -> BackendReplica:
        backend = create_backend(spec.backend, model=spec.model, **spec.options)
        try:
            await backend.start()
        except BaseException:
            await backend.close()
            raise
        return BackendReplica(spec, backend)


@asynccontextmanager
async def running_plane(
    models: Sequence[ServedModel], executor: Any = None, settings: ControlPlaneSettings | None = None
) -> AsyncIterator[ControlPlaneManager]:
    manager = ControlPlaneManager(models, executor or InProcess(), settings)
    try:
        await manager.start()
        yield manager
    finally:
        await manager.close()


def small_llm(path: str, cache_dir: str, replicas: int = 2, prefill: int = 0, **options: Any) -> ServedModel:
    """SmolLM2 with a small KV cache."""
    return ServedModel(
        descriptor=ModelDescriptor(model_id="smollm2-135m", model_type="llm", model_path=path),
        backend="openvino",
        options={"cache_dir": cache_dir, "kv_cache_gb": 0.25, "max_sequence_length": 512, **options},
        replicas=replicas,
        prefill_replicas=prefill,
    )


async def read(stream: TokenStream) -> tuple[list[int], str, Any, Any]:
    """Tokens, text, finish reason and counted tokens of a whole stream."""
    parts: list[TokenDelta] = []
    async with stream:
        async for delta in stream:
            parts.append(delta)
    assert stream.usage is not None
    return (
        [token for delta in parts for token in delta.token_ids],
        "".join(delta.text for delta in parts),
        stream.finish_reason,
        (stream.usage.prompt_tokens, stream.usage.completion_tokens),
    )


def mixed_params(count: int, tokens: int) -> list[SamplingParams]:
    """Greedy and seeded parameters in turns."""
    return [
        SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        if number % 2 == 0
        else SamplingParams(temperature=0.9, top_k=8, seed=number, max_tokens=tokens, ignore_eos=True)
        for number in range(count)
    ]


async def start_all(manager: ControlPlaneManager, params: Sequence[SamplingParams]) -> list[TokenStream]:
    return list(
        await asyncio.gather(
            *(
                manager.chat([{"role": "user", "content": question}], one)
                for question, one in zip(QUESTIONS, params, strict=False)
            )
        )
    )


async def until(condition: Any) -> None:
    """Wait until a condition holds."""
    async with timeout(GUARD_S):
        while not condition():  # noqa: ASYNC110 - the condition has no event
            await asyncio.sleep(0.005)

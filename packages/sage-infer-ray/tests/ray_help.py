"""What the tests on a cluster share."""

from __future__ import annotations

import ray
from sage_infer.contracts import ReplicaHandle
from sage_infer.schemas import SamplingParams
from sage_infer_ray.executor import RayExecutor
from sage_llm.replicas.connect import connect

__all__ = ["WAIT_S", "actor_id", "leave", "tokens_of"]

WAIT_S = 120.0


async def tokens_of(handle: ReplicaHandle, count: int = 3) -> list[int]:
    """Connect to a replica and read a short stream."""
    replica = await connect(handle)
    try:
        (stream,) = await replica.backend.generate("Once", SamplingParams(max_tokens=count, ignore_eos=True))
        return [token async for delta in stream for token in delta.token_ids]
    finally:
        await replica.close()


def leave(executor: RayExecutor) -> None:
    """What the death of the executor's process does: nobody beats any more."""
    assert executor._beating is not None
    executor._beating.cancel()


def actor_id(replica_id: str) -> str:
    return str(ray.get_actor(f"sage/{replica_id}", namespace="tests")._actor_id.hex())

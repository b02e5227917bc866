"""An executor of other machines, beside the clients of joined servers, which run in this process."""

from __future__ import annotations

from sage_infer.contracts import Executor, ReplicaHandle
from sage_infer.schemas import ReplicaSpec

from sage_llm.replicas.local import LocalExecutor
from sage_llm.replicas.openai import is_remote

__all__ = ["ElsewhereExecutor"]


class ElsewhereExecutor:
    """Starts replicas with another executor, and clients of joined servers in this process.

    Args:
        executor: runs the replicas.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor, self._here = executor, LocalExecutor()

    async def start(self, spec: ReplicaSpec) -> ReplicaHandle:
        return await (self._here if is_remote(spec.model) else self._executor).start(spec)

    async def adopt(self) -> list[ReplicaHandle]:
        return await self._executor.adopt()

    async def close(self) -> None:
        await self._here.close()
        await self._executor.close()

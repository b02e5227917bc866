"""One replica over all of its restarts, and the result of its drain."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from attrs import define, frozen
from sage_infer.contracts import ReplicaHandle
from sage_infer.schemas import ReplicaSpec

from sage_llm.manager.live_instance import LiveInstance
from sage_llm.manager.restarts import Restarts

__all__ = ["Drained", "Replica", "ReplicaWord"]

ReplicaWord = Literal["starting", "running", "pausing", "stopping", "failed", "gone"]


@define(eq=False)
class Replica:
    """One replica over all of its restarts.

    Attributes:
        spec: what it is started with.
        word: starting, running, pausing (before a restart), stopping, failed (not restarted) or gone.
        reason: why it last ended.
        handle, instance: the running process and the connection to it.
    """

    spec: ReplicaSpec
    restarts: Restarts
    word: ReplicaWord = "starting"
    reason: str = ""
    ended_at: float | None = None
    handle: ReplicaHandle | None = None
    instance: LiveInstance | None = None
    task: asyncio.Task[Any] | None = None

    @property
    def replica_id(self) -> str:
        return self.spec.replica_id

    @property
    def model_id(self) -> str:
        return self.spec.model.model_id

    @property
    def is_coming(self) -> bool:
        """Whether it serves or will serve without an operator."""
        return self.word in ("starting", "running", "pausing")


@frozen(kw_only=True)
class Drained:
    """Result of a drain.

    Attributes:
        replica_id: the drained replica.
        open: requests that ran on it.
        ended: requests that finished there.
        migrated: requests that moved.
        took_s: duration in seconds.
    """

    replica_id: str
    open: int
    ended: int
    migrated: int
    took_s: float

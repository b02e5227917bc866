"""Identity and load of an instance, for routers."""

from __future__ import annotations

import platform
import time
import uuid
from collections.abc import Iterable, Mapping

from sage_infer.contracts import EngineStats, Health
from sage_infer.errors import EngineDead
from sage_infer.schemas import CapabilityDescriptor, InstanceDescriptor, InstanceReport
from sage_infer.schemas.instance import InstanceState

__all__ = ["Reporter"]

_STATES: dict[str, InstanceState] = {
    "ok": "ready", "starting": "starting", "degraded": "degraded", "draining": "draining", "dead": "dead",
}  # fmt: skip
"""Status of a health → state of a report."""

_SHARED = (
    "running", "waiting", "waiting_prompt_tokens", "running_context_tokens", "oldest_wait_s", "steps", "step_s",
    "kv_blocks_total", "kv_blocks_free", "kv_blocks_cached", "finished", "prompt_tokens", "output_tokens",
    "prefix_hit_tokens", "extensions",
)  # fmt: skip


class Reporter:
    """Creates the descriptor and the reports of one backend object, for ``InstanceReporting``.

    Attributes:
        instance_id: unique name for the lifetime of the object.
        generation: start time of the engine in nanoseconds since the epoch.
    """

    def __init__(self, backend: str, model_id: str) -> None:
        self.instance_id = f"{backend}-{uuid.uuid4().hex[:12]}"
        self.generation = time.time_ns()
        self._model_id = model_id
        self._seq = 0
        self._descriptor: InstanceDescriptor | None = None

    def new_generation(self) -> None:
        """Start a new generation when the engine restarts. There is no descriptor until ``started`` is called."""
        self.generation, self._seq = max(time.time_ns(), self.generation + 1), 0
        self._descriptor = None

    def started(
        self,
        capability: CapabilityDescriptor,
        *,
        address: str = "inproc:",
        key_space: str | None = None,
        adapters: Iterable[str] = (),
        versions: Mapping[str, str] | None = None,
    ) -> None:
        """Set the identity of the loaded instance. ``versions`` has the versions of engine and libraries."""
        self._descriptor = InstanceDescriptor(
            instance_id=self.instance_id,
            generation=self.generation,
            model_ids=(self._model_id,),
            capability=capability,
            adapters=tuple(adapters),
            addresses=(address,),
            host=platform.node(),
            key_space=key_space,
            versions=versions or {},
        )

    def describe(self) -> InstanceDescriptor:
        """Return the identity of the instance.

        Raises:
            EngineDead: the instance is not started.
        """
        if self._descriptor is None:
            raise EngineDead("the backend is not started; call start() first, or use open_backend")
        return self._descriptor

    def report(self, stats: EngineStats, health: Health, *, sleeping: bool = False) -> InstanceReport:
        """Return the current load; each call increments ``seq``."""
        self._seq += 1
        state = _STATES[health.status]
        return InstanceReport(
            instance_id=self.instance_id,
            generation=self.generation,
            seq=self._seq,
            taken_at=time.monotonic(),
            state="sleeping" if sleeping and state == "ready" else state,
            **{name: getattr(stats, name) for name in _SHARED},
        )

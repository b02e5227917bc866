"""Identity and load of an instance, for routers."""

from __future__ import annotations

import platform
import time
import uuid
from typing import Literal

from sage_infer.contracts import EngineStats, Health
from sage_infer.schemas import InstanceDescriptor, InstanceReport, ModelDescriptor

from sage_infer_vllm.engine.running import Running

__all__ = ["Reporter"]

_State = Literal["starting", "ready", "degraded", "draining", "sleeping", "dead"]
_STATES: dict[str, _State] = {
    "ok": "ready", "starting": "starting", "degraded": "degraded", "draining": "draining", "dead": "dead",
}  # fmt: skip
"""Status of a health → state of a report."""

_SHARED = (
    "running", "waiting", "waiting_prompt_tokens", "running_context_tokens", "oldest_wait_s", "steps", "step_s",
    "kv_blocks_total", "kv_blocks_free", "kv_blocks_cached", "finished", "prompt_tokens", "output_tokens",
    "prefix_hit_tokens", "extensions",
)  # fmt: skip


class Reporter:
    """Creates the descriptor and the reports of one backend object.

    The instance id belongs to the object; each start of its engine is a new generation.
    """

    def __init__(self, backend: str, model: ModelDescriptor) -> None:
        self._model_id = model.model_id
        self._instance_id = f"{backend}-{uuid.uuid4().hex[:12]}"
        self._generation = time.time_ns()
        self._seq = 0

    def new_generation(self) -> None:
        """Begin a generation, at each start of the engine."""
        self._generation, self._seq = max(time.time_ns(), self._generation + 1), 0

    def describe(self, running: Running) -> InstanceDescriptor:
        """The identity of the running instance."""
        return InstanceDescriptor(
            instance_id=self._instance_id,
            generation=self._generation,
            model_ids=(self._model_id,),
            capability=running.capability,
            adapters=tuple(running.adapters),
            addresses=(f"inproc:{self._instance_id}",),
            host=platform.node(),
            key_space=running.key_space,
            versions={"vllm": running.compat.version(), "torch": running.compat.torch_version()},
        )

    def report(self, stats: EngineStats, health: Health, *, sleeping: bool) -> InstanceReport:
        """The current load."""
        self._seq += 1
        state = _STATES[health.status]
        return InstanceReport(
            instance_id=self._instance_id,
            generation=self._generation,
            seq=self._seq,
            taken_at=time.monotonic(),
            state="sleeping" if sleeping and state == "ready" else state,
            **{name: getattr(stats, name) for name in _SHARED},
        )

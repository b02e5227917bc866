"""Identity and load of an instance, for routers."""

from __future__ import annotations

import platform
import time
import uuid

from sage_infer.contracts import EngineStats, Health
from sage_infer.errors import EngineDead
from sage_infer.schemas import CapabilityDescriptor, InstanceDescriptor, InstanceReport
from sage_infer.schemas.instance import InstanceState

from sage_infer_openvino.ov_runtime import ov

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
    """Creates the descriptor and the reports of one backend object, which starts only once."""

    def __init__(self, backend: str) -> None:
        self.instance_id = f"{backend}-{uuid.uuid4().hex[:12]}"
        self.generation = time.time_ns()
        self._seq = 0
        self._descriptor: InstanceDescriptor | None = None

    def started(self, model_id: str, capability: CapabilityDescriptor, key_space: str | None = None) -> None:
        """Set the identity of the loaded instance."""
        self._descriptor = InstanceDescriptor(
            instance_id=self.instance_id,
            generation=self.generation,
            model_ids=(model_id,),
            capability=capability,
            addresses=("inproc:",),
            host=platform.node(),
            key_space=key_space,
            versions={"openvino": ov.get_version()},
        )

    def describe(self) -> InstanceDescriptor:
        """Raises:
        EngineDead: the instance is not started.
        """
        if self._descriptor is None:
            raise EngineDead("the backend is not started; call start() first, or use open_backend")
        return self._descriptor

    def report(self, stats: EngineStats, health: Health) -> InstanceReport:
        """The current load."""
        self._seq += 1
        return InstanceReport(
            instance_id=self.instance_id,
            generation=self.generation,
            seq=self._seq,
            taken_at=time.monotonic(),
            state=_STATES[health.status],
            **{name: getattr(stats, name) for name in _SHARED},
        )

"""Settings of a control plane."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen
from sage_infer.names import GENERATING, ModelType

from sage_llm.manager.calls.batch import BatchLimits
from sage_llm.manager.health import HealthLimits
from sage_llm.manager.migration import RecoveryLimits
from sage_llm.manager.pd import HandOverSettings
from sage_llm.manager.restarts import RestartLimits
from sage_llm.quota_tree import KVQuota
from sage_llm.quotas import TenantQuota

__all__ = ["ControlPlaneSettings"]


@frozen(kw_only=True)
class ControlPlaneSettings:
    """Settings of a control plane.

    Attributes:
        policy, order: names of the placement policy, and of the order of waiting requests.
        target_wait_s: longest expected wait of a new request; None accepts all.
        backend, embedding_backend: backends of models that are loaded later.
        hand_over: how KV moves from instances that compute prompts to those that generate.
        health, restarts, recovery: limits of failures.
        tenants: quotas by tenant; ``"*"`` applies to each tenant without one.
        quotas: quotas of KV by tenant, model and class.
        batches: limits of batches of embedding and reranking requests.
        tracing: whether each dispatch of a request is an OpenTelemetry span.
        drain_s: time for requests to end on a replica that scaling stops, before they move.
    """

    policy: str = "kv-cost"
    order: str = "balanced"
    target_wait_s: float | None = None
    backend: str = "openvino"
    embedding_backend: str = "openvino-embedding"
    hand_over: HandOverSettings = field(factory=HandOverSettings)
    health: HealthLimits = field(factory=HealthLimits)
    restarts: RestartLimits = field(factory=RestartLimits)
    recovery: RecoveryLimits = field(factory=RecoveryLimits)
    tenants: Mapping[str, TenantQuota] = field(factory=dict)
    quotas: Mapping[str, KVQuota] = field(factory=dict)
    batches: BatchLimits = field(factory=BatchLimits)
    tracing: bool = False
    drain_s: float = 1.0

    def backend_for(self, kind: ModelType) -> str:
        return self.backend if kind in GENERATING else self.embedding_backend

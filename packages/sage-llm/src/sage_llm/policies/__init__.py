"""Pure policies of the control plane: order, placement and admission, each found by name."""

from __future__ import annotations

from sage_llm.policies.kv_cost import KVCost
from sage_llm.policies.table import POLICIES, admission, order, parameters, placement, policy

__all__ = ["POLICIES", "KVCost", "admission", "order", "parameters", "placement", "policy"]

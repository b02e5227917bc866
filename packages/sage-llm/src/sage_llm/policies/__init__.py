"""Pure policies of the control plane: order, placement and admission, each found by name."""

from __future__ import annotations

from sage_llm.policies.kv_cost import KVCost

__all__ = ["KVCost"]

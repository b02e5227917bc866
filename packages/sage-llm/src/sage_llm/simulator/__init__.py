"""Simulation of a cluster under a trace of requests, with the policies of the control plane unchanged.

from pathlib import Path

from sage_llm.policies import order, placement
from sage_llm.simulator import Cluster, open_trace, simulate

trace = open_trace(Path("conversation_trace.jsonl.gz"))
result = simulate(trace, Cluster(instances=8, load=0.95), placement("kv-cost"), order())
print(result.hit, result.ttft_s)
"""

from __future__ import annotations

from sage_llm.simulator.cluster import Cluster
from sage_llm.simulator.engine_model import EngineModel
from sage_llm.simulator.metrics import Result
from sage_llm.simulator.run import simulate
from sage_llm.simulator.traces import Trace, open_trace

__all__ = ["Cluster", "EngineModel", "Result", "Trace", "open_trace", "simulate"]

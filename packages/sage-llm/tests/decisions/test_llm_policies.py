"""Policies by name and parameters, their documentation, and admission."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_cluster import MODEL, any_speed, cluster, instance, request
from sage_infer.errors import InvalidRequest
from sage_llm.policies import POLICIES, KVCost, admission, order, placement, policy
from sage_llm.policies.base import AdmissionPolicy, OrderPolicy, PlacementPolicy
from sage_llm.policies.table import summary
from sage_llm.types import Snapshot, TenantView

PROTOCOLS = {"placement": PlacementPolicy, "order": OrderPolicy, "admission": AdmissionPolicy}
EVERY = [(kind, name) for kind, table in POLICIES.items() for name in table]


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_policy_is_found_documented_and_immutable(kind: Any, name: str) -> None:
    made = policy(kind, name)
    assert isinstance(made, PROTOCOLS[kind])
    assert made.name == name
    assert made == policy(kind, name.replace("-", "_"))
    assert summary(type(made)).endswith((".", ":")) or summary(type(made))
    for field in attrs.fields(type(made)):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(made, field.name, None)
        if field.init:
            assert f"    {field.name}: " in type(made).__doc__, "each parameter is explained"


def test_the_first_policy_is_the_default() -> None:
    assert placement() == KVCost()
    assert order().name == "balanced"
    assert admission().name == "predicted-wait"


def test_parameters_may_be_part_of_the_name() -> None:
    assert placement("kv-cost:alpha=4, credit_ssd=0.5") == KVCost(alpha=4.0, credit_ssd=0.5)
    assert placement("kv_cost", alpha="2") == KVCost(alpha=2.0)
    assert placement("topology:near=a b").near == "a b"  # type: ignore[attr-defined]
    assert placement("kv-cost:") == KVCost()


@pytest.mark.parametrize(
    ("kind", "name", "values", "message"),
    [
        ("placement", "kvcost", {}, "did you mean 'kv-cost'"),
        ("placement", "random", {}, "policies: kv-cost, round-robin"),
        ("order", "kv-cost", {}, "no order policy"),
        ("routing", "kv-cost", {}, "kinds: placement, order, admission"),
        ("placement", "kv-cost", {"beta": 1}, "its parameters: alpha, alpha_max"),
        ("placement", "round-robin", {"alpha": 1}, "it has no parameters"),
        ("placement", "kv-cost:alpha", {}, "NAME:KEY=VALUE"),
        ("placement", "kv-cost:alpha=1,alpha=2", {}, "twice"),
        ("placement", "kv-cost", {"alpha": "much"}, "must be a number, not 'much'"),
        ("placement", "kv-cost", {"alpha": True}, "must be a number"),
        ("placement", "kv-cost", {"alpha": float("nan")}, "must be a number"),
        ("placement", "kv-cost", {"alpha_max": 0.5}, "'alpha_max' must be >= 1"),
        ("placement", "adaptive", {"min_tokens": 1.5}, "must be a whole number"),
        ("placement", "adaptive", {"min_tokens": float("inf")}, "must be a whole number"),
        ("placement", "topology", {"near": 3}, "must be a text"),
        ("order", "priority", {"by_band": 1}, "has no parameter 'by_band'"),
    ],
)
def test_wrong_names_and_parameters_are_explained(
    kind: Any, name: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(message)):
        policy(kind, name, **values)


# --- admission


def decide(snapshot: Snapshot, wanted: Any = None, **values: Any) -> Any:
    return admission("predicted-wait", **values).admit(wanted or request(), snapshot)


def test_a_request_is_refused_when_its_wait_exceeds_the_target() -> None:
    queue = {"waiting": 20, "waiting_tokens": 60_000.0}
    view = instance(0, queued_tokens=1000.0)
    decision = decide(cluster(view, **queue))
    assert (decision.kind, decision.reason) == ("refuse", "overloaded")
    assert decision.retry_after == pytest.approx(31.0)
    assert "the expected wait is 61.0 s, the target 30 s" in decision.message
    assert decide(cluster(view, **queue), target_s=70).kind == "wait"
    assert decide(cluster(view, **queue), always=21).kind == "wait"
    assert decide(cluster(view, **queue), request(slo_ttft=100.0)).kind == "wait"
    assert decide(cluster(view, **queue), request(slo_ttft=2.0), slack=40).kind == "wait"


def test_the_speed_of_the_queue_counts_more_than_that_of_prefills() -> None:
    slow = cluster(instance(0), waiting=20, waiting_tokens=10_000.0, drain=100.0)
    decision = decide(slow)
    assert (decision.reason, decision.predicted_ttft) == ("overloaded", 100.0)
    assert decide(cluster(instance(0), waiting=20, waiting_tokens=10_000.0)).kind == "wait"


def test_an_empty_queue_accepts() -> None:
    decision = decide(cluster(instance(0, queued_tokens=500.0)))
    assert (decision.kind, decision.predicted_ttft) == ("wait", 0.5)


def test_a_deadline_that_cannot_be_met_is_said_early() -> None:
    busy = cluster(instance(0), waiting=2, waiting_tokens=5000.0)
    decision = decide(busy, request(deadline=3.0))
    assert (decision.kind, decision.reason) == ("refuse", "late")
    assert "passes in 3.0 s" in decision.message
    assert decide(busy, request(deadline=6.0)).kind == "wait"


def test_a_greedy_tenant_meets_its_quota() -> None:
    tenants = {"t": TenantView(queued=5)}
    snapshot = cluster(instance(0), tenants=tenants)
    decision = decide(snapshot, request(tenant="t"), max_queued=5)
    assert (decision.kind, decision.reason) == ("refuse", "quota")
    assert decision.retry_after >= 1
    assert decide(snapshot, request(tenant="u"), max_queued=5).kind == "wait"


def test_nobody_is_admitted_to_a_model_without_instances() -> None:
    assert decide(Snapshot(0.0)).reason == "unavailable"
    starting = cluster(instance(0, state="starting"))
    assert decide(starting).kind == "wait"
    assert admission().wait_s(request(), starting) == 0.0  # type: ignore[attr-defined]


@any_speed(100)
@given(
    waiting=st.integers(0, 1000),
    tokens=st.floats(0, 1e7),
    drain=st.floats(0, 1e5),
    target=st.floats(0.1, 100),
)
def test_a_refusal_says_when_to_come_back(waiting: int, tokens: float, drain: float, target: float) -> None:
    snapshot = cluster(instance(0), waiting=waiting, waiting_tokens=tokens, drain=drain)
    decision = decide(snapshot, target_s=target)
    assert decision == decide(snapshot, target_s=target)
    assert (decision.kind == "refuse") == (waiting >= 8 and decision.predicted_ttft > target)
    if decision.kind == "refuse":
        assert decision.retry_after == pytest.approx(decision.predicted_ttft - target)
        assert MODEL in decision.message


def test_policies_import_types_only() -> None:
    """Nothing of the control plane but types and other policies, and of the core only its errors."""
    folder = Path(inspect.getfile(KVCost)).parent
    seen = set()
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0
                seen.add(str(node.module))
            elif isinstance(node, ast.Import):
                seen |= {alias.name for alias in node.names}
    ours = {name for name in seen if name.startswith("sage_")}
    assert {n for n in ours if not n.startswith("sage_llm.policies")} == {
        "sage_infer.errors",
        "sage_llm.types",
    }
    assert seen - ours <= {"attrs", "xxhash", *sys.stdlib_module_names} | {"collections.abc"}
    assert not seen & {"time", "random", "asyncio", "os", "secrets"}

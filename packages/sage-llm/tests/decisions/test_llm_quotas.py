"""Quotas of tenants: ceilings are never exceeded, reserves are left free, and nobody waits for ever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_cluster import MODEL, any_speed, cluster, instance, request
from sage_infer.errors import InvalidRequest
from sage_llm.commands.tenants import quotas_of
from sage_llm.quotas import QuotaTable, TenantQuota, leaves_room

MANY = 4


def test_ceilings() -> None:
    table = QuotaTable(
        {"gold": TenantQuota(max_requests=2, max_kv_tokens=900), "*": TenantQuota(max_requests=1)}
    )
    for name in ("a", "b"):
        view = request(id=name, tenant="gold", prompt_tokens=100, max_tokens=300)
        assert table.admit(view) is None
        table.enters(view, 0.0)
        table.enters(view, 0.0)
    third = table.admit(request(id="c", tenant="gold", prompt_tokens=1))
    assert third is not None
    assert (third.reason, third.retry_after) == ("quota", 1.0)
    assert "'gold' has 2 open requests; its quota is 2" in third.message
    table.leaves("a", 8.0)
    table.leaves("a", 8.0)
    assert table.used("gold") == (1, 400)
    more = table.admit(request(id="c", tenant="gold", prompt_tokens=300, max_tokens=300))
    assert more is not None
    assert more.retry_after == pytest.approx(8.0 * 100 / 400)
    assert "uses KV for 400 tokens, and the request needs 600 more" in more.message
    large = table.admit(request(id="d", tenant="gold", prompt_tokens=901))
    assert large is not None
    assert large.reason == "too_large"
    other = request(id="x", tenant="other")
    assert table.admit(other) is None
    table.enters(other, 0.0)
    refused = table.admit(request(id="y", tenant="other"))
    assert refused is not None
    assert refused.reason == "quota"


def test_reserves_are_left_free() -> None:
    table = QuotaTable({"gold": TenantQuota(reserved_requests=2, reserved_kv_tokens=400)})
    greedy = request(id="g", tenant="greedy", prompt_tokens=100, max_tokens=100)

    def fits(opened: int, reserved: int, view: object = greedy) -> bool:
        snapshot = cluster(
            instance(0, max_batch=MANY, open=opened, kv_total=10, kv_reserved=reserved, page=100)
        )
        return table.has_room(view, snapshot.groups[MODEL], snapshot.instances)  # type: ignore[arg-type]

    assert fits(1, 2)
    assert not fits(2, 2), "two places are reserved"
    assert not fits(1, 5), "400 tokens are reserved"
    assert fits(0, 9), "an idle model serves anybody"
    gold = request(id="r", tenant="gold", prompt_tokens=100, max_tokens=100)
    assert fits(3, 8, gold)
    table.enters(gold, 0.0)
    table.runs("r", runs=True)
    assert fits(2, 2), "one of the places is used by its owner"
    table.leaves("r", 1.0)
    assert not fits(2, 2)


@any_speed(100)
@given(st.data())
def test_no_tenant_exceeds_its_quota_and_reserves_hold(data: st.DataObject) -> None:
    """Any arrivals and ends: counts equal those of the open requests, and a tenant below its reserve finds a place."""
    names = ["a", "b", "c"]
    reserved = {"a": data.draw(st.integers(0, 1)), "b": data.draw(st.integers(0, 2))}
    ceiling = data.draw(st.integers(1, 5))
    quotas = {
        name: TenantQuota(reserved_requests=reserved[name], max_requests=ceiling) for name in ("a", "b")
    }
    table = QuotaTable({**quotas, "*": TenantQuota(max_requests=ceiling)})
    waiting: list[object] = []
    running: dict[str, str] = {}
    for number in range(data.draw(st.integers(1, 30))):
        view = request(id=str(number), tenant=data.draw(st.sampled_from(names)))
        decision = table.admit(view)
        if decision is None:
            table.enters(view, 0.0)
            waiting.append(view)
        else:
            assert table.used(view.tenant)[0] == ceiling
            assert decision.retry_after > 0
        assert all(table.used(name)[0] <= ceiling for name in names)
        snapshot = cluster(instance(0, max_batch=MANY, open=len(running)))
        group, views = snapshot.groups[MODEL], snapshot.instances
        if len(running) < MANY:
            for one in list(waiting):
                if table.has_room(one, group, views):  # type: ignore[arg-type]
                    assert table.has_room(one, group, views)  # type: ignore[arg-type]
                    table.runs(one.id, runs=True)  # type: ignore[attr-defined]
                    running[one.id] = one.tenant  # type: ignore[attr-defined]
                    waiting.remove(one)
                    break
            else:
                assert not waiting or running, "an idle model serves anybody"
        unmet = sum(max(n - list(running.values()).count(name), 0) for name, n in reserved.items())
        assert len(running) <= 1 or MANY - len(running) >= unmet
        if running and data.draw(st.booleans()):
            name = data.draw(st.sampled_from(sorted(running)))
            del running[name]
            table.leaves(name, 1.0)
    for one in waiting:
        table.leaves(one.id, 2.0)  # type: ignore[attr-defined]
    for name in running:
        table.leaves(name, 2.0)
    assert all(table.used(name) == (0, 0) for name in names)


def test_room_is_unknown_without_limits() -> None:
    snapshot = cluster(instance(0, open=3))
    assert leaves_room(request(), snapshot.groups[MODEL], snapshot.instances, places=9, kv_tokens=9)


@pytest.mark.parametrize(
    ("tenants", "wanted"),
    [
        ({"gold": 3}, "llm.tenants.gold must be a mapping"),
        ({"gold": {"max_request": 3}}, "no key 'max_request'; did you mean 'max_requests'"),
        ({"gold": {"weight": 0}}, "llm.tenants.gold.weight must be a number above 0"),
        ({"gold": {"max_requests": -1}}, "must be a whole number, at least 0, got -1"),
        ({"*": {"reserved_requests": 1}}, "can only have max_requests and max_kv_tokens"),
    ],
)
def test_errors_of_the_configuration_name_the_key(tenants: dict[str, object], wanted: str) -> None:
    with pytest.raises(InvalidRequest, match=wanted.replace("*", r"\*")):
        quotas_of(tenants)


def test_quotas_of_the_configuration() -> None:
    found = quotas_of({"gold": {"weight": 2.5, "max_kv_tokens": 10}, "*": {"max_requests": 3}})
    assert found == {"gold": TenantQuota(weight=2.5, max_kv_tokens=10), "*": TenantQuota(max_requests=3)}

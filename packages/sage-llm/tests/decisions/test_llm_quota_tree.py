"""The tree of KV quotas: ceilings hold, reserves are lent and return, and nobody within a reserve is paused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_cluster import MODEL, any_speed, cluster, instance, request
from sage_infer.errors import InvalidRequest
from sage_llm.commands.quotas import kv_quotas_of
from sage_llm.policies.preempt import RunningView
from sage_llm.policies.take_back import borrowers
from sage_llm.quota_tree import KVQuota, QuotaTree
from sage_llm.types import RequestView

PAGE = 10


def asks(name: str, tenant: str, tokens: int, service_class: str = "", **changes: Any) -> RequestView:
    return request(
        id=name, tenant=tenant, prompt_tokens=tokens, keys=(), service_class=service_class, **changes
    )


def why(tree: QuotaTree, view: RequestView, *, total: int, used: int, can_pause: bool = True) -> str:
    """Why a request is held back on an instance with so many tokens of KV."""
    snapshot = cluster(instance(0, page=PAGE, kv_total=total // PAGE, kv_reserved=used // PAGE, open=1))
    return tree.held(view, snapshot.groups[MODEL], snapshot.instances, can_pause=can_pause)


def test_a_ceiling_holds_at_each_level() -> None:
    model = KVQuota(ceiling=300, parts={"batch": KVQuota(ceiling=100)})
    tree = QuotaTree({"t": KVQuota(ceiling=400, parts={MODEL: model})})
    tree.runs(asks("a", "t", 100, "batch"))
    assert why(tree, asks("b", "t", 10, "batch"), total=1000, used=100) == "ceiling"
    assert why(tree, asks("b", "t", 200), total=1000, used=100) == ""
    assert why(tree, asks("b", "t", 210), total=1000, used=100) == "ceiling"
    tree.leaves("a")
    tree.leaves("a")
    assert why(tree, asks("b", "t", 100, "batch"), total=1000, used=0) == ""
    large = tree.admit(asks("c", "t", 101, "batch"))
    assert large is not None
    assert large.reason == "too_large"
    assert f"the quota of 't/{MODEL}/batch' is 100" in large.message
    assert tree.admit(asks("c", "t", 300)) is None
    assert tree.admit(asks("c", "other", 10**6)) is None


def test_each_tenant_without_a_quota_has_the_ceiling_of_all() -> None:
    tree = QuotaTree({"*": KVQuota(ceiling=100)})
    tree.runs(asks("a", "x", 100))
    assert why(tree, asks("b", "x", 10), total=1000, used=100) == "ceiling"
    assert why(tree, asks("b", "y", 100), total=1000, used=100) == ""


def test_a_reserve_is_lent_to_requests_that_can_be_paused() -> None:
    tree = QuotaTree({"gold": KVQuota(reserved=400), "mean": KVQuota(borrow=False)})
    tree.runs(asks("a", "x", 500))
    view = asks("b", "x", 200)
    assert why(tree, asks("b", "x", 100), total=1000, used=500, can_pause=False) == "", "not reserved"
    assert why(tree, view, total=1000, used=500) == ""
    assert why(tree, view, total=1000, used=500, can_pause=False) == "reserved"
    assert why(tree, asks("b", "mean", 200), total=1000, used=500) == "reserved"
    tree.waits(asks("g", "gold", 300))
    assert why(tree, view, total=1000, used=500) == "reserved", "its owner waits"
    assert why(tree, asks("g", "gold", 300), total=1000, used=500, can_pause=False) == ""
    tree.leaves("g")
    tree.waits(asks("h", "gold", 500))
    assert why(tree, view, total=1000, used=500) == "", "the request of its owner is larger than the reserve"


def test_a_model_that_serves_nobody_serves_anybody() -> None:
    tree = QuotaTree({"gold": KVQuota(reserved=10**6)})
    snapshot = cluster(instance(0, page=PAGE, kv_total=100))
    view = asks("b", "x", 200)
    assert not tree.held(view, snapshot.groups[MODEL], snapshot.instances, can_pause=False)
    unknown = cluster(instance(0, open=3))
    assert not tree.held(view, unknown.groups[MODEL], unknown.instances, can_pause=False), "KV is unknown"


def test_reserves_of_classes_are_within_that_of_the_tenant() -> None:
    model = KVQuota(parts={"interactive": KVQuota(reserved=60)})
    tree = QuotaTree({"gold": KVQuota(reserved=100, parts={MODEL: model, "other": KVQuota(reserved=20)})})
    assert tree.is_entitled(asks("a", "gold", 80, "interactive"))
    assert not tree.is_entitled(asks("a", "gold", 90, "interactive")), "20 are for the other model"
    assert tree.is_entitled(asks("a", "gold", 20)), "60 are for the class interactive"
    assert not tree.is_entitled(asks("a", "gold", 30))
    tree.runs(asks("a", "gold", 20))
    assert not tree.is_entitled(asks("b", "gold", 10))
    assert tree.is_entitled(asks("b", "gold", 60, "interactive"))
    assert not tree.is_entitled(asks("b", "x", 10))


def test_waiting_requests_use_the_reserve_on_arrival() -> None:
    tree = QuotaTree({"gold": KVQuota(reserved=100)})
    tree.waits(asks("a", "gold", 60))
    assert tree.is_entitled(asks("b", "gold", 60))
    assert not tree.is_entitled(asks("b", "gold", 60), on_arrival=True)
    assert [view.id for view in tree.first_entitled(MODEL)] == ["a"]
    assert list(tree.first_entitled("other")) == []


def test_the_fewest_borrowers_are_paused() -> None:
    """Two instances are full; of the second one, a single request suffices, and the tenant's own are spared."""
    tree = QuotaTree({"gold": KVQuota(reserved=600)})
    for name, tenant, tokens in (("a", "x", 100), ("b", "x", 100), ("c", "x", 200), ("own", "gold", 200)):
        tree.runs(asks(name, tenant, tokens))
    running = [
        RunningView("a", 0, 2, 1.0, 10), RunningView("b", 0, 2, 2.0, 10),
        RunningView("own", 1, 2, 9.0, 20), RunningView("c", 1, 0, 3.0, 20),
    ]  # fmt: skip
    views = [instance(slot, page=PAGE, kv_total=40, kv_reserved=40, open=2) for slot in (0, 1)]
    waiting = asks("g", "gold", 200)

    def paused(*changed: Any) -> tuple[str, ...]:
        views_now = changed or views
        return borrowers(waiting, running, cluster(*views_now), lambda names: tree.to_pause(waiting, names))

    assert paused() == ("c",)
    assert paused(views[0]) == ("b", "a"), "the latest first"
    assert paused(views[0], instance(1, page=PAGE, kv_total=40, kv_reserved=20, open=1)) == (), "it has room"
    assert paused(instance(0, page=PAGE, kv_total=40, kv_reserved=40, queued_tokens=1e6)) == ()


@any_speed(150)
@given(st.data())
def test_reserves_return_and_ceilings_hold(data: st.DataObject) -> None:
    """Any tree, arrivals and ends on one instance: see the assertions."""
    total = 400
    tenants, classes = ["a", "b", "c"], ["", "batch"]
    reserves = {"a": data.draw(st.integers(0, 20)) * 10, "b": data.draw(st.integers(0, 20)) * 10}
    of_class = data.draw(st.integers(0, reserves["b"] // 10)) * 10
    ceiling = data.draw(st.sampled_from([0, 100, 200]))
    tree = QuotaTree(
        {
            "a": KVQuota(reserved=reserves["a"]),
            "b": KVQuota(
                reserved=reserves["b"],
                parts={MODEL: KVQuota(parts={"batch": KVQuota(reserved=of_class)})},
            ),
            "*": KVQuota(ceiling=ceiling),
        }
    )
    waiting: dict[str, RequestView] = {}
    running: dict[str, RequestView] = {}
    pausable: set[str] = set()

    def used(tenant: str | None = None) -> int:
        return sum(v.prompt_tokens for v in running.values() if tenant in (None, v.tenant))

    def dispatch(view: RequestView) -> None:
        tree.runs(view)
        running[view.id] = waiting.pop(view.id)

    for number in range(data.draw(st.integers(1, 25))):
        view = asks(
            str(number), data.draw(st.sampled_from(tenants)), data.draw(st.integers(1, 10)) * 10,
            data.draw(st.sampled_from(classes)),
        )  # fmt: skip
        if data.draw(st.booleans()):
            pausable.add(view.id)
        tree.waits(view)
        waiting[view.id] = view
        for one in list(waiting.values()):
            held = why(tree, one, total=total, used=used(), can_pause=one.id in pausable)
            if running and not held and used() + one.prompt_tokens <= total:
                dispatch(one)
        if not running:
            dispatch(view)
        for owner in list(tree.first_entitled(MODEL)):
            names = list(tree.to_pause(owner, [name for name in reversed(running) if name in pausable]))
            before = {tenant: used(tenant) for tenant in reserves}
            for name in names:
                tree.leaves(name)
                waiting[name] = running.pop(name)
            for tenant, reserve in reserves.items():
                if before[tenant] <= reserve - of_class:
                    assert used(tenant) == before[tenant], "a request within its reserve was paused"
            if set(running) <= pausable:
                assert used() + owner.prompt_tokens <= total, "the reserve did not return"
            for name in names:
                tree.waits(waiting[name])
            if used() + owner.prompt_tokens <= total:
                dispatch(owner)
        if ceiling and len(running) > 1:
            assert used("c") <= max(ceiling, max(v.prompt_tokens for v in running.values()))
        assert sum(row["used"] for path, row in tree.report().items() if "/" not in path) == used()
        if running and data.draw(st.booleans()):
            name = data.draw(st.sampled_from(sorted(running)))
            tree.leaves(name)
            del running[name]
    for name in [*running, *waiting]:
        tree.leaves(name)
    assert all(row["used"] == row["waiting"] == 0 for row in tree.report().values())
    assert not tree.waiting_models()


@pytest.mark.parametrize(
    ("quotas", "wanted"),
    [
        ({"gold": 3}, "llm.quotas.gold must be a mapping with the keys reserved, ceiling, borrow, models"),
        ({"gold": {"reserve": 3}}, "no key 'reserve'; did you mean 'reserved'"),
        ({"gold": {"models": {"m": {"models": {}}}}}, "llm.quotas.gold.models.m has no key 'models'"),
        ({"gold": {"models": 3}}, "llm.quotas.gold.models must be a mapping of quotas by name"),
        ({"gold": {"ceiling": -1}}, "must be a whole number of tokens, at least 0, got -1"),
        ({"gold": {"borrow": 1}}, "llm.quotas.gold.borrow must be true or false"),
        ({"*": {"reserved": 1}}, "llm.quotas.* cannot reserve anything"),
        ({"gold": {"reserved": 9, "ceiling": 8}}, "llm.quotas.gold.reserved is 9, more than"),
        (
            {"gold": {"ceiling": 8, "models": {"m": {"classes": {"batch": {"reserved": 9}}}}}},
            "the sum of the reserves below llm.quotas.gold is 9, more than llm.quotas.gold.ceiling, 8",
        ),
    ],
)
def test_errors_of_the_configuration_name_the_key(quotas: dict[str, object], wanted: str) -> None:
    with pytest.raises(InvalidRequest, match=wanted.replace("*", r"\*")):
        kv_quotas_of(quotas)


def test_quotas_of_the_configuration() -> None:
    found = kv_quotas_of(
        {"gold": {"reserved": 8, "models": {"m": {"borrow": False, "classes": {"batch": {"ceiling": 2}}}}}}
    )
    batch = KVQuota(ceiling=2)
    assert found == {"gold": KVQuota(reserved=8, parts={"m": KVQuota(borrow=False, parts={"batch": batch})})}
    assert QuotaTree(found).quota(("gold", "m", "batch")) == batch
    assert QuotaTree(found).quota(("x", "m", "batch")) == KVQuota()

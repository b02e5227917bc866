"""Orders, the waiting queue and tenants: bands with ageing, fair shares, no starvation, exactly one end each."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_cluster import MODEL, any_speed, cluster, instance, request
from sage_llm.policies import POLICIES, order
from sage_llm.queue import WaitingQueue
from sage_llm.tenants import TenantTable
from sage_llm.types import Decision, RequestView, Snapshot

EMPTY = Snapshot(0.0)
IDLE = cluster(instance(0))


def go(view: RequestView) -> Decision:
    return Decision("dispatch", view.id, 0, uncached=view.prompt_tokens)


def stay(view: RequestView) -> Decision:
    return Decision("wait", view.id, 0)


def drained(queue: WaitingQueue, now: float) -> list[str]:
    found = []
    while (taken := queue.take(now, go)) is not None:
        found.append(taken[0].id)
    return found


def queue_of(name: str, *views: RequestView, snapshot: Snapshot = IDLE, **values: float) -> WaitingQueue:
    queue = WaitingQueue(order(name, **values), TenantTable())
    for view in views:
        queue.push(view, snapshot)
    return queue


def view(name: str, **changes: object) -> RequestView:
    return request(id=name, **{"arrived": 0.0, **changes})


def test_fifo_ignores_bands() -> None:
    queue = queue_of("fifo", view("b", arrived=2.0), view("a", arrived=1.0, band=5))
    assert drained(queue, 3.0) == ["a", "b"]


def test_priority_serves_small_bands_first_and_ages() -> None:
    late = [view("low", band=1, arrived=0.0), view("high", arrived=10.0)]
    assert drained(queue_of("priority", *late), 10.0) == ["high", "low"]
    assert drained(queue_of("priority", *late), 31.0) == ["low", "high"]
    assert drained(queue_of("priority", *late, ageing_s=60.0), 31.0) == ["high", "low"]


def test_slo_orders_by_the_latest_start() -> None:
    views = [
        view("none"),
        view("ttft", slo_ttft=2.0),
        view("deadline", deadline=1.9),
        view("short", prompt_tokens=100, keys=(), slo_ttft=2.0),
    ]
    assert drained(queue_of("slo", *views), 0.0) == ["deadline", "ttft", "short", "none"]


def test_shortest_uncached_knows_what_is_cached() -> None:
    cached = cluster(instance(0), kv=dict.fromkeys(range(1, 10), 1))
    views = [
        view("fresh", keys=(77,), prompt_tokens=400),
        view("cached"),
        view("tiny", keys=(), prompt_tokens=50),
    ]
    assert drained(queue_of("shortest-uncached", *views, snapshot=cached), 0.0) == ["tiny", "cached", "fresh"]
    waited = [view("old", prompt_tokens=3000, keys=()), view("new", prompt_tokens=100, keys=(), arrived=10.0)]
    assert drained(queue_of("shortest-uncached", *waited), 10.0) == ["old", "new"]


def test_balanced_lets_an_urgent_request_pass_short_ones() -> None:
    views = [
        view("short", prompt_tokens=100, keys=()),
        view("urgent", prompt_tokens=2000, slo_ttft=2.1, keys=()),
    ]
    assert drained(queue_of("balanced", *views), 0.0) == ["urgent", "short"]
    assert drained(
        queue_of("balanced", view("long", prompt_tokens=900), view("s", prompt_tokens=9)), 0.0
    ) == [
        "s",
        "long",
    ]


@pytest.mark.parametrize("name", POLICIES["order"])
def test_every_order_works_without_instances(name: str) -> None:
    assert drained(queue_of(name, view("a"), view("b", arrived=1.0), snapshot=EMPTY), 2.0) == ["a", "b"]


def test_tenants_share_in_proportion_to_their_weights() -> None:
    tenants = TenantTable({"gold": 3.0})
    queue = WaitingQueue(order("fair-share"), tenants)
    for n in range(40):
        queue.push(view(f"g{n}", tenant="gold", arrived=n * 0.01), EMPTY)
        queue.push(view(f"i{n}", tenant="iron", arrived=n * 0.01), EMPTY)
    first = [queue.take(1.0, go) for _ in range(40)]
    gold = sum(taken[0].tenant == "gold" for taken in first if taken is not None)
    assert gold == 30
    with pytest.raises(ValueError, match="'x'"):
        TenantTable({"x": 0.0})


def test_an_idle_tenant_saves_up_nothing() -> None:
    tenants = TenantTable()
    queue = WaitingQueue(order("fair-share"), tenants)
    for n in range(20):
        queue.push(view(f"a{n}", tenant="a"), EMPTY)
    for _ in range(10):
        queue.take(1.0, go)
    for n in range(20):
        queue.push(view(f"b{n}", tenant="b"), EMPTY)
    assert tenants.service("b") == tenants.service("a") > 0
    following = [taken[0].tenant for _ in range(10) if (taken := queue.take(1.0, go)) is not None]
    assert following.count("a") == 5


def test_an_idle_tenant_keeps_its_debt() -> None:
    tenants = TenantTable()
    tenants.queued("a")
    tenants.dispatched("a", 1000)
    tenants.ended("a", -200.0)
    assert dict(tenants) == {}
    tenants.queued("b")
    tenants.queued("a")
    assert (tenants.service("a"), tenants.service("b")) == (800, 0)
    assert (tenants["a"].queued, tenants["a"].open) == (1, 0)


def test_a_tenant_at_its_limit_waits_and_others_do_not() -> None:
    tenants = TenantTable(open_limits={"a": 1})
    queue = WaitingQueue(order("fair-share"), tenants)
    for name in ("a1", "a2", "b1"):
        queue.push(view(name, tenant=name[0]), EMPTY)
    assert drained(queue, 0.0) == ["a1", "b1"]
    tenants.ended("a")
    assert drained(queue, 0.0) == ["a2"]


def test_a_large_request_is_passed_only_for_a_while() -> None:
    queue = queue_of("fifo", view("large"), view("small", arrived=1.0))

    def place(wanted: RequestView) -> Decision:
        return stay(wanted) if wanted.id == "large" else go(wanted)

    taken = queue.take(2.0, place)
    assert taken is not None
    assert taken[0].id == "small"
    queue.push(view("next", arrived=3.0), IDLE)
    assert queue.take(30.0, place) is None
    assert drained(queue, 30.0) == ["large", "next"]


def test_a_request_that_can_go_nowhere_does_not_hold_up_others() -> None:
    queue = queue_of("fifo", view("stuck"), view("other", arrived=1.0))
    taken = queue.take(90.0, lambda v: Decision("wait", v.id) if v.id == "stuck" else go(v))
    assert taken is not None
    assert taken[0].id == "other"
    assert [v.id for v in queue] == ["stuck"]


def test_a_refused_request_leaves() -> None:
    queue = queue_of("balanced", view("a", tenant="t"))
    taken = queue.take(0.0, lambda v: Decision("refuse", v.id, reason="too_large"))
    assert taken is not None
    assert taken[1].kind == "refuse"
    assert len(queue) == 0
    assert "a" not in queue


def test_a_request_waits_only_once() -> None:
    queue = queue_of("fifo", view("a"))
    with pytest.raises(ValueError, match="'a'"):
        queue.push(view("a"), IDLE)
    assert "a" in queue
    assert queue.remove("a") == view("a")
    assert queue.remove("a") is None
    assert queue.take(0.0, go) is None
    queue.push(view("a"), IDLE)
    assert drained(queue, 0.0) == ["a"]


def test_cancelled_requests_take_no_memory() -> None:
    queue = queue_of("balanced")
    queue.push(view("kept", band=0), IDLE)
    for n in range(2000):
        queue.push(view(f"r{n}", arrived=float(n)), IDLE)
        queue.remove(f"r{n}")
    assert sum(len(lane.by_key) for lane in queue._lanes.values()) < 200
    assert drained(queue, 0.0) == ["kept"]


@any_speed(60)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 900)), min_size=3, max_size=60),
    st.sampled_from(["fair-share", "balanced"]),
)
def test_service_of_waiting_tenants_differs_by_two_requests_at_most(
    wanted: list[tuple[str, int]], name: str
) -> None:
    tenants = TenantTable()
    queue = WaitingQueue(order(name), tenants)
    for n, (tenant, tokens) in enumerate(wanted):
        queue.push(view(f"r{n}", tenant=tenant, prompt_tokens=tokens, keys=(), arrived=n * 0.1), IDLE)
    largest = max(tokens for _, tokens in wanted)
    while len(queue):
        waiting = {v.tenant for v in queue}
        services = [tenants.service(tenant) for tenant in waiting]
        assert max(services) - min(services) <= 2 * largest
        assert queue.take(10.0, go) is not None


@any_speed(60)
@given(data=st.data(), name=st.sampled_from(list(POLICIES["order"])))
def test_no_request_waits_for_ever(data: st.DataObject, name: str) -> None:
    """A request of the last band among endless new ones of the first: it is served within a bounded time.

    One request per second is served and one arrives. The bound: its band's ageing, then each tenant's turn.
    """
    queue = WaitingQueue(order(name, ageing_s=5.0), TenantTable())
    band = data.draw(st.integers(0, 3))
    tokens = data.draw(st.integers(1, 5000))
    queue.push(view("old", band=band, tenant="old", prompt_tokens=tokens, keys=()), IDLE)
    for now in range(400):
        size = data.draw(st.integers(1, 900)) if now < 20 else 100
        queue.push(view(f"n{now}", arrived=float(now), tenant="new", prompt_tokens=size, keys=()), IDLE)
        taken = queue.take(float(now), go)
        assert taken is not None
        if taken[0].id == "old":
            return
    raise AssertionError("the old request still waits")


@any_speed(60)
@given(data=st.data(), name=st.sampled_from(list(POLICIES["order"])))
def test_each_accepted_request_ends_exactly_once(data: st.DataObject, name: str) -> None:
    """A model of a queue before one instance with slots: arrivals, dispatches, ends, cancels and refusals."""
    tenants = TenantTable()
    queue = WaitingQueue(order(name), tenants)
    accepted: set[str] = set()
    running: dict[str, RequestView] = {}
    ended: list[str] = []
    now = 0.0

    def place(wanted: RequestView) -> Decision:
        if wanted.prompt_tokens > 800:
            return Decision("refuse", wanted.id, reason="too_large")
        return go(wanted) if len(running) < 3 else stay(wanted)

    for n in range(data.draw(st.integers(1, 40))):
        now += data.draw(st.floats(0, 20))
        action = data.draw(st.sampled_from(["arrive", "arrive", "arrive", "take", "end", "cancel"]))
        if action == "arrive":
            new = view(
                f"r{n}",
                arrived=now,
                band=data.draw(st.integers(-1, 2)),
                tenant=data.draw(st.sampled_from("ab")),
                prompt_tokens=data.draw(st.integers(1, 1000)),
                keys=(),
            )
            queue.push(new, IDLE)
            accepted.add(new.id)
        elif action == "take":
            taken = queue.take(now, place)
            if taken is not None and taken[1].kind == "refuse":
                ended.append(taken[0].id)
            elif taken is not None:
                assert taken[0].id not in running
                running[taken[0].id] = taken[0]
        elif action == "end" and running:
            done = running.pop(data.draw(st.sampled_from(sorted(running))))
            tenants.ended(done.tenant)
            ended.append(done.id)
        elif action == "cancel" and len(queue):
            gone = queue.remove(data.draw(st.sampled_from([v.id for v in queue])))
            assert gone is not None
            ended.append(gone.id)
        assert len(queue) + len(running) + len(ended) == len(accepted)
        assert sum(t.queued for t in tenants.values()) == len(queue)
        assert sum(t.open for t in tenants.values()) == len(running)
    while len(queue) or running:
        while (taken := queue.take(now, place)) is not None:
            if taken[1].kind == "refuse":
                ended.append(taken[0].id)
            else:
                running[taken[0].id] = taken[0]
        for done in running.values():
            tenants.ended(done.tenant)
            ended.append(done.id)
        running.clear()
    assert sorted(ended) == sorted(accepted)
    assert len(tenants) == 0


def test_an_order_is_computed_on_arrival() -> None:
    """The key does not depend on the time of the snapshot, so that it stays right while the request waits."""
    for name in POLICIES["order"]:
        policy, wanted = order(name), view("a", slo_ttft=1.0)
        later = attrs.evolve(IDLE, now=50.0)
        assert policy.key(wanted, IDLE) == policy.key(wanted, later)
        assert wanted.model == MODEL

"""The scaling policy: a function of views and memory, within its bounds, without changes and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_cluster import any_speed
from sage_llm.scaling.meter import WorkMeter, pools
from sage_llm.scaling.policy import TargetLoad
from sage_llm.scaling.types import PoolMemory, PoolView, ScaleMemory, ScalePlan, ScaleView
from sage_llm.types import InstanceView, Step

POLICY = TargetLoad(up_s=5, down_s=20, idle_s=30, smooth_s=5)


def replay(
    work: Callable[[int], float | tuple[float, float]],
    seconds: int,
    *,
    policy: TargetLoad = POLICY,
    has_prefill: bool = False,
    wait_s: Callable[[int], float] = lambda at: 0.0,
    start: int = 0,
    **changes: Any,
) -> list[tuple[int, ScalePlan]]:
    """Plans with a change, and their times, of a model whose replicas are ready immediately."""
    memory, found = ScaleMemory(PoolMemory(target=start)), []
    for at in range(seconds):
        prompts, output = work(at), 0.0
        if isinstance(prompts, tuple):
            prompts, output = prompts
        is_busy = prompts + output > 0
        whole, prefill = pools(
            (prompts, output),
            ready=memory.whole.target,
            prefill=memory.prefill.target if has_prefill else None,
            open_requests=int(is_busy),
            wait_s=wait_s(at),
        )
        view = ScaleView(
            **{"now": float(at), "whole": whole, "prefill": prefill, "least": 0, "most": 10, **changes}
        )
        plan = policy.plan(view, memory)
        assert plan == policy.plan(view, memory), "the same inputs yield the same plan"
        if plan.total != memory.whole.target + memory.prefill.target or plan.reason:
            assert plan.reason
            found.append((at, plan))
        memory = plan.memory
    return found


def totals(found: list[tuple[int, ScalePlan]]) -> list[int]:
    return [plan.total for _, plan in found]


def test_a_step_is_followed_and_a_night_ends_at_zero() -> None:
    found = replay(lambda at: 0.5 if at < 60 else 4.0 if at < 300 else 0.0, 500)
    assert totals(found) == [1, 5, 6, 4, 0]
    first, night = found[0], found[-1]
    assert (first[0], first[1].reason) == (0, "a request waits and no replica runs")
    assert "above 0.85" in found[1][1].reason
    assert night[0] == 299 + 30
    assert night[1].reason == "no request for 30 s"


def test_a_slow_rise_is_foreseen() -> None:
    """With a long start, replicas are added at less work than with a short one."""
    rises = [replay(lambda at: at / 100, 400, start_s=start_s) for start_s in (0.0, 60.0)]
    at_two = [next(at for at, plan in rise if plan.total == 2) for rise in rises]
    assert at_two[1] < at_two[0] - 5


def test_waiting_requests_add_a_replica_whatever_the_load_is() -> None:
    found = replay(lambda at: 0.3, 12, wait_s=lambda at: 3.0 if at >= 2 else 0.0)
    assert totals(found) == [1, 2]
    assert "wait 3 s for their first token, more than 2 s" in found[1][1].reason
    assert found[1][0] == 7
    # A queue that is getting shorter adds none.
    assert totals(replay(lambda at: 0.3, 60, wait_s=lambda at: max(30.0 - at, 0.0))) == [1]


def test_a_short_burst_adds_nothing() -> None:
    assert totals(replay(lambda at: 2.0 if 20 <= at < 22 else 0.2, 60)) == [1]


def test_a_replica_with_a_long_start_is_kept_longer() -> None:
    found = replay(lambda at: float(at < 10) * 0.3, 400, start_s=120.0)
    assert totals(found) == [1, 0]
    assert found[1][0] == 9 + 120


def test_starts_pause() -> None:
    assert totals(replay(lambda at: 4.0, 60, may_start=False)) == []


def test_prefill_and_decode_follow_their_work() -> None:
    found = replay(lambda at: (2.0, 1.0), 200, has_prefill=True, most=20)
    assert (found[-1][1].prefill, found[-1][1].whole) == (3, 2)
    # With fewer replicas than both want, the work divides them, and they are not exchanged for ever.
    capped = replay(lambda at: (4.0, 2.0), 400, has_prefill=True, most=6)
    assert (capped[-1][1].prefill, capped[-1][1].whole) == (4, 2)
    assert capped[-1][0] < 100
    assert all(plan.total <= 6 for _, plan in capped)
    # One replica does both, and nothing computes prompts for nobody.
    assert {
        (plan.prefill, plan.whole) for _, plan in replay(lambda at: (4.0, 2.0), 50, has_prefill=True, most=1)
    } == {(0, 1)}
    night = replay(lambda at: (2.0, 1.0) if at < 100 else (0.0, 0.0), 300, has_prefill=True, most=20)
    assert (night[-1][1].prefill, night[-1][1].whole) == (0, 0)


def test_bounds_that_change_are_followed() -> None:
    low, high = (
        replay(lambda at: 0.0, 3, start=start, least=least, most=4) for start, least in ((6, 0), (0, 2))
    )
    assert totals(low) == [4]
    assert totals(high) == [2]
    assert "at least 2 and at most 4" in high[0][1].reason


VIEWS = st.builds(
    PoolView,
    ready=st.integers(0, 12),
    work=st.floats(-5, 50),
    open=st.integers(0, 5),
    wait_s=st.floats(0, 60),
)
POOLS = st.builds(
    PoolMemory,
    target=st.integers(0, 20),
    level=st.floats(-5, 50),
    trend=st.floats(-5, 5),
    at=st.none() | st.floats(0, 100),
    high_since=st.none() | st.floats(0, 100),
    wait_s=st.floats(0, 60),
    low_since=st.none() | st.floats(0, 100),
    most_level=st.floats(0, 50),
    busy_at=st.none() | st.floats(0, 100),
)


@given(
    views=st.lists(VIEWS, min_size=1, max_size=30),
    prefill=st.none() | VIEWS,
    least=st.integers(0, 6),
    more=st.integers(0, 6),
    memory=st.builds(ScaleMemory, POOLS, POOLS),
    may_start=st.booleans(),
)
@any_speed(300)
def test_never_outside_the_bounds(
    views: list[PoolView],
    prefill: PoolView | None,
    least: int,
    more: int,
    memory: ScaleMemory,
    may_start: bool,
) -> None:
    for number, whole in enumerate(views):
        view = ScaleView(100.0 + 7 * number, whole, prefill, least, max(least + more, 1), 10.0, may_start)
        plan = POLICY.plan(view, memory)
        assert plan == POLICY.plan(view, memory)
        assert view.least <= plan.total <= view.most
        assert plan.whole >= 0
        assert plan.prefill >= 0
        assert plan.prefill == 0 or plan.whole > 0
        assert (plan.memory.whole.target, plan.memory.prefill.target) == (plan.whole, plan.prefill)
        assert bool(plan.reason) == (
            (plan.whole, plan.prefill) != (memory.whole.target, memory.prefill.target)
        )
        memory = plan.memory


@given(
    work=st.floats(0.01, 12),
    before=st.floats(0, 12),
    target=st.floats(0.3, 0.9),
    start_s=st.floats(0, 120),
)
@any_speed(100)
def test_constant_work_does_not_flap(work: float, before: float, target: float, start_s: float) -> None:
    """After a step to a constant load, the number only rises, or only falls."""
    policy = attrs.evolve(POLICY, target=target, high=target + 0.1, low=target * 0.6)
    found = replay(
        lambda at: before if at < 50 else work, 400, policy=policy, start_s=start_s, most=50, start=1, least=1
    )
    after = [plan.total for at, plan in found if at >= 50 + policy.up_s + 1]  # not what was due before
    assert after in (sorted(after), sorted(after, reverse=True))
    changes = [at for at, _ in found]
    last = totals(found)[-1] if found else 1
    assert work / last <= policy.high * 1.01
    if len(changes) > 1 and totals(found)[-1] < totals(found)[-2]:
        assert changes[-1] - changes[-2] >= policy.down_s


def test_parameters_are_checked() -> None:
    with pytest.raises(ValueError, match="low, target and high must rise"):
        TargetLoad(low=0.9)
    with pytest.raises(ValueError, match="target"):
        TargetLoad(target=1.5, high=2.0)


def test_the_meter_counts_arriving_work() -> None:
    def view(slot: int, **changes: Any) -> InstanceView:
        return InstanceView(slot, f"m/{slot}", models=("m",), **{"rate": 1000.0, "max_batch": 10, **changes})

    meter = WorkMeter()
    assert meter.measure(0.0, [view(0)], {0: 500}, 0.0) == (0.0, 0.0)
    # 1,000 computed and 1,000 more in the queues, in two seconds of a replica with 1,000 tokens per second
    assert meter.measure(2.0, [view(0, queued_tokens=400.0, running=5)], {0: 1500}, 600.0) == (1.0, 0.5)
    # The queue shrinks by what is computed; a restarted replica counts from zero.
    assert meter.measure(4.0, [view(0)], {1: 1000}, 0.0) == (0.0, 0.0)
    # The largest of batch, KV and TPOT counts, of each replica that generates.
    busy = view(0, running=4, kv_total=100, kv_reserved=90)
    slow = view(1, running=1, tpot_limit=0.05, step=Step(0.1))
    prefill = view(2, role="prefill", running=9, rate=2000.0)
    assert meter.measure(5.0, [busy, slow, prefill], {1: 2000}, 0.0) == (
        pytest.approx(0.5),
        pytest.approx(2.9),
    )
    assert WorkMeter(2).measure(0.0, [view(0, running=4)], {}, 0.0)[1] == 2.0
    # Without replicas the last rate counts.
    assert meter.measure(6.0, [], {}, 4000.0) == (2.0, 0.0)

"""Preemption: only for a request that would be late, of the fewest requests of larger bands, and only for room."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from llm_cluster import any_speed, cluster, instance, request
from sage_llm.policies.base import blocks_needed
from sage_llm.policies.preempt import RunningView, victims

URGENT = {"slo_ttft": 2.0, "arrived": 99.0, "keys": (), "prompt_tokens": 100, "max_tokens": 100}


def running(name: str, slot: int = 0, band: int = 2, since: float = 1.0, blocks: int = 10) -> RunningView:
    return RunningView(name, slot, band, since, blocks)


def test_the_latest_request_of_the_largest_band_gives_way() -> None:
    snapshot = cluster(instance(0, max_batch=4, open=4, decode_rate=10.0, running=4), now=100.0)
    several = [running("old", since=1.0), running("new", since=5.0), running("urgent", band=0, since=9.0)]
    assert victims(request(**URGENT), several, snapshot, 50.0) == ("new",)
    assert victims(request(**URGENT), [*several, running("low", band=3)], snapshot, 50.0) == ("low",)
    assert victims(request(**URGENT), several[2:], snapshot, 50.0) == ()
    assert victims(request(**{**URGENT, "slo_ttft": None}), several, snapshot, 50.0) == ()
    assert victims(request(**{**URGENT, "band": 2}), several, snapshot, 50.0) == ()


def test_nothing_is_paused_if_a_place_is_free_in_time() -> None:
    snapshot = cluster(instance(0, max_batch=4, open=4, decode_rate=10.0, running=4), now=100.0)
    assert victims(request(**URGENT), [running("a")], snapshot, 2.0) == ()  # 0.8 s
    assert victims(request(**URGENT), [running("a")], snapshot, 3.0) == ("a",)  # 1.2 s
    unknown = cluster(instance(0, max_batch=4, open=4), now=100.0)
    assert victims(request(**URGENT), [running("a")], unknown, 1.0) == ()
    assert victims(request(**{**URGENT, "arrived": 98.9}), [running("a")], unknown, 1.0) == ("a",)
    free = cluster(instance(0, max_batch=4, open=3), now=200.0)
    assert victims(request(**URGENT), [running("a")], free, 99.0) == ()


def test_the_instance_with_the_fewest_victims_is_chosen() -> None:
    views = [
        instance(slot, max_batch=8, open=2, kv_total=20, kv_reserved=20, page=10, decode_rate=1.0)
        for slot in (0, 1)
    ]
    several = [running("a", 0), running("b", 0), running("c", 1, blocks=20), running("d", 2, blocks=99)]
    assert victims(request(**URGENT), several, cluster(*views, now=100.0), 99.0) == ("c",)
    assert victims(request(**URGENT), several[:2], cluster(*views, now=100.0), 99.0) == ("a", "b")
    assert victims(request(**URGENT), several[:1], cluster(*views, now=100.0), 99.0) == ()


@any_speed(150)
@given(st.data())
def test_victims_are_few_and_make_room(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 3))
    total = data.draw(st.integers(20, 60))
    views, several = [], []
    for slot in range(count):
        own = [
            running(f"{slot}-{n}", slot, data.draw(st.integers(0, 3)), float(n), data.draw(st.integers(1, 8)))
            for n in range(data.draw(st.integers(0, 6)))
        ]
        reserved = min(sum(one.blocks for one in own) + data.draw(st.integers(0, 5)), total)
        views.append(
            instance(
                slot, max_batch=data.draw(st.integers(1, 6)), open=len(own), kv_total=total, kv_reserved=reserved,
                page=10, decode_rate=data.draw(st.sampled_from([0.0, 1.0, 1e9])),
            )
        )  # fmt: skip
        several += own
    wanted = request(
        **{**URGENT, "band": data.draw(st.integers(0, 3)), "arrived": data.draw(st.floats(90, 100))}
    )
    snapshot = cluster(*views, now=100.0)
    chosen = victims(wanted, several, snapshot, 50.0)
    assert chosen == victims(wanted, several[::-1], snapshot, 50.0), "the order of the table must not matter"
    if not chosen:
        return
    paused = [one for one in several if one.id in chosen]
    (slot,) = {one.slot for one in paused}
    view = views[slot]
    assert all(one.band > wanted.band for one in paused)

    def fits(out: list[RunningView]) -> bool:
        blocks = view.kv_total - view.kv_reserved + sum(one.blocks for one in out)
        return view.open - len(out) < view.max_batch and blocks >= blocks_needed(wanted, view)

    assert fits(paused)
    last = chosen[-1]
    assert not fits([one for one in paused if one.id != last])

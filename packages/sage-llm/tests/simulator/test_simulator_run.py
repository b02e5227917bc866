"""Runs of the simulator: conservation, determinism, bounds, and what is known of the policies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_cluster import any_speed
from sage_infer.errors import InvalidRequest
from sage_llm.policies import POLICIES, order, placement
from sage_llm.simulator import Cluster, EngineModel, Result, Trace, open_trace, simulate
from sage_llm.simulator.bounds import bounds_of
from sage_llm.simulator.cache import BlockCache
from sage_llm.simulator.schemas import Row
from sage_llm.types import Step

DATA = Path(__file__).resolve().parents[1] / "data"
BLOCK = 16


def trace_of(*rows: Row) -> Trace:
    return Trace.of("rows", BLOCK, lambda: iter(rows))


def run(trace: Trace, policy: str = "kv-cost", **cluster: object) -> Result:
    return simulate(trace, Cluster(**cluster), placement(policy), order())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def mooncake() -> Trace:
    return open_trace(DATA / "mooncake_200.jsonl")


@st.composite
def rows(draw: st.DrawFn) -> Sequence[Row]:
    found = []
    for _ in range(draw(st.integers(1, 25))):
        prompt = draw(st.integers(1, 30 * BLOCK))
        family, own = draw(st.integers(0, 2)), draw(st.integers(0, 10))
        full = prompt // BLOCK
        keys = tuple(family * 100 + n if n < own else 1000 + len(found) * 100 + n for n in range(full))
        found.append(Row(draw(st.integers(0, 5)) / 10, prompt, draw(st.integers(1, 60)), keys))
    return sorted(found, key=lambda row: row.at)


@any_speed(40)
@given(
    rows=rows(),
    instances=st.integers(1, 4),
    blocks=st.integers(8, 80),
    policy=st.sampled_from(sorted(POLICIES["placement"])),
    routers=st.integers(1, 3),
    report_delay_s=st.sampled_from([0.0, 0.05, 1.0]),
    lower=st.sampled_from([(), (40,), (20, 60)]),
    prefetch=st.booleans(),
    per_host=st.integers(1, 4),
    contention=st.sampled_from([0.0, 0.7]),
)
def test_every_request_ends_once_and_blocks_are_never_exceeded(
    rows: Sequence[Row], instances: int, blocks: int, policy: str, routers: int, report_delay_s: float,
    lower: tuple[int, ...], prefetch: bool, per_host: int, contention: float,
) -> None:  # fmt: skip
    trace = trace_of(*rows)
    model = EngineModel(
        blocks=blocks, chunk=64, lower=lower, lower_rates=(8000.0, 4000.0)[: len(lower)], prefetch=prefetch
    )
    settings = {
        "instances": instances, "model": model, "routers": routers, "report_delay_s": report_delay_s,
        "per_host": per_host, "contention": contention,
    }  # fmt: skip
    with watched(blocks):
        first = run(trace, policy, **settings)
    assert first.finished + first.refused == len(rows)
    assert first.refused == sum(1 for r in rows if r.prompt_tokens + r.output_tokens > blocks * BLOCK)
    assert first.moved == 0
    assert first.hit + first.lower <= bounds_of(trace, 10**6).unlimited + 1e-9
    again = run(trace, policy, **settings)
    assert attrs.evolve(again, cpu_s=0.0) == attrs.evolve(first, cpu_s=0.0)


class watched:
    """Checks the blocks of every instance whenever a request begins or ends."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> None:
        for name in ("begin", "end"):
            self._patch.setattr(BlockCache, name, self._checked(getattr(BlockCache, name)))

    def _checked(self, call):  # type: ignore[no-untyped-def]
        def checked(cache: BlockCache, *args: object) -> None:
            call(cache, *args)
            assert 0 <= cache.used <= cache.used + cache.cached <= self._capacity

        return checked

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


def test_one_request_takes_what_the_model_of_a_step_says() -> None:
    model = EngineModel(step=Step(0.01, 0.001, 0.002, 0.0001), chunk=100)
    result = run(trace_of(Row(0.0, 150, 3)), instances=1, model=model)
    assert result.ttft_s is not None
    assert result.tpot_s is not None
    assert result.ttft_s.mean == pytest.approx(0.01 + 0.1 + 0.01 + 0.05)
    # two steps of one sequence, whose context grows from 151 tokens on
    assert result.tpot_s.mean == pytest.approx(0.01 + 0.002 + 0.0001 * 152)
    assert result.seconds == pytest.approx(0.17 + 2 * 0.0272)
    assert (result.finished, result.saved, result.balance) == (1, 0.0, 1.0)


def test_a_repeated_prompt_is_found() -> None:
    keys = tuple(range(10))
    twice = trace_of(Row(0.0, 10 * BLOCK, 1, keys), Row(5.0, 10 * BLOCK + 4, 1, keys))
    result = run(twice, instances=2)
    assert result.hit == pytest.approx(10 / 21)
    assert result.saved == pytest.approx(10 * BLOCK / (20 * BLOCK + 4))


def test_prompts_beside_outputs_are_computed_in_parts() -> None:
    step = Step(0.01, 0.001, 0.002, 0.0)
    rows = (Row(0.0, 16, 100), Row(0.1, 400, 1))
    whole = run(trace_of(*rows), instances=1, model=EngineModel(step=step, chunk=512))
    parts = run(trace_of(*rows), instances=1, model=EngineModel(step=step, chunk=512, slowdown=3.0))
    assert whole.ttft_s is not None
    assert parts.ttft_s is not None
    assert whole.ttft_s.max == pytest.approx(0.01 + 0.4 + 0.002, abs=0.012)  # and the step under way
    steps = 17  # 24 tokens each, which take twice as long as a step of the sequence
    assert parts.ttft_s.max == pytest.approx(steps * (0.01 + 0.002) + 0.4, abs=0.012)
    together = run(trace_of(*[Row(0.0, 200, 5)] * 2), instances=1, model=EngineModel(step=step, slowdown=3.0))
    assert together.ttft_s is not None
    assert together.ttft_s.max == pytest.approx(0.21 + 0.212)  # a burst is not divided


def test_running_streams_slow_each_other_down() -> None:
    model = EngineModel(step=Step(0.01, 0.0001, 0.01, 0.0), chunk=512)
    alone = run(trace_of(Row(0.0, 16, 50)), instances=1, model=model)
    together = run(trace_of(*[Row(0.0, 16, 50)] * 10), instances=1, model=model)
    assert alone.tpot_s is not None
    assert together.tpot_s is not None
    assert alone.tpot_s.mean == pytest.approx(0.02)
    assert together.tpot_s.mean > 0.09


def test_instances_of_a_host_slow_each_other() -> None:
    model = EngineModel(step=Step(0.0, 0.001, 0.0, 0.0), chunk=2000)
    two = trace_of(Row(0.0, 1000, 1), Row(0.5, 1000, 1))

    def first_tokens(**cluster: object) -> list[float]:
        found = run(two, "round-robin", instances=2, model=model, **cluster)
        assert found.ttft_s is not None
        return [found.ttft_s.mean, found.seconds]

    assert first_tokens() == pytest.approx([1.0, 1.5])
    assert first_tokens(contention=1.0) == pytest.approx([1.0, 1.5])  # each has a host of its own
    # Half of the first step takes a second beside the other one, whose second half is computed alone.
    assert first_tokens(contention=1.0, per_host=2) == pytest.approx([1.5, 2.0])


def test_streams_on_instances_of_a_host_slow_each_other() -> None:
    model = EngineModel(step=Step(0.01, 1e-6, 0.0, 0.0))
    long_and_short = trace_of(Row(0.0, 16, 101), Row(0.5, 16, 26))
    found = run(long_and_short, "round-robin", instances=2, model=model, contention=1.0, per_host=2)
    # 50 of 101 steps until 0.5 s, then 26 steps of each in 0.52 s, then 25 steps.
    assert found.seconds == pytest.approx(0.5 + 0.52 + 0.25, abs=0.03)
    assert found.output_tokens_per_s * found.seconds == pytest.approx(127)


def test_policies_differ_as_they_are_known_to(mooncake: Trace) -> None:
    settings = {"instances": 4, "load": 0.9, "model": EngineModel(blocks=2000)}
    turns, cost = run(mooncake, "round-robin", **settings), run(mooncake, "kv-cost", **settings)
    first = run(mooncake, "kv-cost:alpha=1e6", **settings)
    bounds = bounds_of(mooncake, 8000)
    assert turns.hit < cost.hit <= bounds.belady <= bounds.unlimited
    assert first.balance > cost.balance


def test_load_scales_the_times(mooncake: Trace) -> None:
    results = [run(mooncake, instances=4, load=load) for load in (0.2, 0.8, 3.0)]
    speeds = [result.speed_up for result in results]
    assert speeds[1] == pytest.approx(4 * speeds[0])
    times = [result.ttft_s.mean for result in results if result.ttft_s is not None]
    assert times == sorted(times)
    simultaneous = trace_of(Row(0.0, 9, 1), Row(0.0, 9, 1))
    with pytest.raises(InvalidRequest, match="cannot be scaled to a load"):
        run(simultaneous, load=0.5)


def test_bounds_of_a_cache_that_knows_the_future() -> None:
    uses = ["ab", "cd", "ab", "cd", "ab"]
    trace = trace_of(*(Row(float(n), 2 * BLOCK, 1, tuple(map(ord, keys))) for n, keys in enumerate(uses)))
    assert bounds_of(trace, 4).unlimited == pytest.approx(6 / 10)
    assert bounds_of(trace, 4).belady == pytest.approx(6 / 10)
    assert bounds_of(trace, 2).belady == pytest.approx(4 / 10)  # LRU would find nothing


def test_requests_of_a_large_cluster_are_not_forgotten() -> None:
    rows = [Row(n / 1000, 40 * BLOCK, 20) for n in range(400)]
    result = run(trace_of(*rows), instances=65, model=EngineModel(blocks=50, chunk=64))
    assert result.finished == 400
    assert max(result.series.waiting) > 0

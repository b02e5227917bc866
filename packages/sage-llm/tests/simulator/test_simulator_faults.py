"""Crashes, stalls, several gateways, late reports and lower tiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_cluster import any_speed
from sage_infer.errors import InvalidRequest
from sage_llm.policies import order, placement
from sage_llm.simulator import Cluster, EngineModel, Result, Trace, simulate
from sage_llm.simulator.faults import Fault, parse_crash, parse_stall
from sage_llm.simulator.schemas import Row
from sage_llm.simulator.workload import synthetic

BLOCK = 16
SMALL = EngineModel(blocks=400, chunk=256)


def trace_of(*rows: Row) -> Trace:
    return Trace.of("rows", BLOCK, lambda: iter(rows))


def run(trace: Trace, policy: str = "kv-cost", **cluster: Any) -> Result:
    return simulate(trace, Cluster(**{"model": SMALL, **cluster}), placement(policy), order())


@any_speed(25)
@given(
    faults=st.lists(
        st.builds(
            Fault,
            slot=st.integers(0, 2),
            at=st.floats(0, 3),
            seconds=st.floats(0.05, 4),
            is_crash=st.booleans(),
        ),
        max_size=5,
    ),
    instances=st.integers(1, 3),
    routers=st.integers(1, 2),
    outputs=st.lists(st.integers(1, 100), min_size=1, max_size=10),
)
def test_requests_survive_faults_and_end_once(
    faults: Sequence[Fault], instances: int, routers: int, outputs: Sequence[int]
) -> None:
    trace = trace_of(*(Row(n / 10, 40 + n, tokens, (1, 2)) for n, tokens in enumerate(outputs)))
    chosen = tuple(fault for fault in faults if fault.slot < instances)
    settings = {"instances": instances, "routers": routers, "faults": chosen}
    result = run(trace, **settings)
    assert (result.finished, result.refused) == (len(outputs), 0)
    assert attrs.evolve(run(trace, **settings), cpu_s=0.0) == attrs.evolve(result, cpu_s=0.0)


def test_a_crash_moves_its_requests_and_they_continue() -> None:
    trace = trace_of(Row(0.0, 100, 400))
    calm = run(trace, instances=2)
    crashed = run(trace, instances=2, faults=(Fault(0, 1.0, 30.0, is_crash=True),))
    assert (calm.moved, crashed.moved, crashed.finished) == (0, 1, 1)
    assert crashed.ttft_s == calm.ttft_s  # it had its first token before
    assert (
        calm.seconds < crashed.seconds < calm.seconds + 0.1
    )  # only its prompt and output so far are computed again


def test_a_restarted_instance_serves_again() -> None:
    rows = [Row(float(n), 100, 5) for n in range(20)]
    result = run(trace_of(*rows), instances=1, faults=(Fault(0, 2.5, 5.0, is_crash=True),))
    assert result.finished == 20
    assert result.ttft_s is not None
    assert 4.0 < result.ttft_s.max < 5.0


def test_a_long_stall_moves_requests_and_a_short_one_does_not() -> None:
    trace = trace_of(Row(0.0, 100, 400))
    short = run(trace, instances=2, faults=(Fault(0, 1.0, 0.5, is_crash=False),))
    long = run(trace, instances=2, faults=(Fault(0, 1.0, 60.0, is_crash=False),))
    calm = run(trace, instances=2)
    assert (short.moved, long.moved) == (0, 1)
    assert short.seconds == pytest.approx(calm.seconds + 0.5, abs=0.05)
    assert long.seconds == pytest.approx(calm.seconds + 2.0, abs=0.1)  # after which it is given up


def test_old_reports_cost_hits() -> None:
    trace = synthetic("sessions:requests=200,rate=8,turns=6,gap_s=5,block=128", 3)
    assert trace is not None
    settings = {"instances": 6, "load": 0.9, "model": EngineModel(blocks=190, chunk=512)}
    fresh = run(trace, **settings)
    late = run(trace, routers=4, report_delay_s=20.0, **settings)
    assert (fresh.finished, late.finished) == (200, 200)
    assert late.hit < fresh.hit


def test_lower_tiers_save_what_device_memory_loses() -> None:
    trace = synthetic("sessions:requests=200,rate=4,turns=8,gap_s=20,block=128", 5)
    assert trace is not None

    def with_tiers(*lower: int, **changes: Any) -> Result:
        model = EngineModel(
            blocks=200, chunk=512, lower=lower, lower_rates=(80_000.0, 26_000.0)[: len(lower)], **changes
        )
        return run(trace, instances=2, load=0.5, model=model)

    none, memory, disk = with_tiers(), with_tiers(300), with_tiers(300, 2500)
    assert none.lower == 0.0 < memory.lower < disk.lower
    assert none.saved < memory.saved < disk.saved
    early = with_tiers(300, 2500, prefetch=True)
    assert early.ttft_s is not None
    assert disk.ttft_s is not None
    assert early.ttft_s.mean < disk.ttft_s.mean


def test_faults_are_parsed() -> None:
    assert parse_crash("3@120", 8) == Fault(3, 120.0, 30.0, is_crash=True)
    assert parse_crash("0@1.5:4", 1) == Fault(0, 1.5, 4.0, is_crash=True)
    assert parse_stall("2@7:0.5", 3) == Fault(2, 7.0, 0.5, is_crash=False)
    for text in ("3", "x@1", "3@-1", "3@1:0", "3@1:x", "3@nan"):
        with pytest.raises(InvalidRequest, match=r"--crash must be SLOT@TIME\[:RESTART\]"):
            parse_crash(text, 8)
    with pytest.raises(InvalidRequest, match="--stall must be SLOT@TIME:SECONDS"):
        parse_stall("3@1", 8)
    with pytest.raises(InvalidRequest, match="there is no instance 8; instances are 0 to 7"):
        parse_crash("8@1", 8)

"""The policy ``pd``: which requests are split, and between which instances."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from llm_cluster import BLOCK, any_speed, cluster, instance, request, requests, snapshots
from sage_llm.policies import placement
from sage_llm.types import RequestView, Snapshot, Step

PREFILL, DECODE = 0, 1


def pair(**of_decode: object) -> Snapshot:
    """An idle prefill instance, and a decode instance."""
    decode = instance(DECODE, **{"role": "decode", "kv_token_bytes": 1e4, **of_decode})
    return cluster(instance(PREFILL, role="prefill"), decode)


def long(**changes: object) -> RequestView:
    return request(10, **{"may_split": True, "keys": (), **changes})


def placed(snapshot: Snapshot, wanted: RequestView, **parameters: object) -> tuple[int, int]:
    """The slots of prefill and decode."""
    decision = placement("pd", **parameters).place(wanted, snapshot)
    return decision.prefill_slot, decision.slot


def test_an_idle_cluster_splits_nothing() -> None:
    assert placed(pair(), long()) == (-1, DECODE)
    assert placed(pair(), long(), delay_s=1.0) == (PREFILL, DECODE)


@pytest.mark.parametrize("load", [{"running": 1, "open": 1}, {"queued_tokens": 500.0}])
def test_a_long_prompt_is_split_while_the_decode_instance_works(load: dict[str, object]) -> None:
    assert placed(pair(**load), long()) == (PREFILL, DECODE)


def test_what_stays() -> None:
    busy = {"running": 4, "open": 4}
    assert placed(pair(**busy), long(may_split=False)) == (-1, DECODE)
    assert placed(pair(**busy), long(prompt_tokens=511)) == (-1, DECODE)
    assert placed(pair(**busy), long(), stall=0.0) == (-1, DECODE), "streams may be delayed"
    assert placed(pair(**busy), long(), bandwidth=1e3) == (-1, DECODE), "a slow link"
    assert placed(pair(**busy), long(excluded=1 << PREFILL)) == (-1, DECODE)
    cached = attrs.evolve(pair(**busy), kv=dict.fromkeys(range(1, 10), 1 << DECODE))
    assert placed(cached, long(keys=tuple(range(1, 11)))) == (-1, DECODE), "9 of 10 blocks are cached"


def test_a_tpot_target_is_protected() -> None:
    view = {"running": 4, "open": 4, "tpot_limit": 0.05, "step": Step(0.02, 1e-4, 0.0, 0.0)}
    assert placed(pair(**view), long(), stall=0.0, bandwidth=1e3) == (PREFILL, DECODE)


def test_the_prefill_instance_with_the_prefix_is_chosen() -> None:
    views = [instance(slot, role="prefill") for slot in (0, 1)]
    decode = instance(2, role="decode", running=1, open=1)
    held = dict.fromkeys(range(1, 9), 1 << 1)
    snapshot = cluster(*views, decode, kv=held)
    decision = placement("pd").place(long(keys=tuple(range(1, 11))), snapshot)
    assert (decision.prefill_slot, decision.slot) == (1, 2)
    assert (decision.uncached, decision.reuse) == (2 * BLOCK, 8 * BLOCK)


def test_prefill_instances_serve_whole_requests_where_no_other_may() -> None:
    assert placed(pair(), long(excluded=1 << DECODE)) == (-1, PREFILL)


def test_a_full_prefill_instance_lets_the_request_wait() -> None:
    views = (
        instance(PREFILL, role="prefill", open=2, open_limit=2),
        instance(DECODE, role="decode", running=1, open=1),
    )
    decision = placement("pd", delay_s=100.0).place(long(), cluster(*views))
    assert (decision.kind, decision.prefill_slot) == ("wait", PREFILL)


@any_speed(100)
@given(snapshot=snapshots(), wanted=requests())
def test_both_instances_of_a_split_request_can_take_it(snapshot: Snapshot, wanted: RequestView) -> None:
    policy = placement("pd", min_tokens=0, delay_s=10.0)
    decision = policy.place(wanted, snapshot)
    assert decision == policy.place(wanted, snapshot)
    if decision.kind != "dispatch" or decision.prefill_slot < 0:
        return
    assert wanted.may_split
    prefill, decode = snapshot.instances[decision.prefill_slot], snapshot.instances[decision.slot]
    assert prefill is not None
    assert decode is not None
    assert prefill.role == "prefill" != decode.role
    for view in (prefill, decode):
        assert view.state in ("ready", "probation")
        assert not wanted.excluded >> view.slot & 1
        assert not view.open_limit or view.open < view.open_limit
    assert not decode.kv_total or decode.kv_reserved + decision.blocks <= decode.kv_total
    if prefill.kv_total:
        assert prefill.kv_reserved + -(-wanted.prompt_tokens // prefill.page) <= prefill.kv_total

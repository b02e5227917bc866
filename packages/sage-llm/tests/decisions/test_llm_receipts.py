"""Receipts: replay, bounds and what they show. Classifier: classes, turns and learned outputs."""

from __future__ import annotations

import json

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_cluster import any_speed, cluster, instance, request, requests, snapshots
from sage_llm.classifier import RequestClassifier, ServiceClass
from sage_llm.policies import POLICIES, KVCost, placement
from sage_llm.receipts import Receipts
from sage_llm.types import RequestView, Snapshot, TenantView

HELD = dict.fromkeys(range(1, 9), 0b01)


@any_speed(60)
@given(data=st.data(), name=st.sampled_from(list(POLICIES["placement"])))
def test_a_replay_decides_the_same_after_the_cluster_has_changed(data: st.DataObject, name: str) -> None:
    wanted, snapshot = data.draw(requests()), data.draw(snapshots())
    kv, places = dict(snapshot.kv), dict(snapshot.places)  # type: ignore[call-overload]
    lower = tuple(map(dict, snapshot.lower))  # type: ignore[call-overload]
    live = attrs.evolve(snapshot, kv=kv, lower=lower, places=places)
    receipts = Receipts()
    decision = receipts.place(placement(name), wanted, live)
    assert decision == placement(name).place(wanted, snapshot), "recording changes nothing"
    for table in (kv, places, *lower):
        table.clear()
    if decision.kind == "wait":
        assert wanted.id not in receipts
    else:
        assert receipts[wanted.id].replay() == decision


def test_another_policy_can_be_tried_on_a_receipt() -> None:
    receipts = Receipts()
    snapshot = cluster(instance(0, queued_tokens=100.0), instance(1), kv=HELD)
    assert receipts.place(KVCost(), request(), snapshot).slot == 0
    assert receipts["r"].replay(placement("least-tokens")).slot == 1


def test_a_receipt_says_what_was_known_and_measured() -> None:
    receipts = Receipts()
    tenants = {"t": TenantView(service=5.0), "u": TenantView()}
    snapshot = cluster(
        instance(0, queued_tokens=800.0),
        instance(1),
        kv=HELD,
        rho=0.5,
        now=3.0,
        tenants=tenants,
        places={"s": 1},
    )
    wanted = request(arrived=1.0, tenant="t", session="s")
    receipts.place(KVCost(), wanted, snapshot)
    receipts.first_token("r", 0.26)
    receipts.ended("r", 800)
    receipts.first_token("unknown", 1.0)
    receipts.ended("unknown", 1)
    shown = json.loads(json.dumps(receipts["r"].to_json()))
    assert shown["policy"] == "kv-cost"
    assert shown["parameters"]["alpha_max"] == 8
    assert (shown["alpha"], shown["rho"], shown["waited_s"]) == (2.0, 0.5, 2.0)
    assert (shown["instance"], shown["reuse_tokens"], shown["cached_tokens"]) == ("m/0", 800, 800)
    assert (shown["ttft_predicted_s"], shown["ttft_measured_s"]) == (1.0, 0.26)
    assert shown["candidates"][0] == {
        "instance": "m/0",
        "cost": 1.2,
        "uncached_tokens": 200,
        "loaded_tokens": 0,
        "queued_tokens": 800.0,
        "wait_kv_s": 0.0,
    }
    assert dict(receipts["r"].snapshot.tenants) == {"t": TenantView(service=5.0)}


def test_a_second_placement_remembers_the_first() -> None:
    receipts = Receipts()
    snapshot = cluster(instance(0), instance(1))
    receipts.place(KVCost(), request(), snapshot)
    receipts.place(KVCost(), request(excluded=1), snapshot)
    assert len(receipts) == 1
    assert receipts["r"].to_json()["earlier"] == [{"instance": "m/0", "decision": "dispatch"}]
    assert receipts["r"].to_json()["instance"] == "m/1"


def test_refusals_have_receipts_too() -> None:
    receipts = Receipts()
    receipts.place(KVCost(), request(), Snapshot(0.0))
    shown = receipts["r"].to_json()
    assert (shown["decision"], shown["reason"], shown["instance"]) == ("refuse", "unavailable", None)


def test_receipts_are_bounded_by_number_and_bytes() -> None:
    snapshot = cluster(instance(0))
    few = Receipts(max_receipts=3)
    for n in range(10):
        few.place(KVCost(), request(id=f"r{n}"), snapshot)
    assert list(few) == ["r7", "r8", "r9"]
    small = Receipts(max_bytes=200_000)
    for n in range(50):
        small.place(KVCost(), request(1000, id=f"r{n}"), snapshot)
        assert small.used_bytes <= 200_000
    assert list(small) == ["r46", "r47", "r48", "r49"]
    none = Receipts(max_receipts=0)
    assert none.place(KVCost(), request(), snapshot).slot == 0
    assert len(none) == 0


# --- classifier


def test_classes_of_length_and_service() -> None:
    classifier = RequestClassifier({"night": ServiceClass(band=5, tpot_s=1.0, strict_kv=True)})
    lengths = [classifier.length(n) for n in (1, 512, 513, 4096, 4097, 16_385)]
    assert lengths == ["short", "short", "medium", "medium", "long", "huge"]
    found = classifier.classify("m", prompt_tokens=9, max_tokens=100, priority=1, service_class="night")
    assert (found.band, found.tpot_s, found.reserve, found.service_class) == (6, 1.0, -1, "night")
    found = classifier.classify("m", prompt_tokens=9, max_tokens=100, service_class="interactive", ttft_s=0.5)
    assert (found.band, found.ttft_s) == (0, 0.5)
    found = classifier.classify("m", prompt_tokens=9, max_tokens=100, service_class="no such class")
    assert (found.service_class, found.band, found.ttft_s) == ("", 0, None)


def test_turns_of_sessions() -> None:
    classifier = RequestClassifier()

    def turn(session: str, tenant: str = "a") -> int:
        return classifier.classify("m", prompt_tokens=1, max_tokens=1, session=session, tenant=tenant).turn

    assert [turn("s"), turn("s"), turn("t"), turn("s"), turn("s", "b"), turn("")] == [1, 2, 1, 3, 1, 1]


def test_outputs_are_learned_per_class() -> None:
    classifier = RequestClassifier()

    def expected(prompt: int, limit: int = 4096) -> tuple[float, float, int]:
        found = classifier.classify("m", prompt_tokens=prompt, max_tokens=limit)
        return found.out_q50, found.out_q90, found.reserve

    assert expected(10) == (2048, 4096, 4096)
    for n in range(200):
        classifier.ended("m", 100 if n % 5 else 1000, prompt_tokens=10)
        classifier.ended("m", 3000, prompt_tokens=9000)
    q50, q90, reserve = expected(10)
    assert 100 <= q50 < 120
    assert 1000 <= q90 < 1200
    assert reserve >= q90
    assert expected(9000)[0] >= 3000
    assert expected(10, limit=50) == (50, 50, 50)
    q50, _, _ = expected(1000)  # a class without observations borrows from the model's
    assert 100 <= q50 < 4096
    other = classifier.classify("other", prompt_tokens=10, max_tokens=64)
    assert (other.out_q50, other.out_q90) == (32, 64)


def test_a_change_of_behaviour_is_learned() -> None:
    classifier = RequestClassifier()
    for _ in range(1000):
        classifier.ended("m", 10, prompt_tokens=10)
    for _ in range(1500):
        classifier.ended("m", 1000, prompt_tokens=10)
    assert classifier.classify("m", prompt_tokens=10, max_tokens=4096).out_q50 >= 1000


def test_embeddings_and_empty_outputs_teach_nothing() -> None:
    classifier = RequestClassifier()
    classifier.ended("m", 50, kind="embed", prompt_tokens=10)
    classifier.ended("m", 0, prompt_tokens=10)
    assert classifier.classify("m", prompt_tokens=10, max_tokens=8).out_q50 == 4
    found = classifier.classify("m", kind="embed", prompt_tokens=10, max_tokens=0)
    assert (found.out_q50, found.out_q90) == (0, 0)


def test_tables_are_bounded() -> None:
    classifier = RequestClassifier()
    for n in range(3000):
        classifier.ended(f"m{n}", 10, prompt_tokens=10)
    assert len(classifier._outputs) == 1024
    for n in range(66_000):
        classifier._turn("a", str(n))
    assert len(classifier._turns) == 65_536


@any_speed(100)
@given(st.lists(st.integers(1, 200_000), min_size=1, max_size=50), st.integers(1, 300_000))
def test_quantiles_are_within_a_bucket(outputs: list[int], limit: int) -> None:
    classifier = RequestClassifier()
    for output in outputs:
        classifier.ended("m", output, prompt_tokens=10)
    found = classifier.classify("m", prompt_tokens=10, max_tokens=limit)
    assert found.out_q50 <= found.out_q90 <= limit
    assert found.out_q90 <= max(outputs) * 1.2
    assert found.out_q50 >= min(*outputs, limit) / 1.2
    assert isinstance(RequestView("r", "m", out_q50=found.out_q50), RequestView)


def test_a_wrong_target_is_rejected() -> None:
    with pytest.raises(ValueError, match="ttft_s"):
        ServiceClass(ttft_s=0)

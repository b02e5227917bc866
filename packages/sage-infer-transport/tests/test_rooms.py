"""Rooms of a region, addresses and plans: properties."""

from __future__ import annotations

import os
import random
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sage_infer.errors import InvalidRequest, Overloaded
from sage_infer.schemas import Figure, HardwareProfile, KVCacheSchema, KVChunk, KVLocation, TransportSettings
from sage_infer.schemas.hardware import LinkProfile, MemoryTierSpec
from sage_infer_transport import plan_transfer
from sage_infer_transport.addresses import parse
from sage_infer_transport.rooms import Region


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3000), min_size=1, max_size=4), max_size=30), st.integers())
def test_rooms_never_overlap(requests: list[list[int]], seed: int) -> None:
    """Whatever is allocated and freed: rooms are disjoint, keep their bytes, and the capacity is exact."""
    order = random.Random(seed)
    region = Region.on(os.memfd_create("test"), 10_000)
    held: dict[int, tuple[object, bytes]] = {}
    try:
        for sizes in requests:
            used = sum(room.nbytes for room, _ in held.values())
            if used + sum(sizes) > 10_000:
                with pytest.raises(Overloaded):
                    region.allocate(sizes)
                for key in order.sample(sorted(held), len(held) // 2):
                    region.free(held.pop(key)[0])
                continue
            for room in region.allocate(sizes):
                content = order.randbytes(room.nbytes)
                region.view(room)[:] = content
                held[room.offset] = (room, content)
            spans = sorted((room.start, room.end) for room, _ in held.values())
            assert all(a[1] <= b[0] for a, b in pairwise(spans))
            assert all(bytes(region.view(room)) == content for room, content in held.values())
    finally:
        held.clear()
        region.close()


@given(st.one_of(st.text(), st.from_regex(r"(shm|file|tcp)://?[^\s]{0,40}", fullmatch=True)))
def test_addresses_are_parsed_or_refused(uri: str) -> None:
    with suppress(InvalidRequest):
        parse(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "shm://../x#0", "shm://a/b#0", "shm://a#-1", "shm://a#1e3", "file://host/path", "file:///a%00b",
        "file:relative", "tcp://host/0" + "0" * 31, "tcp://host:70000/" + "0" * 32, "tcp://host:1/short", "nixl://agent/x",
    ],
)  # fmt: skip
def test_malformed_addresses_are_refused(uri: str) -> None:
    with pytest.raises(InvalidRequest):
        parse(uri)


def chunks() -> list[KVChunk]:
    schema = KVCacheSchema.from_preset("fp16", num_layers=4, num_heads=1, head_dim=8, page_size=4)
    return [
        KVChunk(
            chunk_id=f"{i:032x}", request_id="r", layer_start=layer, layer_end=layer + 2, token_start=token,
            token_end=token + 4, kv_schema=schema, nbytes=1_000_000,
        )
        for i, (token, layer) in enumerate([(0, 0), (0, 2), (4, 0), (4, 2)])
    ]  # fmt: skip


def places(scheme: str) -> list[KVLocation]:
    return [KVLocation(tier="remote", uri=f"{scheme}://x/{i}") for i in range(4)]


def profile() -> HardwareProfile:
    def link(target: str, gbs: float, microseconds: float) -> LinkProfile:
        return LinkProfile(
            source="host", target=target, kind="network",
            measured_gbs=Figure(value=gbs, source="test", confidence="high"),
            latency_us=Figure(value=microseconds, source="test", confidence="high"),
        )  # fmt: skip

    tier = MemoryTierSpec(
        tier="dram", name="host", measured_read_gbs=Figure(value=10.0, source="test", confidence="high")
    )
    return HardwareProfile(
        links=(link("nic:wide", 2.0, 100.0), link("nic:quick", 1.0, 10.0)), memory_tiers=(tier,)
    )


@pytest.mark.parametrize(("overlap", "order"), [(True, [0, 2, 1, 3]), (False, [0, 1, 2, 3])])
def test_lower_layers_travel_first_where_compute_overlaps(overlap: bool, order: list[int]) -> None:
    plan = plan_transfer(
        "p", chunks(), places("tcp"), places("shm"), settings=TransportSettings(overlap_compute=overlap)
    )
    assert [step.priority for step in plan.steps] == order
    assert plan.estimated_time_s is None


@pytest.mark.parametrize(
    ("objective", "link", "seconds"),
    [("bandwidth", "host->nic:wide", 4e6 / 2e9 + 2e-4), ("latency", "host->nic:quick", 4e6 / 1e9 + 2e-5)],
)
def test_the_objective_chooses_the_link(objective: str, link: str, seconds: float) -> None:
    settings = TransportSettings(objective=objective, max_in_flight=2)
    plan = plan_transfer("p", chunks(), places("tcp"), places("shm"), settings=settings, profile=profile())
    assert {step.link for step in plan.steps} == {link}
    assert plan.estimated_time_s == pytest.approx(seconds)


def test_memory_is_the_link_within_a_host() -> None:
    plan = plan_transfer(
        "p", chunks(), places("shm"), places("file"), settings=TransportSettings(), profile=profile()
    )
    assert {step.link for step in plan.steps} == {None}
    assert plan.estimated_time_s == pytest.approx(4e6 / 10e9)


def test_a_plan_needs_one_place_per_chunk() -> None:
    with pytest.raises(InvalidRequest, match="expected one of each per chunk"):
        plan_transfer("p", chunks(), places("tcp")[1:], places("shm"), settings=TransportSettings())

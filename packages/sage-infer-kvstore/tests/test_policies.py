"""Policies order exactly the blocks in a store, forget what they must not keep, and learn which prompts come back."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sage_infer.errors import ConfigError
from sage_infer_kvstore import PagedStore, QuantizedStore, TieredStore
from sage_infer_kvstore.policies.base import Request
from sage_infer_kvstore.policies.counting import Hotness
from sage_infer_kvstore.policies.names import POLICIES, policy_of
from sage_infer_kvstore.policies.reuse import LearnedReuse
from sage_infer_kvstore.policies.reuse_model import ReuseModel
from shared_user import KEYS, MODEL, SCHEMA, block

PAGE = 512


def names(*parts: object, count: int) -> list[bytes]:
    return [hashlib.blake2b(repr((*parts, i)).encode(), digest_size=16).digest() for i in range(count)]


CALLS = st.lists(
    st.tuples(
        st.sampled_from(["asked", "add", "used", "remove"]),
        st.lists(st.integers(0, 9), max_size=6),
        st.floats(0.0, 500.0),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(CALLS, st.sampled_from(sorted(POLICIES)))
def test_a_policy_orders_exactly_the_blocks_in_the_store(
    calls: list[tuple[str, list[int], float]], name: str
) -> None:
    policy = policy_of(name, PAGE)
    held: dict[bytes, None] = {}
    now = 0.0
    for call, numbers, seconds in calls:
        now += seconds
        keys = [KEYS[number] for number in numbers]
        if call == "asked":
            policy.asked(keys, now, Request(seconds if len(keys) % 2 else None))
        elif call == "remove":
            for key in keys:
                policy.remove(key)
                held.pop(key, None)
        else:
            for key in keys:
                getattr(policy, call)(key, now)
                if call == "add" or key in held:
                    held.pop(key, None)
                    held[key] = None
        order = list(policy.order(now))
        assert len(order) == len(held)
        assert {*order} == {*held}
        assert list(policy.order(now)) == order, "looking at the order changed it"
        if name == "lru":
            assert order == list(held)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 8), st.booleans()), max_size=40))
def test_what_is_remembered_is_bounded(prompts: list[tuple[int, int, bool]]) -> None:
    """Blocks outside of the store, and lists of blocks that later prompts took over."""
    policy = LearnedReuse(PAGE, remembered=10)
    held: set[bytes] = set()
    for turn, (family, length, is_stored) in enumerate(prompts):
        keys = [*names("shared", count=2), *names(family, count=length)]
        policy.asked(keys, float(turn))
        for key in keys if is_stored else ():
            policy.add(key, float(turn))
            held.add(key)
        while len(held) > 6:
            victim = next(policy.order(float(turn)))
            policy.remove(victim)
            held.remove(victim)
        prompts_now = {id(prompt): prompt for prompt in policy._prompt_of.values()}.values()
        assert len(policy._prompt_of) <= 10 + 2 * len(held) + len(keys)
        assert sum(len(prompt.keys) for prompt in prompts_now) <= 2 * len(policy._prompt_of) + len(
            prompts_now
        )
        assert sum(prompt.held for prompt in prompts_now) == len(held)


def test_hot_blocks_leave_last_and_cool_down() -> None:
    policy = Hotness()
    for key in KEYS[:3]:
        policy.add(key, 0.0)
    for _ in range(4):
        policy.used(KEYS[0], 0.0)
    policy.used(KEYS[1], 0.0)
    assert list(policy.order(0.0)) == [KEYS[2], KEYS[1], KEYS[0]]
    for _ in range(60):
        policy.used(KEYS[2], 0.0)
    order = list(policy.order(0.0))
    assert order[-1] == KEYS[2]
    assert {*order[:2]} == {*KEYS[:2]}


def conversations(seed: int) -> Iterable[tuple[float, list[bytes]]]:
    """Prompts with their times: long documents that are asked about once, and short chats of eight turns."""
    rng = random.Random(seed)
    events: list[tuple[float, list[bytes]]] = []
    for number in range(300):
        start = rng.uniform(0.0, 6000.0)
        if number % 2:
            events.append((start, names("document", number, count=14)))
        else:
            events += [(start + 60.0 * turn, names("chat", number, count=1 + turn)) for turn in range(8)]
    return sorted(events)


def share_found(policy: Any, capacity: int, seed: int) -> float:
    """Share of the blocks of all prompts that a store with this policy finds, as a prefix."""
    held: set[bytes] = set()
    found = asked = 0
    for now, keys in conversations(seed):
        policy.asked(keys, now)
        hits = [*(key in held for key in keys), False].index(False)
        found, asked = found + hits, asked + len(keys)
        for key in keys[:hits]:
            policy.used(key, now)
        for key in keys[hits:]:
            while len(held) >= capacity and key not in held:
                victim = next(key for key in policy.order(now) if key not in keys)
                policy.remove(victim)
                held.remove(victim)
            held.add(key)
            policy.add(key, now)
    return found / asked


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_prompts_that_come_back_are_kept(seed: int) -> None:
    learned, recent = share_found(LearnedReuse(PAGE), 40, seed), share_found(policy_of("lru", PAGE), 40, seed)
    assert learned > 1.3 * recent, f"{learned:.3f} against {recent:.3f} with lru"


def test_nothing_learned_means_the_order_of_use() -> None:
    policy = LearnedReuse(PAGE)
    prompts = [names(number, count=3) for number in range(4)]
    for now, keys in enumerate(prompts):
        policy.asked(keys, float(now))
        for key in keys:
            policy.add(key, float(now))
    policy.used(prompts[0][0], 9.0)
    expected = [reversed(prompts[number]) for number in (1, 2, 3, 0)]
    assert list(policy.order(10.0)) == list(itertools.chain(*expected)), (
        "the last block of a prompt leaves first"
    )


def test_the_rate_of_reuse_is_that_of_the_class_at_its_age() -> None:
    model = ReuseModel()
    assert model.value((1, 1), 3.0) == 0.0
    for _ in range(100):
        model.continued((1, 1), 10.0)
        model.forgotten((1, 2), 1000.0)
    assert model.is_due
    model.rebuild([((1, 2), 900.0)] * 10)
    assert not model.is_due
    assert model.value((1, 1), 0.0) > 10 * model.value((1, 2), 0.0)
    assert 1 / 20 < model.value((1, 1), 0.0) < 1 / 5, "about once in ten seconds"
    assert model.value((1, 1), 9.0) > 2 * model.value((1, 1), 0.0), "it comes soon"
    assert model.value((1, 1), 100.0) < model.value((1, 1), 0.0) / 10, "it did not come when it used to"
    assert model.value((5, 1), 9.0) == model.value((4, 0), 9.0) > 0.0, (
        "classes without observations share a value"
    )


def test_old_traffic_counts_less_and_less() -> None:
    model = ReuseModel()
    for _ in range(30_000):
        model.forgotten((1, 1), 5.0)
    assert sum(model._censored[1, 1]) == model._observed < 21_000


@pytest.mark.parametrize("name", ["fifo", "", None, 3])
def test_an_unknown_policy_is_refused(name: object) -> None:
    with pytest.raises(ConfigError, match="lru, hotness, reuse, slo or recompute"):
        policy_of(name, PAGE)


def test_a_shared_arena_has_no_learned_policy() -> None:
    with pytest.raises(ConfigError, match="leave out name, or set policy to lru"):
        PagedStore(schema=SCHEMA, model_id=MODEL, name="test-policy", capacity_blocks=4, policy="reuse")


# --- in stores


def opened(kind: str) -> Any:
    memory = {"capacity_blocks": 4}
    if kind == "tiered":
        lower = {"store": "paged", "capacity_blocks": 40}
        return TieredStore(
            schema=SCHEMA, model_id=MODEL, lower=lower, upper=memory, policy="reuse", wait_s=30.0
        )
    if kind == "quantized":
        lower = {"store": "paged", "policy": "reuse", **memory}
        return QuantizedStore(schema=SCHEMA, model_id=MODEL, lower=lower)
    return PagedStore(schema=SCHEMA, model_id=MODEL, policy="reuse", **memory)  # type: ignore[arg-type]


def in_memory(store: Any, keys: Sequence[bytes]) -> list[bool]:
    if isinstance(store, TieredStore):
        assert store.contains(keys) == [True] * len(keys), "the lower store has room for all"
        return [place is not None and place.tier == "dram" for place in store.locate(keys)]
    found: list[bool] = store.contains(keys)
    return found


@pytest.mark.parametrize("kind", ["paged", "tiered", "quantized"])
def test_a_store_tells_its_policy_of_requests(kind: str) -> None:
    """The last blocks of a prompt leave first, which a store without the order of its blocks cannot know."""
    store, page = opened(kind), memoryview(bytes(SCHEMA.bytes_per_page))
    prompt, other = KEYS[:4], KEYS[8:10]
    for keys in (prompt, other):
        store.note_request(keys)
        for key in keys:
            assert store.put([key], [page]) == 1
            if kind == "tiered":
                store._flush(30.0)
    assert in_memory(store, [*prompt, *other]) == [True, True, False, False, True, True]
    store.close()


def test_pins_and_blocks_of_one_call_are_not_chosen() -> None:
    store = opened("paged")
    store.put(KEYS[:4], [block(key) for key in KEYS[:4]])
    store.pin(KEYS[:2])
    assert store.put(KEYS[2:6], [block(key) for key in KEYS[2:6]]) <= 2
    assert store.contains(KEYS[:2]) == [True, True]
    assert store.stats().blocks == 4
    assert store.drop(KEYS[:6]) == 2
    store.unpin(KEYS[:2])
    assert store.evict(9) == 2
    assert store.evict(9) == 0
    assert store.put(KEYS[:4], [block(key) for key in KEYS[:4]]) == 4
    store.close()

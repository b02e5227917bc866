"""The policies ``slo`` and ``recompute``: what is urgent, or costs much, stays longer; nothing stays for ever."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sage_infer_kvstore import PagedStore, QuantizedStore, TieredStore
from sage_infer_kvstore.policies.base import Request
from sage_infer_kvstore.policies.names import policy_of
from sage_infer_kvstore.policies.weighted import RecomputeCost, Urgency
from shared_user import KEYS, MODEL, SCHEMA, block
from test_policies import in_memory, names

PAGE = 512


def stored(policy: Any, keys: list[bytes], now: float, patience_s: float | None = None) -> None:
    policy.asked(keys, now, Request(patience_s))
    for key in keys:
        policy.add(key, now)


def order_of(policy: Any, now: float, **prompts: list[bytes]) -> list[str]:
    """Names of the prompts in the order in which their last blocks leave; within a prompt, the last one is first."""
    order = list(policy.order(now))
    for keys in prompts.values():
        assert [key for key in order if key in keys] == [*reversed(keys)]
    return sorted(prompts, key=lambda name: order.index(prompts[name][-1]))


def test_an_urgent_prompt_stays_longer() -> None:
    policy = Urgency(PAGE)
    prompts = {name: names(name, count=2) for name in ("urgent", "usual", "patient")}
    stored(policy, prompts["urgent"], 0.0, 1.0)
    stored(policy, prompts["usual"], 0.0)
    stored(policy, prompts["patient"], 0.0, 600.0)
    assert order_of(policy, 1.0, **prompts) == ["patient", "usual", "urgent"]
    policy.used(prompts["patient"][0], 99.0)
    assert order_of(policy, 100.0, **prompts) == ["usual", "urgent", "patient"], "64 s against 800 and 100"
    assert order_of(policy, 110.0, **prompts) == ["usual", "patient", "urgent"], "704 s against 880 and 110"
    assert order_of(policy, 10_000.0, **prompts) == ["patient", "usual", "urgent"]


def test_blocks_of_an_urgent_prompt_remain_its_own() -> None:
    """A system prompt that a batch request also has is not evicted with that request."""
    policy = Urgency(PAGE)
    system, chat, batch = (names(name, count=2) for name in ("system", "chat", "batch"))
    stored(policy, [*system, *chat], 0.0, 1.0)
    stored(policy, [*system, *batch], 9.0, 64.0)
    stored(policy, system, 9.5, 64.0)
    assert list(policy.order(10.0)) == [*reversed(batch), *reversed([*system, *chat])]
    for key in [*system, *chat, *batch]:
        policy.remove(key)
    assert not list(policy.order(10.0))
    assert len(policy._open) <= 2, "a prompt without blocks of its own is remembered"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), max_size=30), st.sampled_from([None, 1.0, 60.0])
)
def test_equal_urgency_means_the_order_of_use(
    prompts: list[tuple[int, int]], patience_s: float | None
) -> None:
    """Of prompts that share nothing: as of one after the other, the last block first."""
    policy, last = Urgency(PAGE), {}
    for now, (family, length) in enumerate(prompts):
        keys = names(family, length, count=length)
        stored(policy, keys, float(now), patience_s)
        last.pop((family, length), None)
        last[family, length] = keys
    assert list(policy.order(99.0)) == [key for keys in last.values() for key in reversed(keys)]


def test_what_costs_more_stays_longer_but_not_for_ever() -> None:
    policy = RecomputeCost(PAGE)
    prompts = {"short": names("short", count=1), "long": names("long", count=64)}
    stored(policy, prompts["long"], 0.0)
    stored(policy, prompts["short"], 1.0)
    assert order_of(policy, 2.0, **prompts) == ["short", "long"]
    for now in range(3, 40):
        victim = next(policy.order(float(now)))
        if victim in prompts["long"]:
            break
        policy.remove(victim)
        stored(policy, names(now, count=1), float(now))
    assert victim == prompts["long"][-1], "a prompt that nobody uses stays for ever"
    assert now > 5


CHATS = 60


def chats(seed: int) -> list[tuple[float, list[bytes], float]]:
    """Time, prompt and patience: chats of six turns, half of them batch work with a minute, the others urgent."""
    rng, events = random.Random(seed), []
    for number in range(CHATS):
        start = rng.uniform(0.0, 600.0)
        for turn in range(6):
            patience_s = 60.0 if number % 2 else 2.0
            events.append((start + 40.0 * turn, names("chat", number, count=2 + turn), patience_s))
    return sorted(events)


def found_of(name: str, seed: int, capacity: int = 60) -> dict[float, float]:
    """Share of the blocks that a store with this policy finds, by the patience of their requests."""
    policy, held = policy_of(name, PAGE), set[bytes]()
    found, asked = {2.0: 0, 60.0: 0}, {2.0: 0, 60.0: 0}
    for now, keys, patience_s in chats(seed):
        policy.asked(keys, now, Request(patience_s))
        hits = [*(key in held for key in keys), False].index(False)
        found[patience_s] += hits
        asked[patience_s] += len(keys)
        for key in keys[:hits]:
            policy.used(key, now)
        for key in keys[hits:]:
            while len(held) >= capacity and key not in held:
                victim = next(one for one in policy.order(now) if one not in keys)
                policy.remove(victim)
                held.remove(victim)
            held.add(key)
            policy.add(key, now)
    return {patience_s: found[patience_s] / asked[patience_s] for patience_s in found}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_urgent_requests_find_more(seed: int) -> None:
    urgent, recent = found_of("slo", seed), found_of("lru", seed)
    assert urgent[2.0] > 1.2 * recent[2.0], f"{urgent} against {recent} with lru"


# --- in stores


@pytest.mark.parametrize("kind", ["paged", "tiered", "quantized"])
def test_a_store_tells_its_policy_how_urgent_requests_are(kind: str) -> None:
    """A newer prompt that can wait leaves before an older one that cannot."""
    memory = {"capacity_blocks": 4}
    store: Any
    if kind == "tiered":
        lower = {"store": "paged", "capacity_blocks": 40}
        store = TieredStore(
            schema=SCHEMA, model_id=MODEL, lower=lower, upper=memory, policy="slo", wait_s=30.0
        )
    elif kind == "quantized":
        store = QuantizedStore(
            schema=SCHEMA, model_id=MODEL, lower={"store": "paged", "policy": "slo", **memory}
        )
    else:
        store = PagedStore(schema=SCHEMA, model_id=MODEL, policy="slo", capacity_blocks=4)
    zeros = memoryview(bytes(SCHEMA.bytes_per_page))
    for keys, patience_s in ((KEYS[:2], 1.0), (KEYS[2:4], 60.0), (KEYS[4:6], None)):
        store.note_request(keys, patience_s=patience_s)
        for key in keys:
            assert store.put([key], [zeros if kind == "quantized" else block(key)]) == 1
            if kind == "tiered":
                store._flush(30.0)
    assert in_memory(store, KEYS[:6]) == [True, True, False, False, True, True]
    store.close()

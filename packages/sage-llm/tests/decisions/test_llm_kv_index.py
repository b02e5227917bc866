"""The KV index: events, gaps, generations, salts, tiers, predictions and its bound."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_cluster import any_speed
from sage_infer.contracts.kv_events import KVEvents, KVSnapshot, KVStored
from sage_llm.index import KVIndex, prompt_keys, root_key, text_keys
from sage_llm.index.kv_index import BYTES_PER_KEY
from sage_llm.policies.prefix import deepest

BLOCK = 4
MODEL = "m"


def engine_keys(tokens: list[int], salt: bytes = b"") -> tuple[bytes, ...]:
    """Keys as an engine may make them: any bytes that depend on the whole prefix."""
    root = root_key("engine", salt=salt)
    return tuple(k.to_bytes(16, "little") for k in prompt_keys(tokens, BLOCK, root))


def stored(tokens: list[int], salt: bytes = b"", **changes: Any) -> KVStored:
    full = len(tokens) // BLOCK * BLOCK
    return KVStored(
        parent=None, keys=engine_keys(tokens, salt), token_ids=tuple(tokens[:full]), salt=salt, **changes
    )


def synced(index: KVIndex, slot: int, *tokens: list[int], generation: int = 1) -> None:
    index.add(slot, generation, MODEL, BLOCK, key_space="ab", events=True)
    while index.sweep():
        pass
    assert index.resync() == [slot]
    assert index.apply(slot, KVSnapshot(generation=generation, seq=0, stored=tuple(map(stored, tokens))))


def depth(index: KVIndex, tokens: list[int], slot: int, salt: bytes = b"", adapter: str = "") -> int:
    keys = index.keys(MODEL, tokens, salt=salt, adapter=adapter)
    return deepest(index.device.get, keys, 1 << slot & index.valid())


TOKENS = list(range(40))


def test_a_snapshot_and_events_show_what_an_instance_holds() -> None:
    index = KVIndex()
    synced(index, 0, TOKENS[:16])
    assert depth(index, TOKENS, 0) == 4
    parent, keys = engine_keys(TOKENS)[3], engine_keys(TOKENS)[4:6]
    added = KVStored(parent=parent, keys=keys, token_ids=tuple(TOKENS[16:24]))
    assert index.events(0, KVEvents(generation=1, seq=1, stored=(added,)))
    assert depth(index, TOKENS, 0) == 6
    assert index.events(0, KVEvents(generation=1, seq=2, removed=(keys[1],)))
    assert depth(index, TOKENS, 0) == 5
    assert index.events(0, KVEvents(generation=1, seq=2, removed=(keys[0],))), "already applied"
    assert depth(index, TOKENS, 0) == 5


def test_a_gap_invalidates_an_instance_until_its_next_snapshot() -> None:
    index = KVIndex()
    synced(index, 0, TOKENS)
    assert not index.events(0, KVEvents(generation=1, seq=5))
    assert index.valid() == 0
    assert not index.events(0, KVEvents(generation=1, seq=6))
    assert index.resync() == [0]
    assert index.apply(0, KVSnapshot(generation=1, seq=6, stored=(stored(TOKENS[:8]),)))
    assert depth(index, TOKENS, 0) == 2


def test_a_cleared_cache_is_cleared() -> None:
    index = KVIndex()
    synced(index, 0, TOKENS)
    synced(index, 1, TOKENS)
    assert not index.events(0, KVEvents(generation=1, seq=1, cleared=True))
    assert depth(index, TOKENS, 0) == 0
    assert depth(index, TOKENS, 1) == 10


def test_an_earlier_generation_says_nothing() -> None:
    index = KVIndex()
    synced(index, 0, TOKENS)
    index.add(0, 2, MODEL, BLOCK, key_space="ab", events=True)
    assert index.events(0, KVEvents(generation=1, seq=1, stored=(stored(TOKENS),)))
    assert not index.apply(0, KVSnapshot(generation=1, seq=9, stored=(stored(TOKENS),)))
    assert index.apply(0, KVSnapshot(generation=2, seq=0))
    assert depth(index, TOKENS, 0) == 0


def test_removal_leaves_nothing_behind() -> None:
    index = KVIndex()
    synced(index, 3, TOKENS)
    assert len(index) == 10
    index.remove(3)
    index.remove(3)
    assert (len(index), index.used_bytes, index.valid()) == (0, 0, 0)


def test_salts_and_adapters_share_nothing() -> None:
    index = KVIndex()
    synced(index, 0)
    events = KVEvents(
        generation=1, seq=1, stored=(stored(TOKENS, b"a"), stored(TOKENS[:8], b"", adapter="x"))
    )
    assert index.events(0, events)
    assert depth(index, TOKENS, 0, salt=b"a") == 10
    assert depth(index, TOKENS, 0, salt=b"b") == 0
    assert depth(index, TOKENS, 0) == 0
    assert depth(index, TOKENS, 0, adapter="x") == 2


def test_tiers_are_apart() -> None:
    index = KVIndex()
    synced(index, 0)
    assert index.lower == ()
    both = (stored(TOKENS[:8]), stored(TOKENS, tier="dram"), stored(TOKENS, tier="remote"))
    assert index.events(0, KVEvents(generation=1, seq=1, stored=both))
    keys = index.keys(MODEL, TOKENS)
    assert deepest(index.device.get, keys, 1) == 2
    assert deepest(index.lower[0].get, keys, 1) == 10
    assert deepest(index.lower[1].get, keys, 1) == 0


def test_a_continuation_of_a_forgotten_block_is_ignored() -> None:
    index = KVIndex()
    synced(index, 0)
    orphan = KVStored(parent=b"?" * 16, keys=(b"!" * 16,), token_ids=(1, 2, 3, 4))
    assert index.events(0, KVEvents(generation=1, seq=1, stored=(orphan,)))
    assert len(index) == 0


def test_the_index_is_bounded_and_forgets_the_oldest() -> None:
    index = KVIndex(max_bytes=BYTES_PER_KEY * 1024)
    synced(index, 0)
    kept = [7] * 40
    keys = index.keys(MODEL, kept)
    assert index.events(0, KVEvents(generation=1, seq=1, stored=(stored(kept),)))
    for seq in range(2, 200):
        tokens = [seq * 1000 + i for i in range(80)]
        assert index.events(0, KVEvents(generation=1, seq=seq, stored=(stored(tokens),)))
        index.touch(keys)
        assert index.used_bytes <= BYTES_PER_KEY * (1024 + 2 * 256)
    assert index.evicted > 1000
    assert depth(index, kept, 0) == 10
    assert depth(index, [2000 + i for i in range(80)], 0) == 0
    assert depth(index, tokens, 0) == 20


def test_a_bound_that_holds_nothing_is_rejected() -> None:
    with pytest.raises(ValueError, match="at least"):
        KVIndex(max_bytes=10)


def test_sweeps_take_small_steps() -> None:
    index = KVIndex()
    many = [[seq * 100 + i for i in range(80)] for seq in range(600)]
    synced(index, 0, *many)
    synced(index, 1, *many[:10])
    index.remove(0)
    assert index.valid() == 0b10
    index.add(0, 2, MODEL, BLOCK, key_space="ab", events=True)
    assert not index.apply(0, KVSnapshot(generation=2, seq=0)), "old bits are not removed yet"
    steps = 0
    while index.sweep(1000):
        steps += 1
    assert steps >= 7
    assert len(index) == 200
    assert index.apply(0, KVSnapshot(generation=2, seq=0))
    assert depth(index, many[0], 0) == 0
    assert depth(index, many[0], 1) == 20


def test_instances_without_events_are_predicted() -> None:
    index = KVIndex()
    index.add(0, 1, MODEL, BLOCK, key_space=None, events=False)
    assert index.resync() == []
    keys = index.keys(MODEL, TOKENS)
    index.predict(0, keys, capacity=12)
    assert depth(index, TOKENS, 0) == 10
    index.predict(0, index.keys(MODEL, [9] * 40), capacity=12)
    assert depth(index, TOKENS, 0) == 2
    assert not index.apply(0, KVSnapshot(generation=1, seq=0))
    assert index.events(0, KVEvents(generation=1, seq=1))


def test_wrong_predictions_are_not_used_until_they_agree_again() -> None:
    index = KVIndex()
    index.add(0, 1, MODEL, BLOCK, key_space=None, events=False)
    index.predict(0, index.keys(MODEL, TOKENS), capacity=100)
    index.observe(0, 0, 0)
    assert index.valid() == 1
    for _ in range(10):
        index.observe(0, 40, 0)
    assert index.valid() == 0
    for _ in range(10):
        index.observe(0, 40, 40)
    assert index.valid() == 0b0
    for _ in range(20):
        index.observe(0, 40, 40)
    assert index.valid() == 1


def test_other_block_sizes_are_predicted() -> None:
    index = KVIndex()
    synced(index, 0, TOKENS)
    index.add(1, 1, MODEL, BLOCK * 2, key_space="cd", events=True)
    assert index.resync() == []
    index.predict(1, index.keys(MODEL, TOKENS[:20]), capacity=100)
    assert depth(index, TOKENS, 1) == 5
    assert index.block(MODEL) == BLOCK
    assert index.keys("other", TOKENS) == ()


def test_texts_have_keys_without_a_tokenizer() -> None:
    root = root_key(MODEL)
    keys = text_keys("a" * 5000, root)
    assert len(keys) == 2
    assert text_keys("a" * 2048 + "b" * 2048, root)[:1] == keys[:1]
    assert text_keys("a" * 2048 + "b" * 2048, root)[1:] != keys[1:]
    assert len(set(keys)) == 2
    assert text_keys("\ud800" * 1000, root)


@any_speed(60)
@given(st.data())
def test_the_index_agrees_with_a_plain_model(data: st.DataObject) -> None:
    """Any order of stores, removals, clears, gaps and restarts of three instances, against sets of blocks."""
    index = KVIndex()
    truth: dict[int, set[tuple[int, ...]]] = {}
    seq = dict.fromkeys(range(3), 0)
    generation = dict.fromkeys(range(3), 0)
    prompts = [[*([0] * BLOCK * n), *([k] * BLOCK * 3)] for n in range(3) for k in range(3)]
    by_key = {}
    for prompt in prompts:
        for n, key in enumerate(engine_keys(prompt)):
            by_key[tuple(prompt[: (n + 1) * BLOCK])] = key

    def snapshot(slot: int) -> None:
        while index.sweep(2):
            pass
        blocks = sorted(truth[slot], key=len)
        kept = tuple(
            KVStored(
                parent=by_key[b[:-BLOCK]] if len(b) > BLOCK else None,
                keys=(by_key[b],),
                token_ids=b[-BLOCK:],
            )
            for b in blocks
        )
        assert index.apply(slot, KVSnapshot(generation=generation[slot], seq=seq[slot], stored=kept))

    for _ in range(data.draw(st.integers(1, 25))):
        slot = data.draw(st.integers(0, 2))
        action = data.draw(st.sampled_from(["store", "remove", "clear", "gap", "restart"]))
        if action == "restart" or slot not in truth:
            generation[slot] += 1
            truth[slot] = set()
            index.add(slot, generation[slot], MODEL, BLOCK, key_space="ab", events=True)
            snapshot(slot)
            continue
        seq[slot] += 1
        change: dict[str, Any] = {}
        if action == "store":
            prompt = data.draw(st.sampled_from(prompts))
            change["stored"] = (stored(prompt),)
            truth[slot] |= {tuple(prompt[:end]) for end in range(BLOCK, len(prompt) + 1, BLOCK)}
        elif action == "remove" and truth[slot]:
            longest = max(truth[slot], key=lambda b: (len(b), b))
            truth[slot].discard(longest)
            change["removed"] = (by_key[longest],)
        elif action == "clear":
            truth[slot].clear()
            change["cleared"] = True
        elif action == "gap":
            seq[slot] += 1
        if not index.events(slot, KVEvents(generation=generation[slot], seq=seq[slot], **change)):
            snapshot(slot)
        for prompt in prompts:
            keys = index.keys(MODEL, prompt)
            for holder, blocks in truth.items():
                for n, key in enumerate(keys):
                    held = index.device.get(key, 0) >> holder & 1
                    assert held == (tuple(prompt[: (n + 1) * BLOCK]) in blocks)

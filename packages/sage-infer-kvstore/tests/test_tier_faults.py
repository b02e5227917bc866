"""A lower store that raises, hangs, is full or loses blocks: memory goes on, and no wrong bytes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from sage_infer.errors import BackendUnavailable, ConfigError, InvalidRequest
from sage_infer_kvstore import PagedStore, TieredStore
from sage_infer_kvstore.tiers import base as module
from shared_user import KEYS, MODEL, SCHEMA, block, wrong

UPPER = 4


class Lower(PagedStore):
    """A store whose calls pass a gate, and go wrong where a test says."""

    def __init__(self, blocks: int = 16) -> None:
        self.fault: Callable[[str], Any] = lambda call: None
        self.calls: Counter[str] = Counter()
        super().__init__(schema=SCHEMA, model_id=MODEL, capacity_blocks=blocks)

    def _pass(self, call: str) -> None:
        self.calls[call] += 1
        self.fault(call)

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        self._pass("contains")
        return super().contains(keys)

    def get(self, keys: Sequence[bytes], out: Sequence[memoryview]) -> list[bool]:
        self._pass("get")
        return super().get(keys, out)

    def put(self, keys: Sequence[bytes], blocks: Sequence[memoryview]) -> int:
        self._pass("put")
        return super().put(keys, blocks)


def tiered(monkeypatch: pytest.MonkeyPatch, lower: Lower, **options: Any) -> TieredStore:
    monkeypatch.setattr(module, "open_kv_store", lambda *_, **__: lower)
    return TieredStore(
        schema=SCHEMA,
        model_id=MODEL,
        lower="fake",
        upper={"capacity_blocks": UPPER},
        **{"wait_s": 30.0, **options},
    )


def fill(store: Any, keys: Sequence[bytes]) -> int:
    count: int = store.put(keys, [block(key) for key in keys])
    return count


def got(store: Any, keys: Sequence[bytes]) -> list[bool]:
    assert not wrong(store, list(keys))
    out = [memoryview(bytearray(SCHEMA.bytes_per_page)) for _ in keys]
    found: list[bool] = store.get(keys, out)
    return found


@pytest.mark.parametrize("call", ["put", "get", "contains"])
@pytest.mark.parametrize("error", [OSError, SystemExit])
def test_a_lower_store_that_raises(
    monkeypatch: pytest.MonkeyPatch, call: str, error: type[BaseException]
) -> None:
    def fault(name: str) -> None:
        if name == call:
            raise error("broken")

    lower = Lower()
    store = tiered(monkeypatch, lower)
    fill(store, KEYS[:8])
    lower.fault = fault
    for turn in range(6):
        keys = KEYS[8 + 2 * turn : 10 + 2 * turn]
        assert fill(store, keys) == 2
        assert got(store, keys) == [True, True], "blocks in memory"
        got(store, KEYS[:8])
    assert store.failures >= (1 if call == "contains" else 3)
    assert store.stats().blocks >= 1
    store.close()


def test_a_lower_store_that_hangs_delays_no_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it has not answered for ``wait_s``, nobody waits for it any more."""
    lower, gate = Lower(), threading.Event()
    store = tiered(monkeypatch, lower)
    fill(store, KEYS[:2])
    store._flush(30.0)
    store._wait_s = store._thread._wait_s = 0.05
    lower.fault = lambda call: gate.wait()
    calls = lower.calls["contains"]
    assert store.contains(KEYS[20:21]) == [False]
    for turn in range(10):
        assert got(store, KEYS[:2]) == [True, True]
        assert store.match_keys(KEYS[:3]) == 2
        keys = KEYS[10 + turn : 11 + turn]
        assert fill(store, keys) == 1
        assert got(store, keys) == [True]
        got(store, KEYS[:2])
    assert lower.calls["contains"] <= calls + 1, "a store that hangs was called again"
    gate.set()
    store.close()


def test_a_full_lower_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps nothing: blocks live in memory alone, the oldest leave."""
    lower = Lower(8)
    store = tiered(monkeypatch, lower)
    other = KEYS[30:38]
    fill(lower, other)
    lower.pin(other)
    for key in KEYS[:10]:
        assert fill(store, [key]) == 1
        assert got(store, [key]) == [True]
    store._flush(30.0)
    assert 1 <= sum(store.contains(KEYS[:10])) <= UPPER
    assert not wrong(store, KEYS)  # type: ignore[arg-type]
    store.close()


def test_blocks_that_the_lower_store_lost_are_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    lower = Lower()
    store = tiered(monkeypatch, lower)
    fill(store, KEYS[:10])
    store._flush(30.0)
    assert lower.evict(100) == 10
    in_memory = [place is not None and place.tier == "dram" for place in store.locate(KEYS[:10])]
    assert sum(in_memory) == UPPER
    assert got(store, KEYS[:10]) == in_memory
    assert store.contains(KEYS[:10]) == in_memory
    store.close()


def test_slow_reads_do_not_write_to_buffers_of_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    lower, gate = Lower(), threading.Event()
    store = tiered(monkeypatch, lower)
    for key in KEYS[:8]:
        fill(store, [key])
        store._flush(30.0)
    (slow, *_) = [k for k, p in zip(KEYS[:8], store.locate(KEYS[:8]), strict=True) if p and p.tier == "ssd"]
    store._wait_s = store._thread._wait_s = 0.05
    lower.fault = lambda call: gate.wait() if call == "get" else None
    out = bytearray(SCHEMA.bytes_per_page)
    assert store.get([slow], [memoryview(out)]) == [False]
    gate.set()
    store._flush(30.0)
    assert not any(out), "a call that came late wrote to a buffer of a miss"
    store.close()


@pytest.mark.parametrize("write", ["through", "back"])
def test_blocks_survive_a_restart_on_disk(tmp_path: Path, write: str) -> None:
    def open_store() -> TieredStore:
        return TieredStore(
            schema=SCHEMA,
            model_id=MODEL,
            lower={"store": "ssd", "path": str(tmp_path), "capacity_blocks": 40},
            upper={"capacity_blocks": UPPER},
            write=write,
            wait_s=30.0,
        )

    first = open_store()
    assert fill(first, KEYS[:10]) == 10
    first.close()
    second = open_store()
    assert second.match_keys(KEYS[:12]) == 10
    assert got(second, KEYS[:10]) == [True] * 10
    assert UPPER <= second.prefetch(KEYS[:10]) <= 10, "no more than memory has room for"
    second.close()


def test_what_is_used_stays_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    store = tiered(monkeypatch, Lower(40))
    fill(store, KEYS[:UPPER])
    for key in KEYS[10:30]:
        fill(store, [key])
        store._flush(30.0)
        got(store, KEYS[:1])
    (place,) = store.locate(KEYS[:1])
    assert place is not None
    assert place.tier == "dram"
    store.close()


def test_threads_and_faults_together(monkeypatch: pytest.MonkeyPatch) -> None:
    lower = Lower(12)
    store = tiered(monkeypatch, lower)
    turn = iter(range(10**9))

    def fault(call: str) -> None:
        if next(turn) % 7 == 0:
            raise OSError("now and then")

    lower.fault = fault
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for i in range(60):
                keys = [KEYS[(seed * 7 + i * j) % len(KEYS)] for j in (1, 3)]
                keys = list(dict.fromkeys(keys))
                fill(store, keys)
                assert not wrong(store, keys)  # type: ignore[arg-type]
                held = [k for k, hit in zip(keys, store.pin(keys, lease_s=0.01), strict=True) if hit]
                store.prefetch(keys)
                store.unpin(held)
                store.evict(i % 2)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not any(thread.is_alive() for thread in threads), "a deadlock"
    assert not errors, errors
    store.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lower_tier": "tape"}, "lower_tier"),
        ({"write": "twice"}, "through or back"),
        ({"high_watermark": 2.0}, "between 0 and 1"),
        ({"policy": "fifo"}, "lru, hotness, reuse, slo or recompute"),
        ({"upper": {"policy": "reuse"}}, "leave upper.policy out"),
        ({"upper": {"name": "shared"}}, "one process"),
        ({"lower": {"path": "/tmp"}}, "store: NAME"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TieredStore(schema=SCHEMA, model_id=MODEL, **{"lower": "paged", **options})


def test_an_unknown_lower_store_is_refused() -> None:
    with pytest.raises(BackendUnavailable, match="nothing"):
        TieredStore(schema=SCHEMA, model_id=MODEL, lower="nothing")


def test_a_closed_store_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    store = tiered(monkeypatch, Lower())
    store.close()
    store.close()
    with pytest.raises(InvalidRequest, match="closed"):
        store.contains(KEYS[:1])

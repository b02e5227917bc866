"""A server that stops, hangs, dawdles, lies, forgets or is full: misses or errors, no wrong bytes, no hang."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from children import ended, forked
from sage_infer.contracts import key_space
from sage_infer.errors import BackendUnavailable, ConfigError, InvalidRequest
from sage_infer.sdk.kv_pages.setting import open_kv_store
from sage_infer_kvstore import TieredStore, breaker
from shared_user import BLOCKS, KEYS, MODEL, SCHEMA, block, wrong
from valkey_server import ValkeyServer, ValkeyStore, running_server

KILLS = int(os.environ.get("SAGE_KV_KILLS", "20"))
LIES = 200
HIT = b"block:"


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    with running_server() as running:
        yield running


@pytest.fixture
def mortal() -> Iterator[ValkeyServer]:
    """A server that the test may stop."""
    with running_server() as running:
        yield running


def opened(server: ValkeyServer, **options: Any) -> ValkeyStore:
    given = {"namespace": uuid.uuid4().hex, "capacity_blocks": BLOCKS, "timeout_s": 60.0, **options}
    return ValkeyStore(schema=SCHEMA, model_id=MODEL, url=server.url, **given)


def fill(store: Any, keys: list[bytes]) -> int:
    count: int = store.put(keys, [block(key) for key in keys])
    return count


def until(answer: Callable[[], bool]) -> None:
    """Ask until it is so; errors of a server that is not back yet do not count."""
    while True:
        with contextlib.suppress(BackendUnavailable):
            if answer():
                return


# --- lies


def test_values_that_were_changed_are_misses(server: ValkeyServer) -> None:
    store, client, rng = opened(server), server.client(), random.Random(7)

    def lie(kind: int, key: bytes) -> None:
        name = next(name for name in client.keys(b"*" + HIT + b"*") if name.endswith(key))
        value = bytearray(client.get(name) or b"")
        if kind == 0:
            value[rng.randrange(len(value))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del value[rng.randrange(len(value)) :]
        elif kind == 2:
            value = bytearray(client.get(name[:-16] + other) or b"")
        elif kind == 3:
            value += b"\0"
        elif kind == 4:
            value[40:] = bytes(len(value) - 40)
        client.delete(name)
        if kind == 5:
            client.lpush(name, b"a list")
        else:
            client.set(name, bytes(value))

    client.flushall()
    for turn in range(LIES):
        key, other = rng.sample(KEYS, 2)
        fill(store, [key, other])
        lie(turn % 6, key)
        out = [memoryview(bytearray(SCHEMA.bytes_per_page)) for _ in range(2)]
        assert store.get([key, other], out) == [False, True], f"lie {turn % 6}"
        assert not any(out[0]), "a miss changed its buffer"
        assert out[1] == block(other)
    assert store.stats().corrupt >= LIES // 2
    store.close()


def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that does not speak the protocol, by its URL."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer, contextlib.suppress(OSError):
                peer.recv(1 << 16)
                answer(peer)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"valkey://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


def test_a_server_that_dawdles_is_cut_off() -> None:
    """Each byte comes in time, and the answer never ends."""
    stopped = threading.Event()

    def dawdle(peer: socket.socket) -> None:
        while not stopped.wait(0.02):
            peer.send(b"+")

    for url in answering(dawdle):
        with pytest.raises(BackendUnavailable, match="KV server at valkey://127"):
            ValkeyStore(schema=SCHEMA, model_id=MODEL, url=url, capacity_blocks=4, timeout_s=0.5)
        stopped.set()


def test_a_server_that_answers_nonsense_is_an_error() -> None:
    rng = random.Random(3)
    answers = [
        b":1\r\n",
        b"$-1\r\n",
        b"*1\r\n:0\r\n",
        b"*2\r\n$1\r\nx\r\n:0\r\n",
        b"-ERR no\r\n",
        b"\r\n",
        b"",
    ]
    answers += [rng.randbytes(rng.randrange(1, 200)) + b"\r\n" for _ in range(20)]
    for said in answers:
        for url in answering(lambda peer, said=said: peer.sendall(said)):  # type: ignore[misc]
            with pytest.raises(BackendUnavailable):
                ValkeyStore(schema=SCHEMA, model_id=MODEL, url=url, capacity_blocks=4, timeout_s=0.5)


def test_answers_of_another_form_are_errors(server: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(server)
    fill(store, KEYS[:2])
    out = [memoryview(bytearray(SCHEMA.bytes_per_page)) for _ in range(2)]
    monkeypatch.setattr("valkey.client.Pipeline.execute", lambda _: [b"11", [b"one"]])
    with pytest.raises(BackendUnavailable, match="expected 2 values"):
        store.get(KEYS[:2], out)
    monkeypatch.setattr("valkey.client.Valkey.eval", lambda *_: b"1")
    with pytest.raises(BackendUnavailable, match="expected 3 flags"):
        store.contains(KEYS[:3])
    store.close()


# --- a server that is away


def test_a_server_that_was_killed_is_left_alone(
    mortal: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "_PAUSE_S", 3600.0)
    store = opened(mortal)
    assert fill(store, KEYS[:4]) == 4
    before = store.stats()
    mortal.stop()
    calls: list[Callable[[], object]] = [
        lambda: store.contains(KEYS[:1]),
        lambda: wrong(store, KEYS[:4]),
        lambda: fill(store, KEYS[4:6]),
    ]
    for call in calls:
        with pytest.raises(BackendUnavailable, match="no answer"):
            call()
    assert store.failures == 3
    assert store.stats() == before, "counters of a server that is away"
    mortal.start()
    with pytest.raises(BackendUnavailable, match=r"left alone for 3\d\d\d more seconds"):
        store.contains(KEYS[:1])
    assert store.failures == 3, "the server was asked meanwhile"
    monkeypatch.setattr(breaker.Breaker, "is_open", False)
    until(lambda: store.contains(KEYS[:4]) == [False] * 4)  # it has forgotten them
    assert fill(store, KEYS[:4]) == 4
    assert not wrong(store, KEYS)
    store.close()


def test_a_server_that_hangs(mortal: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that comes after its time answers no later question."""
    monkeypatch.setattr(breaker, "_PAUSE_S", 0.0)
    store = opened(mortal, timeout_s=0.3)
    until(lambda: fill(store, KEYS[:4]) == 4)
    mortal.freeze()
    for key in KEYS[:2]:
        with pytest.raises(BackendUnavailable):
            wrong(store, [key])
    mortal.thaw()
    until(lambda: store.contains(KEYS[:6]) == [True] * 4 + [False] * 2)
    until(lambda: not wrong(store, KEYS[2:4]))
    store.close()


@pytest.mark.parametrize("kind", ["killed", "frozen"])
def test_below_memory_it_costs_reuse_only(mortal: ValkeyServer, kind: str) -> None:
    store = TieredStore(
        schema=SCHEMA,
        model_id=MODEL,
        lower={"store": "valkey", "url": mortal.url, "capacity_blocks": BLOCKS, "timeout_s": 30.0},
        lower_tier="remote",
        upper={"capacity_blocks": 4},
        wait_s=30.0,
    )
    for key in KEYS[:8]:
        assert fill(store, [key]) == 1
    store._flush(30.0)
    places = [place.tier for place in store.locate(KEYS[:8]) if place]
    assert sorted(places) == ["dram"] * 4 + ["remote"] * 4
    store._wait_s = store._thread._wait_s = 0.3
    (mortal.stop if kind == "killed" else mortal.freeze)()
    out = [memoryview(bytearray(SCHEMA.bytes_per_page)) for _ in range(8)]
    for _ in range(4):
        in_memory = [place is not None and place.tier == "dram" for place in store.locate(KEYS[:8])]
        assert sum(in_memory) == 4
        assert store.get(KEYS[:8], out) == in_memory
        assert not wrong(store, KEYS)  # type: ignore[arg-type]
    assert fill(store, [KEYS[20]]) <= 1
    assert not wrong(store, KEYS)  # type: ignore[arg-type]
    mortal.stop()
    store.close()


# --- a server that is full


@pytest.mark.parametrize("policy", ["allkeys-lru", "noeviction"])
def test_a_server_without_memory(policy: str) -> None:
    """It evicts values by itself, or refuses them: both are misses."""
    with running_server("--maxmemory", "4mb", "--maxmemory-policy", policy) as small:
        store = opened(small, capacity_blocks=10_000)
        stored = sum(fill(store, [i.to_bytes(16, "little")]) for i in range(600))
        assert stored > 0
        held = sum(store.contains([i.to_bytes(16, "little") for i in range(600)]))
        assert 0 < held < 600
        if policy == "noeviction":
            assert stored == held == 600 - store.stats().dropped
        keys = [i.to_bytes(16, "little") for i in range(600)]
        out = [memoryview(bytearray(SCHEMA.bytes_per_page)) for _ in keys]
        found = store.get(keys, out)
        assert 0 < sum(found) <= held
        assert all(page == block(key) for key, page, hit in zip(keys, out, found, strict=True) if hit)
        store.close()


def test_maxmemory_is_the_capacity_of_a_store_without_one() -> None:
    with running_server("--maxmemory", "64mb") as bounded:
        store = opened(bounded, capacity_blocks=None)
        assert 3000 < store.stats().capacity_blocks < 64 * 2**20 / SCHEMA.bytes_per_page
        store.close()


def test_a_server_without_bound_is_refused(server: ValkeyServer) -> None:
    with pytest.raises(ConfigError, match="has no maxmemory"):
        opened(server, capacity_blocks=None)


# --- several processes


def test_stores_share_blocks_and_pins(server: ValkeyServer) -> None:
    one, other = (opened(server, namespace="shared", capacity_blocks=4) for _ in range(2))
    assert fill(one, KEYS[:3]) == 3
    assert other.match_keys(KEYS[:4]) == 3
    assert other.pin(KEYS[:2]) == [True, True]
    assert one.evict(10) == 1
    assert one.stats().pinned_blocks == 2
    assert fill(one, KEYS[10:16]) == 2, "two of four places are pinned"
    assert one.contains(KEYS[:2]) == [True, True]
    other.unpin(KEYS[:2])
    assert one.evict(10) == 4
    for store in (one, other):
        store.close()


def test_large_calls_go_in_batches(server: ValkeyServer) -> None:
    store = opened(server, capacity_blocks=len(KEYS), batch_mb=3.5 * SCHEMA.bytes_per_page / 2**20)
    assert fill(store, KEYS) == len(KEYS)
    assert store.contains(KEYS * 200) == [True] * (200 * len(KEYS))
    assert not wrong(store, KEYS)
    assert store.stats().blocks == len(KEYS)
    store.close()


def test_writers_that_are_killed_leave_whole_blocks(server: ValkeyServer) -> None:
    client, rng = server.client(), random.Random(11)
    client.flushall()

    def write() -> None:
        store = opened(server, namespace="killed", batch_mb=0.1)
        print("ready", flush=True)
        while True:
            fill(store, rng.sample(KEYS, 5))

    for _ in range(KILLS):
        child = forked(write)
        threading.Event().wait(rng.random() / 20)
        os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL
        store = opened(server, namespace="killed")
        assert not wrong(store, KEYS)
        assert store.stats().corrupt == 0
        values = len(client.keys(b"{killed:*" + HIT + b"*"))
        assert store.stats().blocks == values <= BLOCKS
        store.close()


# --- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "http://127.0.0.1"}, "scheme 'http'"),
        ({"url": 6379}, "url must be"),
        ({"url": "valkey://127.0.0.1/zero"}, "must be a number"),
        ({"url": "unix:///tmp/s?db=0&socket_timeout=9"}, "socket_timeout"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"batch_mb": "much"}, "batch_mb"),
        ({"capacity_blocks": 0}, "capacity_blocks"),
        ({"password_env": "SAGE_TEST_UNSET"}, "not set"),
    ],
)
def test_options_are_checked(server: ValkeyServer, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ValkeyStore(
            schema=SCHEMA,
            model_id=MODEL,
            **{"url": server.url, "capacity_blocks": 4, "timeout_s": 60.0, **options},
        )


def test_the_password_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_server("--requirepass", "quokka") as guarded:
        with pytest.raises(BackendUnavailable) as caught:
            opened(guarded)
        assert "Authentication required" in str(caught.value)
        monkeypatch.setenv("SAGE_TEST_PASSWORD", "quokka")
        store = opened(guarded, password_env="SAGE_TEST_PASSWORD")
        assert fill(store, KEYS[:1]) == 1
        store.close()
        monkeypatch.setenv("SAGE_TEST_PASSWORD", "wallaby")
        with pytest.raises(BackendUnavailable) as caught:
            opened(guarded, password_env="SAGE_TEST_PASSWORD")
        assert "wallaby" not in str(caught.value)


def test_a_server_that_is_not_there() -> None:
    settings = {"store": "valkey", "url": "unix:///nowhere/s", "capacity_blocks": 4}
    with pytest.raises(BackendUnavailable, match="KV server at unix:///nowhere/s"):
        open_kv_store(settings, schema=SCHEMA, model_id=MODEL)


def test_models_have_blocks_of_their_own(server: ValkeyServer) -> None:
    one = opened(server, namespace="models")
    other = ValkeyStore(
        schema=SCHEMA, model_id="other", url=server.url, namespace="models", capacity_blocks=4, timeout_s=60.0
    )
    fill(one, KEYS[:2])
    assert other.contains(KEYS[:2]) == [False, False]
    assert server.client().keys(f"{{models:{key_space(MODEL, SCHEMA)[:16]}}}:block:*")
    one.close()
    other.close()
    other.close()
    with pytest.raises(InvalidRequest, match="closed"):
        one.contains(KEYS[:1])

"""One arena used by several real processes, some of which are killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from children import ended, forked
from sage_infer.errors import ConfigError, InvalidRequest, OutOfMemory
from sage_infer.schemas import KVCacheSchema
from sage_infer_kvstore import PagedStore
from shared_user import BLOCKS, KEYS, MODEL, SCHEMA, block, open_shared, use, work, wrong

KILLS = int(os.environ.get("SAGE_KV_KILLS", "20"))
USER = Path(__file__).with_name("shared_user.py")


@pytest.fixture
def name() -> Iterator[str]:
    found = f"test-{uuid.uuid4().hex}"
    yield found
    left = files(found)
    for path in left:
        path.unlink()
    assert not left, f"left in shared memory: {left}"


def files(name: str) -> list[Path]:
    return list(Path("/dev/shm").glob(f"sage-kv-{name}-*"))


def kill(child: subprocess.Popen[str]) -> None:
    child.kill()
    with child:
        child.communicate()


def hold(name: str) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, str(USER), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "holding\n"
    return child


def test_another_process_finds_the_blocks(name: str) -> None:
    child = hold(name)
    store = open_shared(name)
    assert store.contains(KEYS[:6]) == [True] * 4 + [False] * 2
    assert not wrong(store, KEYS[:4])
    assert store.evict(BLOCKS) == 1, "the other process's pins hold"
    store.close()
    assert len(files(name)) == 2, "the arena was removed while a process uses it"
    child.communicate(timeout=600)
    assert child.returncode == 0


def test_what_a_dead_process_held_is_free_again(name: str) -> None:
    child = hold(name)
    store = open_shared(name)
    assert store.stats().pinned_blocks == 3
    assert store.reserve(KEYS[4:5]) == [None]
    kill(child)
    assert store.reserve(KEYS[4:5]) != [None]
    store.discard(KEYS[4:5])
    assert store.evict(BLOCKS) == 4
    keys = KEYS[10 : 10 + BLOCKS]
    assert store.put(keys, [block(key) for key in keys]) == BLOCKS, "slots that it had reserved are lost"
    store.close()


def test_the_next_process_continues_after_a_crash(name: str) -> None:
    kill(hold(name))
    store = open_shared(name)
    assert store.contains(KEYS[:4]) == [True] * 4
    assert not wrong(store, KEYS[:4])
    keys = KEYS[10 : 10 + BLOCKS]
    assert store.put(keys, [block(key) for key in keys]) == BLOCKS, "slots of the dead process are lost"
    store.close()


def test_kept_blocks_wait_for_the_next_process(name: str) -> None:
    first = PagedStore(schema=SCHEMA, model_id=MODEL, name=name, capacity_blocks=BLOCKS, keep=True)
    first.put(KEYS[:1], [block(KEYS[0])])
    first.close()
    second = PagedStore(schema=SCHEMA, model_id=MODEL, name=name)
    assert second.stats().capacity_blocks == BLOCKS
    assert second.contains(KEYS[:1]) == [True]
    assert not wrong(second, KEYS[:1])
    second.close()


def test_killed_processes_corrupt_nothing(name: str) -> None:
    """Children that work on the arena are killed at random instants; nobody ever sees wrong bytes."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    store = open_shared(name)
    children = [forked(lambda i=i: work(name, f"{seed}-{i}")) for i in range(2)]
    try:
        for kills in range(KILLS):
            for _ in range(rng.randrange(1, 60)):
                use(store, rng)
            victim = children.pop(0)
            os.kill(victim, signal.SIGKILL)
            assert ended(victim) == -signal.SIGKILL, f"seed {seed}: a child saw wrong bytes, or failed"
            assert not wrong(store, KEYS), f"seed {seed}, kill {kills}"
            children.append(forked(lambda kills=kills: work(name, f"{seed}-{kills}-next")))
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            ended(child)
    store.evict(BLOCKS)
    keys = KEYS[:BLOCKS]
    assert store.put(keys, [block(key) for key in keys]) == BLOCKS, f"seed {seed}: slots are lost"
    store.close()


def test_an_arena_of_another_size_is_refused(name: str) -> None:
    store = open_shared(name)
    with pytest.raises(ConfigError, match=f"room for {BLOCKS} blocks, not 3"):
        PagedStore(schema=SCHEMA, model_id=MODEL, name=name, capacity_blocks=3)
    store.close()


def test_models_and_schemas_do_not_share(name: str) -> None:
    other_schema = KVCacheSchema.from_preset("bf16", num_layers=2, num_heads=2, head_dim=64, page_size=16)
    stores = [
        open_shared(name),
        PagedStore(schema=SCHEMA, model_id="other", name=name, capacity_blocks=2),
        PagedStore(schema=other_schema, model_id=MODEL, name=name, capacity_blocks=2),
    ]
    stores[0].put(KEYS[:1], [block(KEYS[0])])
    assert [store.contains(KEYS[:1]) for store in stores] == [[True], [False], [False]]
    for store in stores:
        store.close()


def test_another_format_version_is_refused(name: str) -> None:
    store = open_shared(name)
    (index,) = Path("/dev/shm").glob(f"sage-kv-{name}-*.index")
    with index.open("r+b") as file:
        file.write((99).to_bytes(8, "little"))
    with pytest.raises(ConfigError, match="another version"):
        open_shared(name)
    store.close()


def test_too_much_memory_is_refused(name: str) -> None:
    with pytest.raises(OutOfMemory, match="lower capacity_gb"):
        PagedStore(schema=SCHEMA, model_id=MODEL, name=name, capacity_gb=2.0**20)


@pytest.mark.parametrize("bad", ["a/b", "..", " ", "x" * 65, 3])
def test_names_are_checked(bad: object) -> None:
    with pytest.raises(ConfigError, match="name must be"):
        PagedStore(schema=SCHEMA, model_id=MODEL, name=bad, capacity_blocks=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity_gb": 0}, "above 0"),
        ({"capacity_gb": 1e-9}, "raise capacity_gb"),
        ({"capacity_blocks": 0}, "whole number"),
        ({"capacity_blocks": 2, "capacity_gb": 1}, "both"),
    ],
)
def test_sizes_are_checked(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PagedStore(schema=SCHEMA, model_id=MODEL, **options)  # type: ignore[arg-type]


def test_a_closed_store_is_refused() -> None:
    store = PagedStore(schema=SCHEMA, model_id=MODEL, capacity_blocks=2)
    store.close()
    for call in (store.stats, store.region, lambda: store.evict(1), lambda: store.contains(KEYS[:1])):
        with pytest.raises(InvalidRequest, match="closed"):
            call()


def test_keys_of_another_length_are_refused() -> None:
    store = PagedStore(schema=SCHEMA, model_id=MODEL, capacity_blocks=2)
    with pytest.raises(InvalidRequest, match="16"):
        store.contains([b"short"])


def test_a_fork_does_not_use_the_parents_locks(name: str) -> None:
    store = open_shared(name)

    def child() -> None:
        print("ready", flush=True)
        with pytest.raises(InvalidRequest, match="open it again in the child"):
            store.stats()
        store.close()

    assert ended(forked(child)) == 0
    store.put(KEYS[:1], [block(KEYS[0])])
    store.close()

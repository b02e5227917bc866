"""A process that uses a shared arena until it is killed: ``shared_user.py NAME``."""

from __future__ import annotations

import hashlib
import random
import sys

from sage_infer.schemas import KVCacheSchema
from sage_infer_kvstore import PagedStore

SCHEMA = KVCacheSchema.from_preset("fp16", num_layers=2, num_heads=2, head_dim=64, page_size=16)
MODEL = "shared-test"
BLOCKS = 16
KEYS = [hashlib.blake2b(b"%d" % i, digest_size=16).digest() for i in range(3 * BLOCKS)]


def block(key: bytes) -> memoryview:
    return memoryview(hashlib.shake_128(key).digest(SCHEMA.bytes_per_page))


def open_shared(name: str) -> PagedStore:
    return PagedStore(schema=SCHEMA, model_id=MODEL, name=name, capacity_blocks=BLOCKS)


def wrong(store: PagedStore, keys: list[bytes]) -> list[bytes]:
    """Keys whose blocks came back with other bytes."""
    out = [bytearray(SCHEMA.bytes_per_page) for _ in keys]
    found = store.get(keys, [memoryview(buffer) for buffer in out])
    return [k for k, buffer, hit in zip(keys, out, found, strict=True) if hit and buffer != block(k)]


def use(store: PagedStore, rng: random.Random) -> None:
    keys = rng.sample(KEYS, 3)
    what = rng.randrange(5)
    if what == 0:
        store.put(keys, [block(key) for key in keys])
    elif what == 1 and (bad := wrong(store, keys)):
        print(f"wrong bytes: {bad}", flush=True)
        sys.exit(3)
    elif what == 2:
        held = [key for key, slot in zip(keys, store.acquire(keys), strict=True) if slot is not None]
        store.release(held)
    elif what == 3:
        store.evict(1)
    else:
        mine = [key for key, slot in zip(keys, store.reserve(keys), strict=True) if slot is not None]
        store.discard(mine)


def work(name: str, seed: str) -> None:
    """Use the arena until killed; exit with 3 where wrong bytes come back."""
    store, rng = open_shared(name), random.Random(seed)
    print("ready", flush=True)
    while True:
        use(store, rng)


def hold(name: str) -> None:
    """Leave all that a process can leave, and wait."""
    store, held = open_shared(name), KEYS[:4]
    store.put(held, [block(key) for key in held])
    store.pin(held[:2])
    store.acquire(held[2:3], lease_s=3600.0)
    store.reserve(KEYS[4:6])
    print("holding", flush=True)
    sys.stdin.read()
    store.close()


if __name__ == "__main__":
    hold(sys.argv[1])

"""KV stores against what they are made of: memcpy, fio, and the hash alone.

    python benchmarks/kvstore.py [--rounds 8] [--folder FOLDER] [--json results.json]

Memory: ``put`` and ``get`` of ``paged`` against NumPy's copies (the C library's memcpy) between buffers of these
pages. Disk: ``put`` and ``get`` of ``ssd`` in batches of eight blocks against fio with the same block size, four
requests in flight and direct I/O (Debian's fio; left out where it is not installed). Look-up: keys of a prefix of
8,192 tokens in pages of 128, with 1 and with 10 times the blocks, and where all but the last page was hashed before.
Rounds alternate which side runs first, and ratios are taken per round, so that other load on the machine affects both
sides.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sage_infer.contracts import KeyChain, KVStore, block_keys
from sage_infer.schemas import KVCacheSchema
from sage_infer_kvstore import PagedStore, SSDStore
from sage_infer_kvstore.paged.layout import index_bytes
from sage_infer_kvstore.quantized.codec import PageCodec
from sage_infer_kvstore.ssd.record import Layout

# SmolLM2-135M in float32, pages of 32: 1.4 MiB each.
SCHEMA = KVCacheSchema(dtype="fp32", page_size=32, num_layers=30, num_heads=3, head_dim=64)
SIZE = SCHEMA.bytes_per_page
SMALL = KVCacheSchema(dtype="int8", page_size=128, num_layers=1, num_heads=1, head_dim=1, scale_dtype="fp16")
PAGES, DISK_PAGES, TOGETHER, IN_FLIGHT = 64, 128, 8, 4
PREFIX = 8192


def rate(run: Callable[[], object], nbytes: int, repeat: int = 1) -> float:
    """GB/s of the best run."""
    return nbytes / best_us(run, repeat) / 1e3


def keys_of(count: int, salt: int = 0) -> list[bytes]:
    return [salt.to_bytes(8, "little") + i.to_bytes(8, "little") for i in range(count)]


def buffers(count: int) -> list[memoryview]:
    """Buffers that begin with a page of memory, as those of the engines' ``KVBroker`` do."""
    rng, made = np.random.default_rng(1), [memoryview(mmap.mmap(-1, SIZE)) for _ in range(count)]
    for buffer in made:
        buffer[:] = rng.integers(0, 256, SIZE, np.uint8).data
    return made


class Memory:
    """``paged`` and plain copies, over buffers that have been touched."""

    def __init__(self) -> None:
        self.store = PagedStore(schema=SCHEMA, model_id="bench", capacity_blocks=PAGES)
        self.given, self.out = buffers(PAGES), buffers(PAGES)
        self.plain = [np.frombuffer(page, np.uint8) for page in buffers(PAGES)]
        numbers = np.random.default_rng(2).normal(0, 1, SIZE // 4).astype(np.float32)
        self.floats = numbers.view(np.uint8)
        self.codec = PageCodec(SCHEMA, dtype="int8", granularity="token_head")
        self.small = np.empty(self.codec.schema.bytes_per_page, np.uint8)
        self.turn = 0
        self.put()

    def put(self) -> None:
        self.turn += 1
        self.keys = keys_of(PAGES, self.turn)  # new ones, which evict those before
        assert self.store.put(self.keys, self.given) == PAGES

    def copy_in(self) -> None:
        for target, source in zip(self.plain, self.given, strict=True):
            target[:] = np.frombuffer(source, np.uint8)

    def get(self) -> None:
        assert all(self.store.get(self.keys, self.out))

    def quantize(self) -> None:
        assert self.codec.encode(self.floats, self.small)

    def dequantize(self) -> None:
        """After ``quantize``."""
        self.codec.decode(self.small, self.plain[0])

    def copy_one(self) -> None:
        self.plain[1][:] = self.plain[2]

    def copy_out(self) -> None:
        for target, source in zip(self.out, self.plain, strict=True):
            np.frombuffer(target, np.uint8)[:] = source


def disk_rates(folder: Path) -> dict[str, float]:
    given, out, keys = buffers(TOGETHER), buffers(TOGETHER), keys_of(DISK_PAGES)
    with tempfile.TemporaryDirectory(dir=folder) as path:
        store = SSDStore(schema=SCHEMA, model_id="bench", path=path, capacity_blocks=4 * DISK_PAGES)

        def each(call: Callable[[list[bytes]], object]) -> None:
            for at in range(0, DISK_PAGES, TOGETHER):
                call(keys[at : at + TOGETHER])

        write = rate(lambda: each(lambda some: store.put(some, given)), DISK_PAGES * SIZE)
        read = rate(lambda: each(lambda some: store.get(some, out)), DISK_PAGES * SIZE)
        assert store.stats().blocks == DISK_PAGES
        store.close()
    return {"write": write, "read": read}


def fio_rates(folder: Path) -> dict[str, float]:
    found, payload = {}, Layout(SIZE, 1).payload_bytes
    with tempfile.TemporaryDirectory(dir=folder) as path:
        for kind in ("write", "read"):
            command = [
                "fio", "--output-format=json", "--name=kv", f"--filename={path}/file", f"--rw={kind}",
                f"--size={DISK_PAGES * payload}", f"--bs={payload}", f"--iodepth={IN_FLIGHT}",
                "--ioengine=libaio", "--direct=1", "--fallocate=native",
            ]  # fmt: skip
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found[kind] = json.loads(printed)["jobs"][0][kind]["bw_bytes"] / 1e9
    return found


def filled(blocks: int, keys: list[bytes]) -> KVStore:
    """A store of small blocks that holds ``keys`` and is full."""
    store = PagedStore(schema=SMALL, model_id="bench", capacity_blocks=blocks)
    page = memoryview(bytes(SMALL.bytes_per_page))
    others = [os.urandom(16) for _ in range(blocks - len(keys))]
    for at in range(0, len(others), 1000):
        some = others[at : at + 1000]
        store.put(some, [page] * len(some))
    store.put(keys, [page] * len(keys))
    return store


def best_us(run: Callable[[], object], repeat: int = 5) -> float:
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times) * 1e6


def tail_us(store: KVStore, tokens: list[int], repeat: int = 5) -> float:
    """Look-up of a prefix of which all but the last block was hashed before."""
    chains = []
    for _ in range(repeat):
        chains.append(KeyChain("bench", SMALL))
        chains[-1].extend(tokens[: -SMALL.page_size])

    def run() -> None:
        chain = chains.pop()
        chain.extend(tokens[chain.length :])
        assert store.match_keys(chain.keys) == len(chain.keys)

    return best_us(run, repeat)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="folder on the measured disk")
    parser.add_argument("--blocks", type=int, default=100_000, help="blocks of the smaller look-up")
    parser.add_argument("--json", type=Path, help="write all readings here")
    options = parser.parse_args()
    has_fio = shutil.which("fio") is not None
    if not has_fio:
        print("fio is not installed: the disk is not measured (apt-get install fio)", file=sys.stderr)
    tokens = list(range(PREFIX))
    keys = list(block_keys("bench", SMALL, tokens))
    few, many = filled(options.blocks, keys), filled(10 * options.blocks, keys)
    memory, readings, nbytes = Memory(), [], PAGES * SIZE

    def copy_one() -> float:
        return rate(memory.copy_one, SIZE, 9)

    for number in range(options.rounds):
        pairs: list[tuple[str, Callable[[], float], Callable[[], float]]] = [
            ("memory put, GB/s", lambda: rate(memory.put, nbytes, 5), lambda: rate(memory.copy_in, nbytes, 5)),
            ("memory get, GB/s", lambda: rate(memory.get, nbytes, 5), lambda: rate(memory.copy_out, nbytes, 5)),
            ("int8 quantize / memcpy of fp32, GB/s", lambda: rate(memory.quantize, SIZE, 9), copy_one),
            ("int8 dequantize / memcpy of fp32, GB/s", lambda: rate(memory.dequantize, SIZE, 9), copy_one),
            (
                f"look-up of {len(keys)} keys, µs: 10 times the blocks / {options.blocks:,} blocks",
                lambda: best_us(lambda: many.match_keys(keys)), lambda: best_us(lambda: few.match_keys(keys)),
            ),
            (
                f"{PREFIX:,} tokens, µs: hash and look-up / hash alone",
                lambda: best_us(lambda: many.match(tokens)),
                lambda: best_us(lambda: list(block_keys("bench", SMALL, tokens))),
            ),
            (
                f"{PREFIX:,} tokens, µs: look-up and hash of the last {SMALL.page_size} / of all",
                lambda: tail_us(many, tokens),
                lambda: best_us(lambda: many.match(tokens)),
            ),
        ]  # fmt: skip
        reading: dict[str, tuple[float, float]] = {}
        for name, ours, theirs in pairs:
            peer = theirs() if number % 2 else None
            reading[name] = (ours(), theirs() if peer is None else peer)
        if has_fio:
            sides = [disk_rates, fio_rates] if number % 2 else [fio_rates, disk_rates]
            rates = {side: side(options.folder) for side in sides}
            for kind in ("write", "read"):
                reading[f"disk {kind}, GB/s"] = (rates[disk_rates][kind], rates[fio_rates][kind])
        readings.append(reading)
        print(f"round {number + 1} of {options.rounds} …", file=sys.stderr)
    print(f"{'':<68}{'ours':>10}{'peer':>10}   ratio, median (min to max)")
    for name in readings[0]:
        ours_all, theirs_all = zip(*(reading[name] for reading in readings), strict=True)
        ratios = [our / their for our, their in zip(ours_all, theirs_all, strict=True)]
        print(
            f"{name:<68}{statistics.median(ours_all):10.2f}{statistics.median(theirs_all):10.2f}   "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    print(f"index at 1,000,000 blocks: {index_bytes(1_000_000) / 1e6:.0f} bytes per block")
    if options.json:
        options.json.write_text(json.dumps(readings, indent=2) + "\n")


if __name__ == "__main__":
    main()

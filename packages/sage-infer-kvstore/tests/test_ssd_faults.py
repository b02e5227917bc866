"""Blocks on disk after crashes, damage, and on disks that are full or read-only: right bytes or a miss."""

from __future__ import annotations

import errno
import mmap
import os
import random
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
from children import ended, forked
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sage_infer.errors import ConfigError, InvalidRequest
from sage_infer_kvstore import SSDStore
from shared_user import KEYS, MODEL, SCHEMA, block, wrong

KILLS = int(os.environ.get("SAGE_KV_KILLS", "20"))


def open_ssd(path: Path, blocks: int = 64, **options: Any) -> SSDStore:
    return SSDStore(schema=SCHEMA, model_id=MODEL, path=str(path), capacity_blocks=blocks, **options)


def fill(store: SSDStore, keys: list[bytes]) -> int:
    return store.put(keys, [block(key) for key in keys])


def segments(path: Path) -> list[Path]:
    return sorted(path.rglob("segment-*.kv"))


def test_blocks_survive_a_restart(tmp_path: Path) -> None:
    first = open_ssd(tmp_path)
    assert fill(first, KEYS) == len(KEYS)
    first.close()
    second = open_ssd(tmp_path)
    assert second.contains(KEYS) == [True] * len(KEYS)
    assert not wrong(second, KEYS)  # type: ignore[arg-type]
    assert second.stats().corrupt == 0
    second.close()


def test_kills_at_random_instants(tmp_path: Path) -> None:
    """What a child reported as stored is there after it was killed; nothing comes back with other bytes."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    stored: set[bytes] = set()
    for kills in range(KILLS):
        reader, writer = os.pipe()

        def child(kills: int = kills, writer: int = writer) -> None:
            store, mine = open_ssd(tmp_path), random.Random(f"{seed}-{kills}")
            print("ready", flush=True)
            while True:
                keys = mine.sample(KEYS, 3)
                for key, held in zip(keys, store.contains(keys), strict=True):
                    if not held:
                        fill(store, [key])
                        os.write(writer, key)
                if mine.random() < 0.2:
                    os.write(writer, b"evicted".ljust(16, b"."))  # before: it may be killed in between
                    store.evict(mine.randrange(4))

        process = forked(child)
        os.close(writer)
        with os.fdopen(reader, "rb") as lines:
            said = lines.read(16 * rng.randrange(1, 40))
            os.kill(process, signal.SIGKILL)
            assert ended(process) == -signal.SIGKILL, f"seed {seed}: the child failed"
            said += lines.read()
        store = open_ssd(tmp_path)
        if b"evicted" not in said:
            stored |= {said[i : i + 16] for i in range(0, len(said), 16)}
            missing = [key for key in stored if not store.contains([key])[0]]
            assert not missing, f"seed {seed}, kill {kills}: {len(missing)} stored blocks are gone"
        else:
            stored = {key for key, held in zip(KEYS, store.contains(KEYS), strict=True) if held}
        assert not wrong(store, KEYS), f"seed {seed}, kill {kills}"  # type: ignore[arg-type]
        assert store.stats().corrupt == 0, f"seed {seed}, kill {kills}: a torn block was taken for whole"
        store.close()


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_damage_is_a_miss(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Bit flips and truncation, while the store is open or before it is opened, never give other bytes."""
    path = tmp_path_factory.mktemp("damaged")
    store = open_ssd(path, 200)
    fill(store, KEYS[:6])
    is_open = data.draw(st.booleans(), label="damaged while open")
    if not is_open:
        store.close()
    for _ in range(data.draw(st.integers(1, 4), label="faults")):
        file = data.draw(st.sampled_from(segments(path)), label="file")
        with file.open("r+b") as disk:
            size = os.fstat(disk.fileno()).st_size
            at = data.draw(st.integers(0, max(size - 1, 0)), label="at")
            if data.draw(st.booleans(), label="truncate"):
                disk.truncate(at)
            elif size:
                disk.seek(at)
                byte = disk.read(1)[0] ^ (1 << data.draw(st.integers(0, 7)))
                disk.seek(at)
                disk.write(bytes([byte]))
    if not is_open:
        store = open_ssd(path, 200)
    assert not wrong(store, KEYS)  # type: ignore[arg-type]
    held = store.contains(KEYS)
    assert store.stats().blocks == sum(held)
    assert fill(store, KEYS) == len(KEYS), "a damaged block can be stored again"
    assert not wrong(store, KEYS)  # type: ignore[arg-type]
    store.close()
    again = open_ssd(path, 200)
    assert not wrong(again, KEYS)  # type: ignore[arg-type]
    again.close()


def test_a_damaged_block_is_counted_and_not_found_after_a_restart(tmp_path: Path) -> None:
    store = open_ssd(tmp_path)
    fill(store, KEYS[:2])
    with segments(tmp_path)[0].open("r+b") as disk:
        disk.seek(5000)
        disk.write(b"?")
    out = [bytearray(SCHEMA.bytes_per_page) for _ in range(2)]
    assert store.get(KEYS[:2], [memoryview(buffer) for buffer in out]) == [False, True]
    assert not any(out[0]), "the buffer of a miss was written"
    assert store.stats().corrupt == 1
    store.close()
    again = open_ssd(tmp_path)
    assert again.contains(KEYS[:2]) == [False, True]
    again.close()


def test_a_full_disk_drops_blocks(tmp_path: Path) -> None:
    """The limit of file sizes stands for a full disk: the kernel refuses a write in the middle of a block."""

    def child() -> None:
        print("ready", flush=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        store = open_ssd(tmp_path, 1000)
        count = fill(store, KEYS[:30])
        assert 0 < count < 30, count
        assert store.stats().dropped == 30 - count
        assert sum(store.contains(KEYS)) == count
        assert not wrong(store, KEYS)  # type: ignore[arg-type]
        assert store.stats().corrupt == 0
        store.close()

    assert ended(forked(child)) == 0
    store = open_ssd(tmp_path, 1000)
    assert not wrong(store, KEYS)  # type: ignore[arg-type]
    assert fill(store, KEYS) == len(KEYS), "there is room again"
    store.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_refuses_writes_drops_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    store = open_ssd(tmp_path)
    fill(store, KEYS[:2])

    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", refuse)
        assert fill(store, KEYS[:4]) == 2
        assert store.stats().dropped == 2
        assert not wrong(store, KEYS)  # type: ignore[arg-type]
    assert fill(store, KEYS[:4]) == 4
    store.close()


def test_a_disk_that_refuses_entries_drops_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Payloads were written, their entries were not: they are no blocks, now and later."""
    store = open_ssd(tmp_path, 640)
    fill(store, KEYS[:2])
    pwritev = os.pwritev

    def refuse(descriptor: int, buffers: Any, at: int) -> int:
        if at == 0:
            raise OSError(errno.EIO, "input/output error")
        return pwritev(descriptor, buffers, at)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", refuse)
        assert fill(store, KEYS[:4]) == 2
        assert store.stats().dropped == 2
    assert fill(store, KEYS[4:6]) == 2
    assert store.contains(KEYS[:6]) == [True, True, False, False, True, True]
    store.close()
    again = open_ssd(tmp_path, 640)
    assert again.contains(KEYS[:6]) == [True, True, False, False, True, True]
    assert not wrong(again, KEYS)  # type: ignore[arg-type]
    again.close()


def test_a_disk_that_refuses_reads_is_a_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_ssd(tmp_path)
    fill(store, KEYS[:1])

    def refuse(*_: object) -> int:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "preadv", refuse)
    assert store.get(KEYS[:1], [memoryview(bytearray(SCHEMA.bytes_per_page))]) == [False]
    assert store.stats().corrupt == 1
    store.close()


def test_a_read_only_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_ssd(tmp_path)
    fill(store, KEYS[:2])
    store.close()
    before = [file.read_bytes() for file in segments(tmp_path)]
    monkeypatch.setattr(os, "access", lambda *_: False)
    store = open_ssd(tmp_path)
    assert fill(store, KEYS[:3]) == 2
    assert store.stats().dropped == 1
    assert not wrong(store, KEYS)  # type: ignore[arg-type]
    store.close()
    assert [file.read_bytes() for file in segments(tmp_path)] == before


def test_opening_reads_no_payloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_ssd(tmp_path, 640)
    fill(store, KEYS)
    store.close()
    read: list[int] = []
    preadv = os.preadv

    def counted(*arguments: Any) -> int:
        read.append(preadv(*arguments))
        return read[-1]

    monkeypatch.setattr(os, "preadv", counted)
    again = open_ssd(tmp_path, 640)
    assert again.stats().blocks == len(KEYS)
    assert sum(read) <= 2 * 4096 * len(segments(tmp_path)), "more than the tables was read"
    again.close()


@pytest.mark.parametrize("is_aligned", [True, False])
def test_buffers_of_any_alignment(tmp_path: Path, is_aligned: bool) -> None:
    """Those at the start of a page are written from where they are."""
    store, size = open_ssd(tmp_path), SCHEMA.bytes_per_page
    room = memoryview(mmap.mmap(-1, size + 4096))
    buffer = room[:size] if is_aligned else room[8 : size + 8]
    buffer[:] = block(KEYS[0])
    assert store.put(KEYS[:1], [buffer.toreadonly()]) == 1
    buffer[:] = bytes(size)
    assert not wrong(store, KEYS)  # type: ignore[arg-type]
    store.close()


def test_room_of_a_killed_process_is_returned(tmp_path: Path) -> None:
    """Segments are made in full, and cut to what is in them by whoever opens them next."""

    def child() -> None:
        store = open_ssd(tmp_path, 640)
        fill(store, KEYS[:2])
        print("ready", flush=True)
        signal.pause()

    process = forked(child)
    os.kill(process, signal.SIGKILL)
    assert ended(process) == -signal.SIGKILL
    (file,) = segments(tmp_path)
    assert file.stat().st_size == 4096 + 10 * SCHEMA.bytes_per_page
    store = open_ssd(tmp_path, 640)
    assert file.stat().st_size == 4096 + 2 * SCHEMA.bytes_per_page
    assert fill(store, KEYS) == len(KEYS)
    assert not wrong(store, KEYS)  # type: ignore[arg-type]
    store.close()


def test_a_segment_that_was_being_made_is_removed(tmp_path: Path) -> None:
    """The process was killed before it wrote the head: nothing is damaged, and nothing is left."""
    store = open_ssd(tmp_path, 640)
    fill(store, KEYS[:1])
    store.close()
    made = segments(tmp_path)[0].with_name("segment-v2-0000000002.kv")
    made.write_bytes(bytes(100_000))
    again = open_ssd(tmp_path, 640)
    assert again.contains(KEYS[:2]) == [True, False]
    assert again.stats().corrupt == 0
    assert not made.exists()
    again.close()


def test_blocks_of_the_first_format_are_removed(tmp_path: Path) -> None:
    open_ssd(tmp_path).close()
    (folder,) = tmp_path.iterdir()
    old = folder / "segment-v1-0000000001.kv"
    old.write_bytes(b"SAGEKV01")
    open_ssd(tmp_path).close()
    assert not old.exists()


def test_two_writers_of_a_folder_are_refused(tmp_path: Path) -> None:
    store = open_ssd(tmp_path)
    with pytest.raises(ConfigError, match="in use by another KV store"):
        open_ssd(tmp_path)
    store.close()
    open_ssd(tmp_path).close()


def test_another_format_is_not_read(tmp_path: Path) -> None:
    store = open_ssd(tmp_path, 1)
    fill(store, KEYS[:1])
    store.close()
    with segments(tmp_path)[0].open("r+b") as disk:
        disk.write(b"SAGEKV02")
    again = open_ssd(tmp_path, 1)
    assert again.contains(KEYS[:1]) == [False]
    assert not segments(tmp_path), "a segment without blocks is removed"
    again.close()


def test_the_disk_is_bounded_and_the_oldest_go(tmp_path: Path) -> None:
    store = open_ssd(tmp_path, 128)  # segments of two blocks
    keys = [bytes([i, j]) * 8 for i in range(4) for j in range(100)]
    for key in keys:
        fill(store, [key])
    held = [i for i, hit in enumerate(store.contains(keys)) if hit]
    assert held == list(range(len(keys) - len(held), len(keys))), "not the oldest blocks were dropped"
    assert 126 <= len(held) <= 128
    size = sum(file.stat().st_size for file in segments(tmp_path))
    assert size <= 128 * (SCHEMA.bytes_per_page + 4096)
    store.close()
    smaller = open_ssd(tmp_path, 16)
    assert smaller.stats().blocks <= 16
    assert sum(file.stat().st_size for file in segments(tmp_path)) <= 16 * (SCHEMA.bytes_per_page + 4096)
    smaller.close()


def test_pinned_blocks_outlive_their_segment(tmp_path: Path) -> None:
    store = open_ssd(tmp_path, 128)
    keys = [bytes([i, j]) * 8 for i in range(4) for j in range(100)]
    fill(store, keys[:1])
    store.pin(keys[:1])
    for key in keys[1:]:
        assert fill(store, [key]) == 1
    assert store.contains(keys[:2]) == [True, False]
    assert not wrong(store, keys[:1])  # type: ignore[arg-type]
    store.unpin(keys[:1])
    fill(store, KEYS[:3])
    assert store.contains(keys[:1]) == [False]
    store.close()


@pytest.mark.parametrize("path", ["", None, 3])
def test_paths_are_checked(path: object) -> None:
    with pytest.raises(ConfigError, match="path must be a folder"):
        SSDStore(schema=SCHEMA, model_id=MODEL, path=path, capacity_blocks=1)  # type: ignore[arg-type]


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match="cannot use the folder"):
        open_ssd(file)


def test_a_closed_store_is_refused(tmp_path: Path) -> None:
    store = open_ssd(tmp_path)
    store.close()
    with pytest.raises(InvalidRequest, match="closed"):
        store.contains(KEYS[:1])

"""Entries are whole or absent, for every way in which one can break, and for processes that want it at
once.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sage_infer.errors import ConfigError
from sage_infer.sdk.prepared import PreparedCache

IDENTITY = {"model": "a", "sizes": [1, 2], "pair": ["x", 3]}


class Builder:
    """Writes two files, and counts how often it was asked to."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> None:
        assert list(folder.iterdir()) == []
        self.calls += 1
        (folder / "weights.bin").write_bytes(bytes(range(256)) * 40)
        (folder / "graph.xml").write_text("<net/>")


def test_built_once(tmp_path: Path) -> None:
    build = Builder()
    first = PreparedCache(tmp_path / "new" / "cache").get_or_build("my model/Q4", IDENTITY, build)
    again = PreparedCache(tmp_path / "new" / "cache").get_or_build(
        "my model/Q4", dict(reversed(IDENTITY.items())), build
    )
    assert first == again
    assert build.calls == 1
    assert first.name.startswith("my_model_Q4-")
    names = sorted(path.name for path in first.iterdir())
    assert names == ["compared.json", "graph.xml", "manifest.json", "weights.bin"]
    other = PreparedCache(tmp_path / "new" / "cache").get_or_build(
        "my model/Q4", {**IDENTITY, "model": "b"}, build
    )
    assert other != first
    assert build.calls == 2


@pytest.mark.parametrize(
    "fault", ["truncated", "flipped", "missing", "no manifest", "torn manifest", "other identity"]
)
def test_a_broken_entry_is_built_again(tmp_path: Path, fault: str) -> None:
    build, cache = Builder(), PreparedCache(tmp_path)
    entry = cache.get_or_build("m", IDENTITY, build)
    weights, manifest = entry / "weights.bin", entry / "manifest.json"
    time.sleep(0.01)
    match fault:
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-1])
        case "flipped":
            weights.write_bytes(b"\xff" + weights.read_bytes()[1:])
        case "missing":
            weights.unlink()
        case "no manifest":
            manifest.unlink()
        case "torn manifest":
            manifest.write_text(manifest.read_text()[:50])
        case _:
            manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "identity": {}}))
    assert cache.get_or_build("m", IDENTITY, build) == entry
    assert build.calls == 2
    assert weights.read_bytes() == bytes(range(256)) * 40
    assert cache.get_or_build("m", IDENTITY, build) == entry
    assert build.calls == 2


def test_a_copied_cache_is_believed_after_its_hash(tmp_path: Path) -> None:
    """Other modification times, the same bytes."""
    build, cache = Builder(), PreparedCache(tmp_path)
    entry = cache.get_or_build("m", IDENTITY, build)
    os.utime(entry / "weights.bin", (1, 1))
    cache.get_or_build("m", IDENTITY, build)
    assert build.calls == 1


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        PreparedCache(tmp_path).get_or_build("m", IDENTITY, fail)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    cache = PreparedCache(tmp_path)
    entry = cache.get_or_build("m", IDENTITY, Builder())
    abandoned = tmp_path / f".{entry.name}.new-12345678"
    abandoned.mkdir()
    (entry / "weights.bin").unlink()
    cache.get_or_build("m", IDENTITY, Builder())
    assert not abandoned.exists()


def test_outdated_entries_are_removed(tmp_path: Path) -> None:
    cache = PreparedCache(tmp_path)
    a = cache.get_or_build("m", IDENTITY, Builder())
    b = cache.get_or_build("m", {**IDENTITY, "model": "b"}, Builder())
    cache.remove_outdated(lambda identity: identity["model"] == "a")
    assert not a.exists()
    assert b.exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write the prepared model under"):
        PreparedCache(tmp_path / "file").get_or_build("m", IDENTITY, Builder())


RACE = """
import os, sys, time
from sage_infer.sdk.prepared import PreparedCache

def build(folder):
    (folder / "weights.bin").write_bytes(b"a" * 100_000)
    time.sleep(0.3)
    (folder / "built_by").write_text(str(os.getpid()))

sys.stdin.readline()  # all start together
entry = PreparedCache(sys.argv[1]).get_or_build("m", {"a": 1}, build)
print((entry / "built_by").read_text(), (entry / "weights.bin").stat().st_size)
"""


def test_processes_that_prepare_at_once_share_one_entry(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", RACE, str(tmp_path)]
    workers = [
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    found = {worker.communicate(timeout=600)[0] for worker in workers}
    assert len(found) == 1
    assert found.pop().split()[1] == "100000"
    assert len(list(tmp_path.glob("m-*"))) == 1
    assert not list(tmp_path.glob(".*.new-*"))


def test_a_flipped_bit_is_noticed_though_size_and_time_stay(tmp_path: Path) -> None:
    build, cache = Builder(), PreparedCache(tmp_path)
    weights = cache.get_or_build("m", IDENTITY, build) / "weights.bin"
    before, data = weights.stat(), bytearray(weights.read_bytes())
    data[100] ^= 4
    weights.write_bytes(data)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    cache.get_or_build("m", IDENTITY, build)
    assert build.calls == 2
    assert weights.read_bytes()[100] == 100


def test_files_that_did_not_change_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, cache = Builder(), PreparedCache(tmp_path)
    entry = cache.get_or_build("m", IDENTITY, build)
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr("sage_infer.models.wholeness._sha256", counted)
    cache.get_or_build("m", IDENTITY, build)
    assert read == []
    os.utime(entry / "graph.xml")
    cache.get_or_build("m", IDENTITY, build)
    cache.get_or_build("m", IDENTITY, build)
    assert read == [entry / "graph.xml"]
    assert build.calls == 1

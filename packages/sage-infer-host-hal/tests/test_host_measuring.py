"""Measuring: plausible figures, nothing left behind, and an honest note where it cannot be done."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sage_infer.schemas import HardwareProfile, MemoryTierSpec
from sage_infer_host import disk_speed, kernel_aio, memory_speed
from sage_infer_host.detector import HostDetector
from sage_infer_host.kernel_aio import AsyncFile, NoAsyncIO

MIB = 1 << 20


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same passes on less memory and disk, and for less time."""
    monkeypatch.setattr(memory_speed, "_BUFFER", 8 * MIB)
    monkeypatch.setattr(memory_speed, "_SECONDS", 0.02)
    monkeypatch.setattr(disk_speed, "MOST", 16 * MIB)
    monkeypatch.setattr(disk_speed, "_LEAST", 4 * MIB)
    monkeypatch.setattr(disk_speed, "_SECONDS", 0.05)


def folder_on_disk() -> Path | None:
    """A folder whose file system takes direct I/O; temporary folders are often memory."""
    for folder in (Path(__file__).parent, Path.cwd(), Path("/var/tmp")):
        with contextlib.suppress(OSError):
            with (
                disk_speed._nameless_file(str(folder)) as descriptor,
                AsyncFile(descriptor, nbytes=4096, depth=1) as file,
            ):
                file.run(iter([0]), write=True, seconds=1)
            return folder
    return None


DISK = folder_on_disk()
on_disk = pytest.mark.skipif(DISK is None, reason="no file system here takes asynchronous direct I/O")


@pytest.fixture
def disk() -> Iterator[Path]:
    """A new, empty folder on that file system: beside it other tests' processes write files too."""
    with tempfile.TemporaryDirectory(dir=DISK, prefix=".measured-") as folder:
        yield Path(folder)


def test_memory(quick: None) -> None:
    shares: list[float] = []
    speed = memory_speed.measure_memory(os.sched_getaffinity(0), None, shares.append)
    assert speed.threads == len(os.sched_getaffinity(0))
    assert all(0.1 < rate < 10_000 for rate in (speed.read_gbs, speed.write_gbs, speed.copy_gbs))
    assert shares == pytest.approx([step / 9 for step in range(1, 10)])


def test_too_little_memory_is_said() -> None:
    with pytest.raises(OSError, match="more than a quarter of the memory"):
        memory_speed.measure_memory({0, 1}, 16 * MIB, lambda share: None)


def test_a_cpu_that_has_gone_is_no_obstacle(quick: None) -> None:
    assert memory_speed.measure_memory({0, 4095}, None, lambda share: None).threads == 2


@on_disk
def test_disk(quick: None, disk: Path) -> None:
    shares: list[float] = []
    tier = disk_speed.measure_disk(MemoryTierSpec(tier="ssd", name=str(disk)), shares.append)
    assert shares == [0.25, 0.5, 0.75, 1.0]
    figures = [
        tier.measured_read_gbs, tier.measured_write_gbs,
        tier.measured_random_read_iops, tier.measured_random_write_iops,
    ]  # fmt: skip
    assert all(
        figure is not None and figure.value > 0 and "direct I/O" in figure.source for figure in figures
    )
    assert not os.listdir(disk)


@on_disk
def test_what_is_written_is_what_is_read() -> None:
    with disk_speed._nameless_file(str(DISK)) as descriptor:
        with AsyncFile(descriptor, nbytes=4096, depth=4) as file:
            count, seconds = file.run(iter(range(0, 64 * 4096, 4096)), write=True, seconds=300)
            assert (count, os.fstat(descriptor).st_size) == (64, 64 * 4096)
            assert seconds > 0
            count, _ = file.run(iter(range(0, 64 * 4096, 4096)), write=False, seconds=300)
            assert count == 64
            with pytest.raises(OSError, match="0 bytes moved"):
                file.run(iter([1 << 30]), write=False, seconds=1)
            with pytest.raises(OSError, match="Invalid argument"):
                file.run(iter([1]), write=False, seconds=1)
        page = mmap.mmap(-1, 4096)
        os.preadv(descriptor, [page], 0)
        assert page[:] != bytes(4096)


@on_disk
@pytest.mark.parametrize("tmpfile", [True, False])
def test_a_killed_measurement_leaves_no_file(disk: Path, tmpfile: bool) -> None:
    """With ``O_TMPFILE``, and as on file systems that do not have it."""
    program = f"""
import itertools, os, sys
from sage_infer_host import disk_speed
from sage_infer_host.kernel_aio import AsyncFile
if not {tmpfile}:
    os.O_TMPFILE = 1 << 62
    real = os.open
    disk_speed.os.open = lambda path, flags, mode=0o777: refuse() if flags & os.O_TMPFILE else real(path, flags, mode)
    def refuse():
        raise OSError({errno.EOPNOTSUPP}, "no")
with disk_speed._nameless_file({str(disk)!r}) as descriptor:
    with AsyncFile(descriptor, nbytes=4096, depth=2) as file:
        print("writing", flush=True)
        file.run(itertools.cycle(range(0, 4 << 20, 4096)), write=True, seconds=60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not os.listdir(disk)


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Full:
        f_bavail, f_frsize = 10, 4096

    monkeypatch.setattr(os, "statvfs", lambda folder: Full)
    with pytest.raises(OSError, match="less than 640 MiB are free"):
        disk_speed.measure_disk(MemoryTierSpec(tier="ssd", name=str(tmp_path)), lambda share: None)


def test_a_disk_that_nobody_may_write_to_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OSError, match="this user cannot write to any folder on it"):
        disk_speed.measure_disk(MemoryTierSpec(tier="ssd", name="/"), lambda share: None)


def test_a_file_system_without_direct_io_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = fcntl.fcntl

    def refuse(descriptor: int, command: int, value: int = 0) -> int:
        if command == fcntl.F_SETFL:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(descriptor, command, value)

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with pytest.raises(OSError, match="not support direct I/O"), disk_speed._nameless_file(str(tmp_path)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_asynchronous_io_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_aio.platform, "machine", lambda: "vax")
    with pytest.raises(NoAsyncIO, match="not supported on vax"), AsyncFile(0, nbytes=4096, depth=1):
        pass


def test_a_sandbox_that_refuses_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_aio, "_CALLS", {kernel_aio.platform.machine(): (100_000,) * 4})  # no such call
    with pytest.raises(NoAsyncIO, match="io_setup failed"), AsyncFile(0, nbytes=4096, depth=1):
        pass


def test_measure_fills_the_profile_and_notes_what_it_could_not(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiers = [
        MemoryTierSpec(tier="dram", name="host", capacity_bytes=1 << 34),
        MemoryTierSpec(tier="ssd", name="/no such place"),
        MemoryTierSpec(tier="remote", name="/data"),
    ]
    stages: list[str] = []
    found = HostDetector().measure(
        HardwareProfile(memory_tiers=tiers), lambda stage, share: stages.append(stage)
    )
    memory, disk, remote = found.memory_tiers
    assert memory.measured_copy_gbs is not None
    assert "memcpy on" in memory.measured_copy_gbs.source
    assert memory.measured_read_gbs is not None
    assert (disk.measured_read_gbs, remote.measured_read_gbs) == (None, None)
    assert found.notes == (
        "/no such place: not measured: No such file or directory",
        "/data: not measured, as it is not on this machine",
    )
    assert set(stages) == {"measuring memory"}


@on_disk
def test_a_disk_and_memory_are_measured() -> None:
    """The real thing on one disk and this memory, as ``--measure`` runs it."""
    tiers = [MemoryTierSpec(tier="ssd", name=str(DISK))]
    found = HostDetector().measure(HardwareProfile(memory_tiers=tiers), lambda stage, share: None)
    assert found.memory_tiers[0].measured_read_gbs is not None

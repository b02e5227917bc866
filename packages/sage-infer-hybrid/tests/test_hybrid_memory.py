"""Memory of a process and its children, from a recorded /proc."""

from __future__ import annotations

from pathlib import Path

import pytest
from sage_infer.errors import BackendUnavailable
from sage_infer.schemas import HardwareProfile
from sage_infer_hybrid.machine import machine_devices
from sage_infer_hybrid.process_memory import held_bytes


def process(root: Path, pid: int, parent: int, kib: int | None) -> None:
    folder = root / str(pid)
    folder.mkdir()
    (folder / "stat").write_text(f"{pid} (a (b) c) S {parent} 1 1 0")
    if kib is not None:
        (folder / "status").write_text(
            f"Name:\ta (b) c\nVmRSS:\t {kib + 999} kB\nRssAnon:\t {kib - 1} kB\nRssFile:\t 998 kB\nRssShmem:\t 1 kB\n"
        )


def test_children_count_and_others_do_not(tmp_path: Path) -> None:
    for pid, parent, pages in ((10, 1, 100), (11, 10, 20), (12, 11, 3), (13, 1, 500), (14, 10, None)):
        process(tmp_path, pid, parent, pages)
    assert held_bytes(tmp_path, 10) == 123 * 1024
    assert held_bytes(tmp_path, 99) is None


def test_this_process_holds_something() -> None:
    found = held_bytes()
    assert found is None or found > 2**20


def test_a_machine_of_unknown_memory_is_refused() -> None:
    with pytest.raises(BackendUnavailable, match="pip install sage-infer-host-hal"):
        machine_devices(HardwareProfile(notes=("host: failed",)))

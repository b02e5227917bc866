"""What the system grants this process, from recorded forms of /proc and /sys."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sage_infer.system import granted, usable_cpus, usable_threads
from sage_infer.system.files import cpu_list, cpus_in
from sage_infer.system.mounts import parse_mountinfo

MOUNT = "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"


def machine(root: Path, cpu_max: str) -> Path:
    """A process in the group ``/box``, whose ``cpu.max`` says this."""
    for name, text in {
        "proc/self/mountinfo": MOUNT,
        "proc/self/cgroup": "0::/box",
        "sys/fs/cgroup/box/cpu.max": cpu_max,
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("cpu_max", "threads"),
    [
        ("max 100000", 8),
        ("400000 100000", 4),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("9900000 100000", 8),
    ],
)
def test_threads_are_what_mask_and_quota_pay_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_max: str, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert usable_threads(machine(tmp_path, cpu_max)) == threads


def test_a_system_without_masks_has_all_its_processors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert len(usable_cpus()) == usable_threads(tmp_path) == 3


def test_nothing_is_granted_where_nothing_is_said(tmp_path: Path) -> None:
    grant = granted(tmp_path)
    assert grant.cpus is None
    assert grant.memory_bytes is None


@given(st.text())
def test_any_text_is_read_without_a_crash(text: str) -> None:
    parse_mountinfo(text)
    cpus_in(text)


@given(st.sets(st.integers(0, 300), min_size=1))
def test_lists_of_cpus_go_there_and_back(cpus: set[int]) -> None:
    assert cpus_in(cpu_list(cpus)) == cpus


def test_odd_lists_of_cpus() -> None:
    assert cpus_in(None) == cpus_in("") == cpus_in("0-") == cpus_in("a-b") == cpus_in("1,,x") == frozenset()
    assert cpu_list([]) is None

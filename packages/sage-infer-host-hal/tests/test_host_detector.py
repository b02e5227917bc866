"""What the detector makes of recorded and composed trees of /proc and /sys, and of this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from host_trees import CGROUP_MOUNTS, two_sockets, write
from sage_infer.schemas import HardwareProfile
from sage_infer_host.detector import HostDetector
from sage_infer_testing import HardwareDetectorContract, PluginContract

GIB = 1024**3
Detect = Callable[..., HardwareProfile]


@pytest.fixture
def detect(tmp_path: Path) -> Detect:
    def detected(
        *files: dict[str, str], usable: tuple[int, ...] = tuple(range(8)), sizes: dict[str, int] | None = None
    ):  # type: ignore[no-untyped-def]
        for more in files:
            write(tmp_path, more)
        known = sizes or {}
        return HostDetector(
            tmp_path,
            usable_cpus=lambda: usable,
            architecture="x86_64",
            capacity=lambda point: known.get(point),
        ).detect()

    return detected


def test_a_recorded_machine() -> None:
    root = Path(__file__).parent / "data" / "epyc-vm"
    found = HostDetector(
        root, usable_cpus=lambda: {0, 1}, architecture="x86_64", capacity=lambda _: None
    ).detect()
    (cpu,) = found.cpus
    assert (cpu.vendor, cpu.model, cpu.architecture) == ("AuthenticAMD", "AMD EPYC", "x86_64")
    assert (cpu.sockets, cpu.cores, cpu.threads, cpu.usable_threads, cpu.quota_cpus) == (1, 2, 2, 2, None)
    assert cpu.isa == ("avx", "avx2", "f16c", "fma", "sse4_2")
    (node,) = found.numa_nodes
    assert (node.index, node.cpus, node.memory_bytes) == (
        0,
        "0-1",
        24682416 * 1024,
    )  # the machine's, it is the only one
    (memory,) = found.memory_tiers
    assert (memory.tier, memory.name, memory.capacity_bytes) == ("dram", "host", 24682416 * 1024)
    assert found.links == ()


def test_two_sockets_with_amx(detect: Detect) -> None:
    found = detect(two_sockets())
    (cpu,) = found.cpus
    assert (cpu.model, cpu.sockets, cpu.cores, cpu.threads) == ("Intel(R) Xeon(R) Platinum 8480+", 2, 4, 8)
    assert {"amx_bf16", "amx_int8", "avx512_vnni", "avx512_bf16"} <= set(cpu.isa)
    assert [(node.index, node.cpus, node.memory_bytes) for node in found.numa_nodes] == [
        (0, "0-1,4-5", 256 * GIB), (1, "2-3,6-7", 280 * GIB), (2, None, 64 * GIB),
    ]  # fmt: skip
    assert {(link.source, link.target): link.distance for link in found.links} == {
        ("numa:0", "numa:1"): 21, ("numa:0", "numa:2"): 14, ("numa:1", "numa:0"): 21,
        ("numa:1", "numa:2"): 24, ("numa:2", "numa:0"): 14, ("numa:2", "numa:1"): 24,
    }  # fmt: skip
    assert found.memory_tiers[0].capacity_bytes == found.memory_tiers[0].usable_bytes == 600 * GIB
    assert found.sources == ("/proc and /sys, Linux 6.8.0-test",)


def test_affinity_says_what_may_be_used_beside_the_total(detect: Detect) -> None:
    found = detect(two_sockets(), usable=(2, 3, 6))
    assert (found.cpus[0].threads, found.cpus[0].usable_threads) == (8, 3)
    assert [(node.cpus, node.usable_cpus) for node in found.numa_nodes] == [
        ("0-1,4-5", None), ("2-3,6-7", "2-3,6"), (None, None),
    ]  # fmt: skip


def test_a_cpuset_without_some_nodes_memory(detect: Detect) -> None:
    found = detect(two_sockets(), {"proc/self/status": "Name:\tx\nMems_allowed_list:\t1"})
    assert found.memory_tiers[0].usable_bytes == 280 * GIB
    assert "NUMA node 1 only" in found.notes[0]
    assert detect({"proc/self/status": "Mems_allowed_list:\t0-2"}).notes == ()


def test_cpus_that_are_offline_do_not_count(detect: Detect) -> None:
    found = detect(two_sockets(), {"sys/devices/system/cpu/online": "0-3"}, usable=(0, 1, 2, 3))
    assert (found.cpus[0].threads, found.cpus[0].sockets, found.cpus[0].cores) == (4, 2, 4)


def test_distances_that_do_not_fit_are_left_out_and_noted(detect: Detect) -> None:
    found = detect(two_sockets(), {"sys/devices/system/node/node1/distance": "21 10"})
    assert {link.source for link in found.links} == {"numa:0", "numa:2"}
    assert "node1/distance has 2 entries for 3 nodes" in found.notes[0]


# --- control groups

UNLIMITED = "9223372036854771712"


def limits(found: HardwareProfile) -> tuple[int | None, float | None]:
    return found.memory_tiers[0].usable_bytes, found.cpus[0].quota_cpus


def test_version_2_takes_the_tightest_limit_on_the_way_up(detect: Detect) -> None:
    group = "sys/fs/cgroup/kubepods/pod1"
    found = detect(
        two_sockets(),
        {
            "proc/self/cgroup": "0::/kubepods/pod1/box",
            "proc/self/mountinfo": CGROUP_MOUNTS["v2"],
            f"{group}/box/memory.max": str(64 * GIB),
            f"{group}/box/cpu.max": "max 100000",
            f"{group}/memory.max": str(32 * GIB),
            f"{group}/cpu.max": "150000 100000",
            "sys/fs/cgroup/kubepods/memory.max": "max",
        },
    )
    assert limits(found) == (32 * GIB, 1.5)
    assert found.memory_tiers[0].capacity_bytes == 600 * GIB


def test_version_1(detect: Detect) -> None:
    found = detect(
        two_sockets(),
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n1:name=systemd:/",
            "proc/self/mountinfo": CGROUP_MOUNTS["v1"],
            "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": str(8 * GIB),
            "sys/fs/cgroup/memory/memory.limit_in_bytes": UNLIMITED,
            "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "400000",
            "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
    )
    assert limits(found) == (8 * GIB, 4.0)


def test_inside_a_container_the_mount_is_the_group(detect: Detect) -> None:
    """Docker mounts the group itself: its path lies outside of what is mounted."""
    found = detect(
        two_sockets(),
        {
            "proc/self/cgroup": "4:memory:/docker/abc/inner",
            "proc/self/mountinfo": "30 25 0:26 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(4 * GIB),
        },
    )
    assert limits(found) == (4 * GIB, None)


def test_a_group_outside_of_the_namespace(detect: Detect) -> None:
    found = detect(
        two_sockets(),
        {
            "proc/self/cgroup": "0::/../../other",
            "proc/self/mountinfo": CGROUP_MOUNTS["v2"],
            "sys/fs/cgroup/memory.max": str(16 * GIB),
            "sys/fs/cgroup/cpu.max": "nonsense",
        },
    )
    assert limits(found) == (16 * GIB, None)


def test_no_limits(detect: Detect) -> None:
    assert limits(detect(two_sockets())) == (600 * GIB, None)


# --- disks


def disks(found: HardwareProfile) -> list[tuple[str, str, str | None, str | None]]:
    return [(tier.tier, tier.name, tier.filesystem, tier.device) for tier in found.memory_tiers[1:]]


MOUNTS = """\
21 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw
22 21 259:1 / /boot rw - ext4 /dev/nvme0n1p1 rw
23 21 259:5 / /mnt/fast\\040disk rw - xfs /dev/nvme1n1 rw
24 21 259:5 /sub /srv/again rw - xfs /dev/nvme1n1 rw
25 21 0:30 / /proc rw - proc proc rw
26 21 0:31 / /dev/shm rw - tmpfs tmpfs rw
27 21 7:0 / /snap/x ro - squashfs /dev/loop0 ro
28 21 8:1 / /media/iso ro - ext4 /dev/sda1 rw
29 21 0:50 / /data rw - nfs4 server:/export rw
30 21 259:2 /etc/hosts /etc/hosts rw - ext4 /dev/nvme0n1p2 rw
a line of another form
"""


def test_file_systems_once_each(detect: Detect, tmp_path: Path) -> None:
    write(tmp_path, {"etc/hosts": "x", "sys/devices/pci/nvme0n1/nvme0n1p2/partition": "2"})
    write(
        tmp_path,
        {"sys/devices/pci/nvme0n1/queue/rotational": "0", "sys/devices/pci/nvme1n1/queue/rotational": "1"},
    )
    (tmp_path / "sys/dev/block").mkdir(parents=True)
    (tmp_path / "sys/dev/block/259:2").symlink_to("../../devices/pci/nvme0n1/nvme0n1p2")
    (tmp_path / "sys/dev/block/259:5").symlink_to("../../devices/pci/nvme1n1")
    sizes = {"/": 400 * GIB, "/boot": GIB // 2, "/mnt/fast disk": 3000 * GIB, "/srv/again": 3000 * GIB}
    found = detect(two_sockets(), {"proc/self/mountinfo": MOUNTS}, sizes=sizes)
    assert disks(found) == [
        ("ssd", "/", "ext4", "nvme0n1p2"), ("remote", "/data", "nfs4", "server:/export"),
        ("ssd", "/mnt/fast disk", "xfs", "nvme1n1"),
    ]  # fmt: skip
    assert found.memory_tiers[1].capacity_bytes == 400 * GIB
    assert found.memory_tiers[2].capacity_bytes is None  # a server that is down would block the question
    assert len(found.notes) == 1
    assert "rotating disks for nvme1n1" in found.notes[0]


def test_a_container_on_an_overlay(detect: Detect) -> None:
    mounts = "21 1 0:99 / / rw - overlay overlay rw,lowerdir=/a,upperdir=/b,workdir=/c"
    found = detect(two_sockets(), {"proc/self/mountinfo": mounts}, sizes={"/": 100 * GIB})
    assert disks(found) == [("ssd", "/", "overlay", None)]


def test_a_device_without_sysfs_has_its_name_from_the_mount(detect: Detect) -> None:
    mounts = "21 1 8:2 / / rw - ext4 /dev/sda2 rw\n22 1 0:44 / /pool rw - zfs tank/data rw"
    found = detect(two_sockets(), {"proc/self/mountinfo": mounts}, sizes={"/": 9 * GIB, "/pool": 9 * GIB})
    assert disks(found) == [("ssd", "/", "ext4", "sda2"), ("ssd", "/pool", "zfs", None)]


def test_of_two_mounts_at_one_place_the_later_one_counts(detect: Detect) -> None:
    mounts = "21 1 8:2 / /x rw - ext4 /dev/sda2 rw\n22 1 8:3 / /x rw - xfs /dev/sda3 rw"
    found = detect(two_sockets(), {"proc/self/mountinfo": mounts}, sizes={"/x": 9 * GIB})
    assert disks(found) == [("ssd", "/x", "xfs", "sda3")]


# --- nothing to read


def test_an_empty_tree_says_nothing_of_this_machine(detect: Detect) -> None:
    found = detect()
    assert (found.cpus, found.numa_nodes, found.links) == ((), (), ())
    assert found.memory_tiers[0].capacity_bytes is None
    assert found.memory_tiers[0].usable_bytes is None


def test_this_machine_answers_at_once() -> None:
    detector = HostDetector()
    best = min(seconds(detector.detect) for _ in range(3))
    assert best < 0.5
    found = detector.detect()
    assert found.cpus
    assert found.cpus[0].usable_threads == len(os.sched_getaffinity(0))
    assert found.memory_tiers[0].capacity_bytes


def seconds(call: Callable[[], object]) -> float:
    """CPU seconds, which other programs do not change."""
    started = time.thread_time()
    call()
    return time.thread_time() - started


class TestContract(HardwareDetectorContract):
    hardware = ("cpu",)

    def make_detector(self) -> HostDetector:
        return HostDetector()


class TestPlugin(PluginContract):
    module = "sage_infer_host.plugin"

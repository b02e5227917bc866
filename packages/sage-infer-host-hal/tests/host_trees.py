"""Trees of /proc and /sys for tests: written below a folder, one string a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = ["CGROUP_MOUNTS", "two_sockets", "write"]


def write(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


CGROUP_MOUNTS = {
    "v1": (
        "30 25 0:26 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n"
        "31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct"
    ),
    "v2": "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate",
}

_PROCESSOR = """\
processor	: {cpu}
vendor_id	: GenuineIntel
model name	: Intel(R) Xeon(R) Platinum 8480+
physical id	: {socket}
core id		: {core}
flags		: fpu sse4_2 f16c fma avx avx2 avx512f avx512dq avx512bw avx512vl avx512_vnni avx512_bf16 amx_bf16 avx512_fp16 amx_tile amx_int8
"""  # noqa: E501


def two_sockets() -> dict[str, str]:
    """Two sockets of two cores of two threads, a NUMA node each, and a third node of memory without CPUs."""
    files = {
        "proc/meminfo": f"MemTotal:       {600 * 1024 * 1024} kB",
        "sys/devices/system/cpu/online": "0-7",
        "sys/devices/system/node/node0/cpulist": "0-1,4-5",
        "sys/devices/system/node/node1/cpulist": "2-3,6-7",
        "sys/devices/system/node/node2/cpulist": "",
        "sys/devices/system/node/node0/distance": "10 21 14",
        "sys/devices/system/node/node1/distance": "21 10 24",
        "sys/devices/system/node/node2/distance": "14 24 10",
        "proc/sys/kernel/osrelease": "6.8.0-test",
    }
    for node, gib in ((0, 256), (1, 280), (2, 64)):
        files[f"sys/devices/system/node/node{node}/meminfo"] = (
            f"Node {node} MemTotal:       {gib * 1024 * 1024} kB"
        )
    blocks = []
    for cpu in range(8):
        socket, core = cpu % 4 // 2, cpu % 2
        blocks.append(_PROCESSOR.format(cpu=cpu, socket=socket, core=core))
        place = f"sys/devices/system/cpu/cpu{cpu}/topology"
        files[f"{place}/physical_package_id"] = str(socket)
        files[f"{place}/core_cpus_list"] = f"{cpu % 4},{cpu % 4 + 4}"
    return files | {"proc/cpuinfo": "\n".join(blocks)}

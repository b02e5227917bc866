"""Compare ``sage infer hal profile --measure`` with Debian's likwid-bench (memory) and fio (disk).

    hatch run bench:hal [--rounds 8] [--json results.json]

Debian has no ``stream``; its package ``likwid`` has STREAM's copy as the kernels ``copy_mem_…`` of likwid-bench, with
stores that bypass the caches, like the C library's memcpy for blocks of this size. Every round runs ours and the
peer after each other, with the same number of threads, block size, queue depth and page size, in
alternating order. Both pass over memory ten times, like STREAM, in each of three placements, and report the best:
the physical pages of a process matter more than the pass. Each side pauses before using
the disk: virtual disks allow bursts after a pause, so a fast read would slow the write after
it. Ratios are taken per round, so that noise affects both sides equally. Requires: apt-get install fio likwid.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sage_infer.schemas import MemoryTierSpec
from sage_infer_host.disk_speed import BLOCK, BLOCKS_UNDER_WAY, MOST, PAGE, PAGES_UNDER_WAY, measure_disk
from sage_infer_host.memory_speed import PASSES, PLACEMENTS, measure_memory

Reading = dict[str, float]
SECONDS = 1.2  # duration of each fio run, like ours
REST_S = 4.0
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # fio's buffers in huge pages, like ours


def kernel() -> str:
    """likwid-bench's copy kernel for this processor."""
    flags = Path("/proc/cpuinfo").read_text()
    return "copy_mem_avx512" if "avx512f" in flags else "copy_mem_avx" if " avx " in flags else "copy_mem_sse"


def our_memory() -> Reading:
    speed = measure_memory(os.sched_getaffinity(0), None, lambda share: None)
    return {"memory copy, GB/s": speed.copy_gbs}


def likwid_memory() -> Reading:
    threads = len(os.sched_getaffinity(0))
    command = ["likwid-bench", "-t", kernel(), "-w", f"N:{512 * threads}MB:{threads}", "-i", str(PASSES)]
    rates = []
    for _ in range(PLACEMENTS):  # each process has one placement and prints the mean of its passes
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        match = re.search(r"^MByte/s:\s+([\d.]+)", printed, re.MULTILINE)
        if match is None:
            raise SystemExit(f"likwid-bench printed no rate:\n{printed}")
        rates.append(float(match[1]) / 1000)
    return {"memory copy, GB/s": max(rates)}


def our_disk(folder: Path) -> Reading:
    time.sleep(REST_S)
    tier = measure_disk(MemoryTierSpec(tier="ssd", name=str(folder)), lambda share: time.sleep(REST_S))
    figures = (
        tier.measured_write_gbs, tier.measured_read_gbs,
        tier.measured_random_read_iops, tier.measured_random_write_iops,
    )  # fmt: skip
    return dict(zip(DISK, (figure.value for figure in figures if figure is not None), strict=True))


DISK = ("disk write, GB/s", "disk read, GB/s", "disk 4 KiB reads/s", "disk 4 KiB writes/s")


def fio_disk(folder: Path) -> Reading:
    """The same four figures, on a file as large as ours.

    Like ours, the file has its final length but no blocks: new blocks are slower to write, and writes that extend a
    file wait for each other.
    """
    path = folder / f".fio-{os.getpid()}"
    jobs = (("write", BLOCK, BLOCKS_UNDER_WAY), ("read", BLOCK, BLOCKS_UNDER_WAY),
            ("randread", PAGE, PAGES_UNDER_WAY), ("randwrite", PAGE, PAGES_UNDER_WAY))  # fmt: skip
    found: Reading = {}
    size = MOST
    try:
        for name, (kind, block, depth) in zip(DISK, jobs, strict=True):
            time.sleep(REST_S)
            over_and_over = [] if kind == "write" else ["--time_based"]
            command = [
                "fio", "--output-format=json", f"--name={kind}", f"--filename={path}", f"--size={size}",
                f"--rw={kind}", f"--bs={block}", f"--iodepth={depth}", "--ioengine=libaio", "--direct=1",
                "--fallocate=truncate", "--norandommap", "--refill_buffers=0",
                "--iomem_align=2m", f"--runtime={SECONDS * 1000:.0f}ms", *over_and_over,
            ]  # fmt: skip
            printed = subprocess.run(
                command, capture_output=True, text=True, check=True, env={**os.environ, **HUGE_PAGES}
            ).stdout
            side = json.loads(printed)["jobs"][0]["write" if "write" in kind else "read"]
            if kind == "write":
                size = side["io_bytes"] // BLOCK * BLOCK
            found[name] = side["bw_bytes"] / 1e9 if block == BLOCK else side["iops"]
    finally:
        path.unlink(missing_ok=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="folder on the measured disk")
    parser.add_argument("--json", type=Path, help="write all readings here")
    options = parser.parse_args()
    missing = [tool for tool in ("fio", "likwid-bench") if shutil.which(tool) is None]
    if missing:
        raise SystemExit(f"{', '.join(missing)} missing: apt-get install fio likwid")
    pairs: list[tuple[Callable[[], Reading], Callable[[], Reading]]] = [
        (our_memory, likwid_memory),
        (lambda: our_disk(options.folder), lambda: fio_disk(options.folder)),
    ]
    readings: list[tuple[Reading, Reading]] = []
    for number in range(options.rounds):
        ours: Reading = {}
        theirs: Reading = {}
        for our, their in pairs:
            sides = [(ours, our), (theirs, their)]
            for side, run in sides if number % 2 == 0 else reversed(sides):
                side.update(run())
        readings.append((ours, theirs))
        print(f"round {number + 1} of {options.rounds} …", file=sys.stderr)
    print(f"{'':<22}{'ours, median':>14}{'peer, median':>14}   ratio, median (min to max)")
    for name in readings[0][0]:
        ratios = [ours[name] / theirs[name] for ours, theirs in readings]
        our_median, peer_median = (
            statistics.median(side[name] for side in sides) for sides in zip(*readings, strict=True)
        )
        print(
            f"{name:<22}{our_median:14.2f}{peer_median:14.2f}   "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    if options.json:
        options.json.write_text(
            json.dumps([{"ours": ours, "peer": peer} for ours, peer in readings], indent=2)
        )


if __name__ == "__main__":
    main()

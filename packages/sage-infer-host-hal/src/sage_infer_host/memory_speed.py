"""Measure memory: memchr, memset and memcpy of the C library on every CPU simultaneously, outside of the caches.

``ctypes`` releases the GIL during a call. Copies are counted as STREAM counts them (McCalpin, "Memory bandwidth and
machine balance", 1995): bytes read plus bytes written, the best of several passes. The physical pages of a process
matter more than the pass (42 to 54 GB/s between processes on one machine, 2 % within one), so the memory is
reallocated several times.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
import time
from collections.abc import Callable, Collection

from attrs import frozen

from sage_infer_host.huge_pages import huge_pages

__all__ = ["MemorySpeed", "measure_memory"]

_BUFFER = 256 << 20  # bytes of each of a CPU's two buffers, subject to the next two limits
_MOST = 16 << 30
_SHARE = 0.25  # of the usable memory
_LEAST = 4 << 20
PLACEMENTS = 3  # number of times the memory is reallocated
PASSES = 10  # of each of the three per placement, as in STREAM
_LEAST_PASSES = 3
_SECONDS = 0.3  # after this time only the minimum number of passes is made


@frozen(kw_only=True)
class MemorySpeed:
    """GB/s of all threads together, and the number of threads."""

    read_gbs: float
    write_gbs: float
    copy_gbs: float
    threads: int


@frozen
class _Buffers:
    """Two buffers of a thread, as addresses for C functions."""

    source: int
    target: int
    nbytes: int


def measure_memory(
    cpus: Collection[int], usable_bytes: int | None, progress: Callable[[float], None]
) -> MemorySpeed:
    """Read, fill and copy with one thread per CPU, for one to three seconds.

    Raises:
        OSError: too little memory for buffers that exceed the caches.
    """
    threads = len(cpus)
    budget = _MOST if usable_bytes is None else min(_MOST, int(usable_bytes * _SHARE))
    nbytes = min(_BUFFER, budget // (2 * threads) // mmap.PAGESIZE * mmap.PAGESIZE)
    if nbytes < _LEAST:
        raise OSError(f"buffers for {threads} CPUs would take more than a quarter of the memory")
    libc = ctypes.CDLL(None)
    for function in (libc.memchr, libc.memset, libc.memcpy):
        function.restype = ctypes.c_void_p
    size = ctypes.c_size_t
    kinds: list[tuple[int, Callable[[_Buffers], object]]] = [
        (
            1,
            lambda b: libc.memchr(ctypes.c_void_p(b.source), 1, size(b.nbytes)),
        ),  # the memory holds zeros, so memchr reads to the end
        (1, lambda b: libc.memset(ctypes.c_void_p(b.target), 0, size(b.nbytes))),
        (2, lambda b: libc.memcpy(ctypes.c_void_p(b.target), ctypes.c_void_p(b.source), size(b.nbytes))),
    ]
    rates = [0.0] * len(kinds)
    for placement in range(PLACEMENTS):
        crew = _Crew(cpus, nbytes)
        try:
            for number, (touched, work) in enumerate(kinds):
                best = crew.best_seconds(work, _SECONDS)
                rates[number] = max(rates[number], touched * nbytes * threads / best / 1e9)
                progress((placement * len(kinds) + number + 1) / (PLACEMENTS * len(kinds)))
        finally:
            crew.dismiss()
    return MemorySpeed(read_gbs=rates[0], write_gbs=rates[1], copy_gbs=rates[2], threads=threads)


class _Crew:
    """A thread pinned to each CPU, with memory that it touched first, so that it is local to the CPU's NUMA node."""

    def __init__(self, cpus: Collection[int], nbytes: int) -> None:
        self._start = threading.Barrier(len(cpus) + 1)
        self._end = threading.Barrier(len(cpus) + 1)
        self._work: Callable[[_Buffers], object] | None = None
        self._spans = [(0.0, 0.0)] * len(cpus)
        self._threads = [
            threading.Thread(target=self._run, args=(number, cpu, nbytes), daemon=True)
            for number, cpu in enumerate(sorted(cpus))
        ]
        for thread in self._threads:
            thread.start()

    def best_seconds(self, work: Callable[[_Buffers], object], seconds: float) -> float:
        """The shortest pass, from the first thread's start to the last one's end."""
        passes: list[float] = []
        self._work = work
        until = time.perf_counter() + seconds
        while len(passes) < _LEAST_PASSES or (len(passes) < PASSES and time.perf_counter() < until):
            self._start.wait()
            self._end.wait()
            passes.append(max(end for _, end in self._spans) - min(start for start, _ in self._spans))
        return min(passes)

    def dismiss(self) -> None:
        """Let the threads end and release their memory."""
        self._work = None
        self._start.wait()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int, cpu: int, nbytes: int) -> None:
        if hasattr(os, "sched_setaffinity"):
            with contextlib.suppress(OSError):  # the CPU may have gone offline since; then run anywhere
                os.sched_setaffinity(0, {cpu})
        memory = huge_pages(2 * nbytes)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        ctypes.memset(address, 0, 2 * nbytes)
        buffers = _Buffers(address, address + nbytes, nbytes)
        while True:
            self._start.wait()
            if self._work is None:
                return
            started = time.perf_counter()
            self._work(buffers)
            self._spans[number] = (started, time.perf_counter())
            self._end.wait()

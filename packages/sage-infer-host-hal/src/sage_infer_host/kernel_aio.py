"""Linux asynchronous I/O (io_submit(2)) by ctypes: many requests in flight from one thread.

Threads with ``os.preadv`` cannot saturate a fast disk, as each request takes the GIL twice; here one system call
submits a whole batch. The structures are those of include/uapi/linux/aio_abi.h.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from types import TracebackType

from sage_infer_host.huge_pages import huge_pages

__all__ = ["AsyncFile", "NoAsyncIO"]

# io_setup, io_destroy, io_submit, io_getevents: arch/*/entry/syscalls. All but x86_64 share the generic table.
_CALLS: Mapping[str, tuple[int, int, int, int]] = {
    "x86_64": (206, 207, 209, 208),
    "aarch64": (0, 1, 2, 4),
    "loongarch64": (0, 1, 2, 4),
    "riscv64": (0, 1, 2, 4),
}
_READ, _WRITE = 0, 1


class NoAsyncIO(OSError):
    """The kernel, the architecture or a sandbox does not support asynchronous direct I/O."""


class _Request(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_uint64), ("key", ctypes.c_uint32), ("flags", ctypes.c_uint32), ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16), ("descriptor", ctypes.c_uint32), ("buffer", ctypes.c_uint64),
        ("nbytes", ctypes.c_uint64), ("offset", ctypes.c_int64), ("reserved", ctypes.c_uint64),
        ("more_flags", ctypes.c_uint32), ("event", ctypes.c_uint32),
    )  # fmt: skip


class _Event(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_uint64), ("request", ctypes.c_uint64), ("result", ctypes.c_int64), ("more", ctypes.c_int64),
    )  # fmt: skip


# Offsets of the fields in units of eight bytes; an event starts with its request's ``data``.
_REQUEST_NUMBERS, _OFFSET = ctypes.sizeof(_Request) // 8, _Request.offset.offset // 8
_EVENT_NUMBERS, _RESULT = ctypes.sizeof(_Event) // 8, _Event.result.offset // 8


class AsyncFile:
    """Keeps ``depth`` requests of ``nbytes`` in flight on a file opened with ``O_DIRECT``.

    Raises:
        NoAsyncIO: on entry, if asynchronous I/O is not supported.
    """

    def __init__(self, descriptor: int, *, nbytes: int, depth: int) -> None:
        self._nbytes, self._depth = nbytes, depth
        # Small batches: with all requests in one batch, disk and program alternately wait for each other, and a
        # virtual disk lost a fifth of its speed. One by one, the calls from Python cost as much.
        self._most = max(depth // 8, 1)
        self._context = ctypes.c_ulong(0)
        self._memory = huge_pages(nbytes * depth)  # page-aligned, as direct I/O requires
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        # Plain integers too: attribute access of a structure takes as long as a request, microseconds.
        raw = bytearray(depth * ctypes.sizeof(_Request))
        self._requests = (_Request * depth).from_buffer(raw)
        self._numbers = memoryview(raw).cast("q")
        for slot, request in enumerate(self._requests):
            request.data, request.descriptor, request.nbytes = slot, descriptor, nbytes
            request.buffer = address + slot * nbytes
        self._addresses = [ctypes.addressof(request) for request in self._requests]

    def __enter__(self) -> AsyncFile:
        if platform.machine() not in _CALLS or sys.maxsize < 2**32:
            raise NoAsyncIO(f"asynchronous I/O is not supported on {platform.machine()}")
        self._setup, self._destroy, self._submit, self._getevents = _CALLS[platform.machine()]
        self._libc = ctypes.CDLL(None, use_errno=True)
        if self._libc.syscall(self._setup, self._depth, ctypes.byref(self._context)) != 0:
            raise NoAsyncIO(f"io_setup failed: {os.strerror(ctypes.get_errno())}")
        noise = os.urandom(self._nbytes)  # incompressible, also for disks that deduplicate
        for slot in range(self._depth):
            self._memory[slot * self._nbytes : (slot + 1) * self._nbytes] = noise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._libc.syscall(self._destroy, self._context)  # waits for requests in flight

    def run(self, offsets: Iterator[int], *, write: bool, seconds: float) -> tuple[int, float]:
        """Submit requests at these offsets, always ``depth`` in flight, until they are done or the time is up.

        Returns the number of completed requests and the seconds that they took.

        Raises:
            OSError: a request failed, or moved fewer bytes than asked for.
        """
        for request in self._requests:
            request.opcode = _WRITE if write else _READ
        pointers = (ctypes.c_uint64 * self._depth)()
        raw = bytearray(self._depth * ctypes.sizeof(_Event))
        events, told = (_Event * self._depth).from_buffer(raw), memoryview(raw).cast("q")
        free, completed, under_way = list(range(self._depth)), 0, 0
        numbers, addresses = self._numbers, self._addresses
        started = time.perf_counter()
        end = started + seconds
        while True:
            batch = 0
            if time.perf_counter() < end:
                for slot, offset in zip(free, offsets, strict=False):
                    numbers[slot * _REQUEST_NUMBERS + _OFFSET] = offset
                    pointers[batch] = addresses[slot]
                    batch += 1
            self._hand_over(batch, pointers)
            under_way += batch
            if not under_way:
                return completed, time.perf_counter() - started
            done = self._wait(events)
            for result in told[_RESULT : done * _EVENT_NUMBERS : _EVENT_NUMBERS].tolist():
                if result != self._nbytes:
                    reason = os.strerror(-result) if result < 0 else f"{result} bytes moved"
                    raise OSError(f"a request of {self._nbytes} bytes failed: {reason}")
            free = told[: done * _EVENT_NUMBERS : _EVENT_NUMBERS].tolist()
            completed += done
            under_way -= done

    def _hand_over(self, count: int, pointers: ctypes.Array[ctypes.c_uint64]) -> None:
        taken = 0
        while taken < count:
            rest = ctypes.byref(pointers, taken * ctypes.sizeof(ctypes.c_void_p))
            done = self._libc.syscall(self._submit, self._context, ctypes.c_long(count - taken), rest)
            if done < 0:
                raise OSError(f"io_submit failed: {os.strerror(ctypes.get_errno())}")
            taken += done

    def _wait(self, events: ctypes.Array[_Event]) -> int:
        """Wait for completions; returns their number."""
        while True:
            done = self._libc.syscall(
                self._getevents, self._context, ctypes.c_long(1), ctypes.c_long(self._most), events, None
            )
            if done > 0:
                return int(done)
            if done < 0 and ctypes.get_errno() != 4:  # EINTR
                raise OSError(f"io_getevents failed: {os.strerror(ctypes.get_errno())}")

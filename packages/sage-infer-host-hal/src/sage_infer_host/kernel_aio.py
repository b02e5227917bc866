"""Linux asynchronous I/O (io_submit(2)) by ctypes: many requests under way from one thread.

Threads with ``os.preadv`` cannot keep a fast disk busy, as each request takes the interpreter's lock twice; here one
system call hands over a whole batch. The structures are those of include/uapi/linux/aio_abi.h.
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

# io_setup, io_destroy, io_submit, io_getevents: arch/*/entry/syscalls. Those after x86_64 share the generic table.
_CALLS: Mapping[str, tuple[int, int, int, int]] = {
    "x86_64": (206, 207, 209, 208),
    "aarch64": (0, 1, 2, 4),
    "loongarch64": (0, 1, 2, 4),
    "riscv64": (0, 1, 2, 4),
}
_READ, _WRITE = 0, 1


class NoAsyncIO(OSError):
    """The kernel, its architecture or a sandbox does not offer asynchronous direct I/O here."""


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


# Where the numbers of a structure are, counted in eight bytes; an event begins with its request's ``data``.
_REQUEST_NUMBERS, _OFFSET = ctypes.sizeof(_Request) // 8, _Request.offset.offset // 8
_EVENT_NUMBERS, _RESULT = ctypes.sizeof(_Event) // 8, _Event.result.offset // 8


class AsyncFile:
    """``depth`` requests of ``nbytes`` each under way in a file that is open with ``O_DIRECT``.

    Raises:
        NoAsyncIO: when it is entered, where there is no such thing here.
    """

    def __init__(self, descriptor: int, *, nbytes: int, depth: int) -> None:
        self._nbytes, self._depth = nbytes, depth
        # Few at a time: with all that there are, disk and program take turns in waiting for each other's batch, and a
        # virtual disk gave a fifth less. One at a time, calls from Python cost as much.
        self._most = max(depth // 8, 1)
        self._context = ctypes.c_ulong(0)
        self._memory = huge_pages(nbytes * depth)  # aligned to pages, as direct I/O demands
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        # Plain numbers beside the structures: a request costs microseconds, and so would attributes of a structure.
        raw = bytearray(depth * ctypes.sizeof(_Request))
        self._requests = (_Request * depth).from_buffer(raw)
        self._numbers = memoryview(raw).cast("q")
        for slot, request in enumerate(self._requests):
            request.data, request.descriptor, request.nbytes = slot, descriptor, nbytes
            request.buffer = address + slot * nbytes
        self._addresses = [ctypes.addressof(request) for request in self._requests]

    def __enter__(self) -> AsyncFile:
        if platform.machine() not in _CALLS or sys.maxsize < 2**32:
            raise NoAsyncIO(f"asynchronous I/O is not known for {platform.machine()}")
        self._setup, self._destroy, self._submit, self._getevents = _CALLS[platform.machine()]
        self._libc = ctypes.CDLL(None, use_errno=True)
        if self._libc.syscall(self._setup, self._depth, ctypes.byref(self._context)) != 0:
            raise NoAsyncIO(f"io_setup is refused here: {os.strerror(ctypes.get_errno())}")
        noise = os.urandom(self._nbytes)  # disks that compress or deduplicate must not profit
        for slot in range(self._depth):
            self._memory[slot * self._nbytes : (slot + 1) * self._nbytes] = noise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._libc.syscall(self._destroy, self._context)  # waits for what is under way

    def run(self, offsets: Iterator[int], *, write: bool, seconds: float) -> tuple[int, float]:
        """Requests at these offsets, always ``depth`` under way, until they or the time run out.

        Gives the number that completed and the seconds that they took.

        Raises:
            OSError: the disk refused one, or took or gave less than was asked.
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
        """Wait for a completion; gives how many there are."""
        while True:
            done = self._libc.syscall(
                self._getevents, self._context, ctypes.c_long(1), ctypes.c_long(self._most), events, None
            )
            if done > 0:
                return int(done)
            if done < 0 and ctypes.get_errno() != 4:  # EINTR
                raise OSError(f"io_getevents failed: {os.strerror(ctypes.get_errno())}")

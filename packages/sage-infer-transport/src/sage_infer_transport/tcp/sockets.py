"""Blocking sockets whose time-outs are the kernel's: one system call moves a whole block, without a poll before it."""

from __future__ import annotations

import os
import socket
import struct

__all__ = ["prepare", "receive_some", "send_some"]


def prepare(sock: socket.socket, silence_s: float) -> None:
    """Make a connection blocking; calls raise ``TimeoutError`` after ``silence_s`` without a byte."""
    seconds = int(silence_s)
    limit = struct.pack("ll", seconds, int((silence_s - seconds) * 1e6))
    sock.settimeout(None)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def receive_some(sock: socket.socket, block: memoryview) -> int:
    """Fill a block, or as much of it as arrives before the connection ends or is silent for too long.

    Returns the number of bytes; 0 if the connection has ended.

    Raises:
        TimeoutError: nothing arrived in time.
    """
    try:
        return sock.recv_into(block, 0, socket.MSG_WAITALL)
    except BlockingIOError:
        raise TimeoutError("the peer sent nothing in time") from None


def send_some(sock: socket.socket, fd: int, offset: int, count: int, mapped: memoryview | None) -> int:
    """Send bytes of a file; returns how many it sent, which is 0 at the end of the file.

    They are not copied on their way to a network. Within a host the receiver would then read them from memory that is
    in no cache, so ``mapped``, the same bytes, are copied to the socket instead: that takes half of the time.

    Raises:
        TimeoutError: the peer received nothing in time.
    """
    try:
        if mapped is not None and sock.getpeername()[0] == sock.getsockname()[0]:
            return sock.send(mapped[:count])
        return os.sendfile(sock.fileno(), fd, offset, count)
    except BlockingIOError:
        raise TimeoutError("the peer received nothing in time") from None

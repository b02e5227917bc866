"""Request queue of the engine thread: commands from other threads, and ids of open requests."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence

from sage_infer.errors import EngineDead, InvalidRequest, Overloaded, SageInferError
from sage_infer.sdk.admission import RetryEstimate

__all__ = ["Command", "RequestQueue"]

Command = Callable[[], None]

_LONGEST_WAIT_S = 3600.0  # waits of threads are limited


class RequestQueue:
    """Thread-safe. After it stops, it accepts no more requests or calls."""

    def __init__(self, max_open: int) -> None:
        self._max_open = max_open
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards the next two
        self._ids: set[str] = set()
        self._stopped: SageInferError | None = None
        self._retry = RetryEstimate()

    # --- from any thread

    def submit(self, ids: Sequence[str], command: Command) -> None:
        """Open these ids, all or none, and queue the command that starts them.

        Raises:
            EngineDead: the engine has stopped.
            InvalidRequest: an id is in use, or there are more ids than the limit.
            Overloaded: too many are open.
        """
        with self._lock:
            self._open(ids)
            self._commands.put(command)

    def call(self, command: Command) -> None:
        """Queue a command with a waiting caller.

        Raises:
            EngineDead: the engine has stopped.
        """
        with self._lock:
            self._check_running()
            self._commands.put(command)

    def post(self, command: Command | None) -> None:
        """Queue a command without a waiting caller; None stops the engine."""
        self._commands.put(command)

    @property
    def stopped(self) -> SageInferError | None:
        return self._stopped

    @property
    def retry_after(self) -> float:
        """Expected seconds until a request ends, from the recent rate."""
        return self._retry.retry_after

    # --- from the engine thread

    def open(self, request_id: str) -> None:
        """Open an id. Raises the errors of ``submit``."""
        with self._lock:
            self._open([request_id])

    def rename(self, old: str, new: str) -> None:
        """Change the id of an open request.

        Raises:
            InvalidRequest: the new id is in use.
        """
        with self._lock:
            if new != old:
                self._check_unused(new)
            self._ids.discard(old)
            self._ids.add(new)

    def close(self, request_id: str) -> None:
        """Remove the id of a request that has ended."""
        self._retry.ended()
        with self._lock:
            self._ids.discard(request_id)

    def run_commands(self, *, wait_s: float | None) -> bool:
        """Run queued commands; with ``wait_s``, first wait up to that long for one. Returns False to stop."""
        timeout = None if wait_s is None else min(max(wait_s, 0.0), _LONGEST_WAIT_S)
        try:
            command = self._commands.get(block=wait_s is not None, timeout=timeout)
            while command is not None:
                command()
                command = self._commands.get_nowait()
        except queue.Empty:
            return True
        return False

    def stop(self, reason: SageInferError) -> Iterator[Command]:
        """Stop accepting; returns the remaining commands."""
        with self._lock:
            self._stopped = reason
        while not self._commands.empty():
            command = self._commands.get()
            if command is not None:
                yield command

    # --- with the lock

    def _open(self, ids: Sequence[str]) -> None:
        self._check_running()
        for request_id in ids:
            self._check_unused(request_id)
        if len(ids) > self._max_open:
            raise InvalidRequest(
                f"{len(ids)} prompts in one call exceed the limit of {self._max_open} (max_queue)"
            )
        if len(self._ids) + len(ids) > self._max_open:
            raise Overloaded(
                f"{len(self._ids)} requests are open, the limit is {self._max_open}; retry later",
                retry_after=self.retry_after,
            )
        self._ids.update(ids)

    def _check_running(self) -> None:
        if self._stopped is not None:
            raise EngineDead(f"the engine has stopped: {self._stopped}; open the backend again")

    def _check_unused(self, request_id: str) -> None:
        if request_id in self._ids:
            raise InvalidRequest(f"request id {request_id!r} is in use; ids must be unique")

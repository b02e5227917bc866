"""The process that runs NIXL for an endpoint or a transport, seen from outside.

NIXL and UCX are native code with threads of their own. In a process of their own a crash costs the transfers under way,
and a hang is ended by killing it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from typing import IO, Any

from sage_infer.errors import BackendUnavailable

from sage_infer_nixl.control import Place, read_line

__all__ = ["AgentProcess", "ProcessEnded", "SharedProcess"]

_log = logging.getLogger(__name__)

START_S = 120.0
"""Seconds for the process to start; NIXL loads its plug-ins then."""

_END_S = 5.0
_INSTALL = "pip install 'sage-infer-nixl[cu12]', or [cu13] for CUDA 13"


class ProcessEnded(OSError):
    """The process that runs NIXL ended, or was killed because it did not answer."""


class AgentProcess:
    """A running process. Safe to use from several threads.

    Args:
        region: descriptor and size of memory that other agents may read and write.

    Attributes:
        place: where that memory is for other agents; without a region its address and size are 0.

    Raises:
        BackendUnavailable: NIXL is not installed, or does not start.
    """

    def __init__(self, *, region: tuple[int, int] | None = None) -> None:
        arguments = [] if region is None else [str(number) for number in region]
        self._said: deque[str] = deque(maxlen=8)
        self._answers: dict[int, Future[Mapping[str, Any]]] = {}
        self._ended = ""  # why, once it has
        self._lock = threading.Lock()
        self._number = 0
        # -P: no module of the working directory takes the place of NIXL's.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sage_infer_nixl.agent", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=() if region is None else (region[0],),
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._stdin, stdout = self._process.stdin, self._process.stdout
        self._hearing = threading.Thread(target=self._hear, args=(self._process.stderr,), daemon=True)
        self._hearing.start()
        started: Future[Mapping[str, Any]] = Future()
        self._answers[0] = started
        threading.Thread(target=self._listen, args=(stdout,), name="sage-nixl", daemon=True).start()
        try:
            self.place = _place(started.result(START_S))
        except TimeoutError:
            self.close()
            raise BackendUnavailable(f"NIXL did not start within {START_S:.0f} s") from None
        except ProcessEnded as error:
            self.close()
            raise BackendUnavailable(f"NIXL did not start: {error}") from None
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return not self._ended and self._process.poll() is None

    def ask(self, what: str, **order: Any) -> tuple[int, Future[Mapping[str, Any]]]:
        """Give an order; returns its number and a future of the answer.

        The future has ``ProcessEnded`` where the process ends first.
        """
        answer: Future[Mapping[str, Any]] = Future()
        with self._lock:
            self._number += 1
            number = self._number
            if self._ended:
                answer.set_exception(ProcessEnded(self._ended))
                return number, answer
            self._answers[number] = answer
        self._send({"do": what, "number": number, **order})
        return number, answer

    def stop(self, number: int) -> None:
        """Ask that an order be given up; its answer still comes."""
        self._send({"do": "stop", "number": number})

    def kill(self, reason: str) -> None:
        """End the process immediately; open orders end with the reason."""
        with self._lock:
            self._ended = self._ended or reason
        self._process.kill()

    def close(self) -> None:
        """End the process, and wait for it. Safe to call twice."""
        with contextlib.suppress(OSError):
            self._stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.kill("the transport was closed")
            self._process.wait()

    def _send(self, message: Mapping[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        with contextlib.suppress(OSError, ValueError), self._lock:  # it has ended: the listener sees that too
            self._stdin.write(line)
            self._stdin.flush()

    def _listen(self, stdout: IO[bytes]) -> None:
        with stdout:
            while (message := read_line(stdout)) is not None:
                with self._lock:
                    answer = self._answers.pop(message.get("number", 0), None)
                if answer is not None and not answer.cancelled():
                    answer.set_result(message)
        code = self._process.wait()
        self._hearing.join(_END_S)  # what it said last is the reason
        with self._lock:
            self._ended = self._ended or f"the process that runs NIXL {_how(code)}{self._last()}"
            left = list(self._answers.values())
            self._answers.clear()
        for answer in left:
            if not answer.cancelled():
                answer.set_exception(ProcessEnded(self._ended))

    def _hear(self, stderr: IO[bytes]) -> None:
        """Keep what native code says last, for the reason of its end."""
        with stderr:
            for line in stderr:
                text = line.decode(errors="replace").strip()
                if text:
                    self._said.append(text)
                    _log.debug("%s", text)

    def _last(self) -> str:
        return f": {self._said[-1][:500]}" if self._said else ""


class SharedProcess:
    """The process of all transports of this process: it starts with the first step and ends with the last transport."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._started: Future[AgentProcess] | None = None

    def join(self) -> None:
        """Use the process from now on, until ``leave``."""
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        """Use it no longer. The last user blocks until it has ended."""
        with self._lock:
            self._users -= 1
            started, left = self._started, not self._users
            if left:
                self._started = None
        if left and started is not None:
            with contextlib.suppress(Exception):  # it did not start
                started.result().close()

    def running(self) -> Future[AgentProcess]:
        """The process; a new one if it has ended.

        The future has ``BackendUnavailable`` where it does not start.
        """
        with self._lock:
            if self._started is None or not _works(self._started):
                self._started = Future()
                threading.Thread(target=_start, args=(self._started,), name="sage-nixl-start").start()
            return self._started


def _start(started: Future[AgentProcess]) -> None:
    started.set_running_or_notify_cancel()
    try:
        started.set_result(AgentProcess())
    except BaseException as error:
        started.set_exception(error)


def _works(started: Future[AgentProcess]) -> bool:
    """Whether a process is being started, or runs."""
    if not started.done():
        return True
    return started.exception() is None and started.result().is_alive


def _place(answer: Mapping[str, Any]) -> Place:
    """
    Raises:
        BackendUnavailable: NIXL did not start.
    """
    if "missing" in answer:
        raise BackendUnavailable(f"NIXL is not installed ({answer['missing']}); {_INSTALL}")
    if "error" in answer:
        raise BackendUnavailable(f"NIXL did not start: {answer['error']}")
    return Place.of(answer)


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"

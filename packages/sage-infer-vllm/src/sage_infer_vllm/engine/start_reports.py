"""Progress and failures that the processes of an engine report, as datagrams."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from sage_infer.compat import Self

__all__ = ["ADDRESS", "Listener", "report", "report_failure"]

ADDRESS = "SAGE_INFER_VLLM_REPORTS"
_LONGEST = 8192  # maximum bytes of a datagram
_SHOWN = 1500  # maximum characters of an error's text
_DRAIN_S = 5.0  # a bound: the queue is short, and its reader does nothing else


def report(**fields: str) -> None:
    """Send a report to the process that started the engine; ignored if it no longer listens."""
    address = os.environ.get(ADDRESS)
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(OSError):
            sender.sendto(json.dumps(fields).encode()[:_LONGEST], address)


def report_failure(error: BaseException) -> None:
    """Report a failure. The first reported failure is the cause of the others."""
    report(error=type(error).__name__, text=str(error)[:_SHOWN])


class Listener:
    """Receives reports until it is closed; ``on_stage`` is called in a separate thread.

    Attributes:
        failures: reported errors as (class name, text), in order.
    """

    def __init__(self, on_stage: Callable[[str], None]) -> None:
        self.failures: list[tuple[str, str]] = []
        self._on_stage = on_stage
        self._folder = tempfile.TemporaryDirectory(prefix="sage-vllm-")
        self.address = str(Path(self._folder.name, "reports"))
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._thread = threading.Thread(target=self._listen, name="sage-vllm-reports", daemon=True)
        self._drained: dict[str, threading.Event] = {}
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def drain(self) -> None:
        """Wait until all reports that were sent before are received. Returns immediately after ``close``."""
        name, done = uuid.uuid4().hex, threading.Event()
        self._drained[name] = done
        if self._send(json.dumps({"drained": name}).encode()):
            done.wait(_DRAIN_S)
        self._drained.pop(name, None)

    def close(self) -> None:
        """Receive the reports that were sent before, and end. Safe to call twice."""
        self._send(b"")  # ends the thread after earlier reports
        self._thread.join()
        self._socket.close()
        self._folder.cleanup()

    def _send(self, data: bytes) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(OSError):
            sender.sendto(data, self.address)
            return True
        return False

    def _listen(self) -> None:
        while data := self._socket.recv(_LONGEST):
            with suppress(ValueError):
                found = json.loads(data)
                if (done := self._drained.pop(found.get("drained"), None)) is not None:
                    done.set()
                if "stage" in found:
                    self._on_stage(found["stage"])
                if "error" in found:
                    self.failures.append((found["error"], found.get("text", "")))

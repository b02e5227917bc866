"""Progress and failures reported by the processes of a starting engine, as datagrams."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from sage_infer.compat import Self

__all__ = ["ADDRESS", "Listener", "report", "report_failure"]

ADDRESS = "SAGE_INFER_VLLM_REPORTS"
_LONGEST = 8192  # maximum bytes of a datagram
_SHOWN = 1500  # maximum characters of an error's text


def report(**fields: str) -> None:
    """Send a report to the process that starts the engine; ignored if it no longer listens."""
    address = os.environ.get(ADDRESS)
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(OSError):
            sender.sendto(json.dumps(fields).encode()[:_LONGEST], address)


def report_failure(error: BaseException) -> None:
    """Report a failure. The first reported failure is the cause of the others."""
    report(error=type(error).__name__, text=str(error)[:_SHOWN])


class Listener:
    """Receives reports while entered; ``on_stage`` is called in a separate thread.

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

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(OSError):
            sender.sendto(b"", self.address)  # ends the thread after earlier reports
        self._thread.join()
        self._socket.close()
        self._folder.cleanup()

    def _listen(self) -> None:
        while data := self._socket.recv(_LONGEST):
            with suppress(ValueError):
                found = json.loads(data)
                if "stage" in found:
                    self._on_stage(found["stage"])
                if "error" in found:
                    self.failures.append((found["error"], found.get("text", "")))

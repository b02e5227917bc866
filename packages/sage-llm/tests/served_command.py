"""Runs ``sage … --json`` as a server in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["GUARD_S", "SAGE", "served"]

GUARD_S = 300
SAGE = [sys.executable, "-m", "sage_infer.cli.main"]


@contextmanager
def served(
    folder: Path, *command: str, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Start a server on a free port; yields its process, and what it prints when it is ready.

    Args:
        folder: where it runs; its standard error is appended to the file ``errors`` there.
        command: the words after ``sage``.
        environment: changed environment variables.
    """
    log = folder / "errors"
    with log.open("a") as errors:
        server = subprocess.Popen(
            [*SAGE, *command, "--port", "0", "--json"],
            stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder, env={**os.environ, **(environment or {})},
        )  # fmt: skip
    guard = threading.Timer(GUARD_S, server.kill)
    guard.start()
    try:
        assert server.stdout is not None
        text = ""
        while not text.rstrip().endswith("\n}"):
            line = server.stdout.readline()
            assert line, log.read_text()
            text += line
        yield server, json.loads(text)
    finally:
        guard.cancel()
        server.send_signal(signal.SIGCONT)
        server.terminate()
        try:
            server.wait(GUARD_S)
        finally:
            server.kill()
            server.wait()
            assert server.stdout is not None
            server.stdout.close()

"""Run a vendor's tool: with a time limit, in the C locale, leaving no files behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sage_infer.errors import ToolOutputError

from sage_infer_hal.detection.redaction import redacted

__all__ = ["TIME_LIMIT_S", "Answer", "answers", "find_tools", "run_tool"]

TIME_LIMIT_S = 5.0
"""Time limit of one call in seconds. A healthy tool answers within a second; a hanging driver must not block us."""

Answer = str | ToolOutputError
"""What a tool printed, or the error that explains why it printed nothing."""

_C_LOCALE = {"LC_ALL": "C", "LANG": "C", "LANGUAGE": "C", "TERM": "dumb", "NO_COLOR": "1"}
_SHOWN = 120  # characters of a failing tool's last line quoted in a message


def find_tools(*names: str, folders: Sequence[str] = ()) -> list[str]:
    """Paths of these tools on ``PATH``, else in the vendor's folders, in the order of the names."""
    places = [None, *folders]  # None is PATH
    paths = (next((p for place in places if (p := shutil.which(name, path=place))), None) for name in names)
    return [path for path in paths if path is not None]


def run_tool(
    tool: str, *arguments: str, timeout_s: float = TIME_LIMIT_S, output_file: str | None = None
) -> str:
    """Return what the tool prints, or what it writes to ``output_file`` in its working directory.

    With ``output_file`` the working directory is a temporary one, removed afterwards. The tool runs in its own
    process group, which is killed with it at the time limit.

    Raises:
        ToolOutputError: the tool is missing, fails, takes too long, or does not write the file.
    """
    if output_file is None:
        return _run([tool, *arguments], timeout_s, folder=None)
    with tempfile.TemporaryDirectory(prefix="sage-detect-") as folder:
        _run([tool, *arguments], timeout_s, folder=folder)
        try:
            return Path(folder, output_file).read_text("utf-8", errors="replace")
        except OSError as error:
            command = _command(tool, arguments)
            raise ToolOutputError(f"{command} did not write {output_file}: {error.strerror}") from error


def answers(calls: Sequence[Sequence[str]], *, timeout_s: float = TIME_LIMIT_S) -> list[Answer]:
    """Run several calls simultaneously; returns their answers in order, with the error for a call that failed."""

    def answer(call: Sequence[str]) -> Answer:
        try:
            return run_tool(*call, timeout_s=timeout_s)
        except ToolOutputError as error:
            return error

    with ThreadPoolExecutor(max(1, len(calls))) as pool:
        return list(pool.map(answer, calls))


def _run(command: list[str], timeout_s: float, folder: str | None) -> str:
    shown = _command(command[0], command[1:])
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=folder, env={**os.environ, **_C_LOCALE}, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise ToolOutputError(f"{shown} cannot be run: {error.strerror or error}") from error
    with process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as expired:
            raise ToolOutputError(
                f"{shown} did not answer within {timeout_s:g} s; the driver may hang: run it by hand, and look at dmesg"
            ) from expired
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
    text = out.decode("utf-8", errors="replace")
    if process.returncode != 0:
        said = [line for line in (text + err.decode("utf-8", errors="replace")).splitlines() if line.strip()]
        last = redacted(said[-1].strip())[:_SHOWN] if said else "it printed nothing"
        raise ToolOutputError(f"{shown} failed with exit code {process.returncode}: {last}")
    return text


def _command(tool: str, arguments: Sequence[str]) -> str:
    return " ".join([Path(tool).name, *arguments])

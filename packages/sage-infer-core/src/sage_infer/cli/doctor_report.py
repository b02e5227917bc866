"""``sage infer doctor --report FILE``: one file for a bug report, without secrets."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import socket
from collections.abc import Iterable
from pathlib import Path

from sage_infer.errors import InvalidRequest

__all__ = ["new_file", "report_text"]

_VARIABLES = (
    "CUDA_*", "GLOO_*", "HF_HUB_OFFLINE", "LD_LIBRARY_PATH", "LD_PRELOAD", "MKL_*", "NCCL_*", "NVIDIA_VISIBLE_DEVICES",
    "OMP_*", "PATH", "PYTHON*", "PYTORCH_*", "RAY_*", "SAGE_INFER_*", "TORCH_*", "TP_SOCKET_IFNAME", "UCX_*",
    "VIRTUAL_ENV", "VLLM_*",
)  # fmt: skip
_INTRODUCTION = """\
Report of `sage infer doctor`, for a bug report.
Serial numbers, tokens, passwords, the host's name and the path of the home folder are replaced; of the environment,
only variables of engines, drivers and Python are listed. Please read it before you share it.
"""


def report_text(doctor: str, variables: Iterable[str], nodes: Iterable[str]) -> str:
    """The report.

    Args:
        doctor: what the command prints.
        variables: patterns of the vendors' environment variables.
        nodes: existing device files of the vendors.
    """
    from sage_infer.sdk.diagnosis.redaction import shareable_environment, without_secrets

    shown = shareable_environment(os.environ, (*_VARIABLES, *variables))
    left_out = len(os.environ) - len(shown)
    sections = {
        "doctor": doctor.rstrip().splitlines(),
        "system": [f"{platform.platform()}, {platform.machine()}, {os.cpu_count()} CPUs"],
        "device files": list(dict.fromkeys(nodes)) or ["none"],
        "environment variables": [
            *(f"{name}={value}" for name, value in shown.items()), f"({left_out} others are left out)",
        ],
        "distributions": _distributions(),
    }  # fmt: skip
    parts = [
        _INTRODUCTION,
        *(f"\n== {title} ==\n" + "\n".join(lines) + "\n" for title, lines in sections.items()),
    ]
    return _anonymous(without_secrets("".join(parts)))


def new_file(path: Path, text: str) -> None:
    """Write the report, readable by its owner only.

    Raises:
        InvalidRequest: the file exists or cannot be written.
    """
    try:
        with open(path, "x", encoding="utf-8", opener=_private) as file:
            file.write(text)
    except FileExistsError:
        raise InvalidRequest(f"{path} exists; name a new file, or remove it") from None
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be written: {error.strerror}") from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _distributions() -> list[str]:
    found = {
        (dist.metadata["Name"] or "?").lower(): f"{dist.metadata['Name']} {dist.version}"
        for dist in importlib.metadata.distributions()
    }
    return [line for _, line in sorted(found.items())]


def _anonymous(text: str) -> str:
    """The text without the path of the home folder, and without the host's name."""
    home = os.path.expanduser("~").rstrip("/")
    if home.count("/") > 1 or home == "/root":  # not "/" or "/home", which containers have
        text = text.replace(home, "~")
    host = socket.gethostname()
    if len(host) > 3 and host != "localhost":
        text = re.sub(rf"(?<![\w-]){re.escape(host)}(?![\w-])", "[host]", text)
    return text

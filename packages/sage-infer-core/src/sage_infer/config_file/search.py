"""Location of the configuration file, and the sections that the core reads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from sage_infer.errors import ConfigError

__all__ = [
    "CONFIG_VARIABLE",
    "CORE_SECTIONS",
    "DISABLE_VARIABLE",
    "FILE_NAME",
    "ROOT_VARIABLE",
    "find_config_file",
    "read_text",
    "split_names",
]

CONFIG_VARIABLE = "SAGE_INFER_CONFIG"
DISABLE_VARIABLE = "SAGE_INFER_DISABLE"
ROOT_VARIABLE = "SAGE_INFER_ROOT"
"""Files of drivers, toolkits and devices are looked for in this folder instead of ``/``."""

FILE_NAME = "sage_infer.yaml"

CORE_SECTIONS = ("inference", "kv_schema", "transport", "plugins", "models")
"""Sections of the file that the core reads; others belong to plug-ins."""


def find_config_file(path: Path | str | None = None, environ: Mapping[str, str] | None = None) -> Path | None:
    """The effective file: ``path``, SAGE_INFER_CONFIG, ./, ./config/ or the user's configuration folder.

    Raises:
        ConfigError: ``path`` or the variable names a missing file.
    """
    environ = os.environ if environ is None else environ
    named = os.fspath(path) if path is not None else environ.get(CONFIG_VARIABLE, "")
    if named:
        wanted = Path(named).expanduser()
        if not wanted.is_file():
            by = "" if path is not None else f" (named by --config or {CONFIG_VARIABLE})"
            what = "is a folder" if wanted.is_dir() else "no such file"
            raise ConfigError(f"{wanted}{by}: {what}; `sage infer config init PATH` writes one")
        return wanted
    for candidate in (Path(FILE_NAME), Path("config") / FILE_NAME):
        if candidate.is_file():
            return candidate
    import platformdirs

    user = platformdirs.user_config_path("sage-infer", appauthor=False) / FILE_NAME
    return user if user.is_file() else None


def read_text(path: Path) -> str:
    """The file's text.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8 text (byte 0x{raw[error.start]:02x})") from None


def split_names(text: str) -> tuple[str, ...]:
    """``"a, b,,a"`` → ``("a", "b")``."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))

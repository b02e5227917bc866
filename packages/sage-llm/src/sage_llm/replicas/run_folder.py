"""The folder with sockets, records and logs of replicas."""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from pathlib import Path

from sage_infer.errors import ConfigError

__all__ = ["RUN_FOLDER_VARIABLE", "new_socket", "run_folder"]

RUN_FOLDER_VARIABLE = "SAGE_LLM_RUN_FOLDER"
_MAX_PATH_BYTES = 100  # the system's limit for socket paths is 104 or 108


def run_folder(folder: Path | None = None) -> Path:
    """Return the run folder, and create it if needed. Only this user can enter it.

    It is ``folder``, else ``$SAGE_LLM_RUN_FOLDER``, ``$XDG_RUNTIME_DIR/sage-llm``, or ``sage-llm-UID`` in the
    folder for temporary files.

    Raises:
        ConfigError: the folder belongs to another user, is open to others, or its path is too long for sockets.
    """
    chosen = folder or _default()
    chosen.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = chosen.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(
            f"the run folder {chosen} must be a folder of this user with mode 0700; fix it, or set "
            f"{RUN_FOLDER_VARIABLE}"
        )
    if len(os.fsencode(chosen)) > _MAX_PATH_BYTES - len("/0123456789abcdef.sock"):
        raise ConfigError(
            f"the path of the run folder {chosen} is too long for sockets; set {RUN_FOLDER_VARIABLE}"
        )
    return chosen


def new_socket() -> Path:
    """Return a path in the run folder that nobody uses."""
    return run_folder() / f"{secrets.token_hex(8)}.sock"


def _default() -> Path:
    if chosen := os.environ.get(RUN_FOLDER_VARIABLE):
        return Path(chosen)
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "sage-llm"
    return Path(tempfile.gettempdir()) / f"sage-llm-{os.getuid()}"

"""The commented configuration template shipped in the wheel."""

from __future__ import annotations

import os
import tempfile
from importlib.resources import files
from pathlib import Path

from sage_infer.config.loading import section_templates
from sage_infer.config_file.search import FILE_NAME
from sage_infer.errors import ConfigError

__all__ = ["config_template", "write_template"]


def config_template() -> str:
    """Text of a ``sage_infer.yaml`` with every key, its default and its meaning: the core's sections, then those of
    installed plug-ins.
    """
    core = files("sage_infer.config").joinpath(FILE_NAME).read_text(encoding="utf-8")
    return "\n".join([core, *section_templates()])


def write_template(path: Path | str, force: bool = False) -> Path:
    """Write the template to ``path`` atomically.

    Raises:
        ConfigError: the file exists and ``force`` is not set, or it cannot be written.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name the file to write, such as {path / FILE_NAME}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(config_template())
            os.chmod(aside, 0o644)  # mkstemp's 0600 would prevent other users of a service from reading it
            if force:
                os.replace(aside, path)
            elif not _placed(aside, path):
                raise ConfigError(f"{path} already exists; `--force` overwrites it")
        finally:
            Path(aside).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from None
    return path


def _placed(aside: str, path: Path) -> bool:
    """Move without overwriting. A hard link does both in one step, where the file system supports it."""
    try:
        os.link(aside, path)
    except FileExistsError:
        return False
    except OSError:
        if path.exists():
            return False
        os.replace(aside, path)
    return True

"""Identity of a model's weights, equal for every copy of its files."""

from __future__ import annotations

from pathlib import Path

import xxhash
from sage_infer.errors import ModelFileError

__all__ = ["content_id"]

_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth"}
_PIECE = 16 * 2**20


def content_id(folder: Path) -> str:
    """Hash of the configuration and all weight files, in hex. Reads the whole files; xxhash releases the GIL.

    Raises:
        ModelFileError: a file cannot be read.
    """
    found = xxhash.xxh3_128()
    files = [
        file for file in sorted(folder.iterdir()) if file.suffix in _SUFFIXES or file.name == "config.json"
    ]
    try:
        for file in files:
            found.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                while piece := stream.read(_PIECE):
                    found.update(piece)
    except OSError as error:
        raise ModelFileError(f"{folder} cannot be read ({error}); check the model's files") from error
    return found.hexdigest()

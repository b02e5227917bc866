"""Model files are opened here: regular files only.

A named pipe keeps its reader waiting for ever, a device never ends, and opening a device may act on it. A folder from
elsewhere may hold any of them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sage_infer.errors import ModelFileError

__all__ = ["check_model_files", "open_model_file", "read_model_text"]

_KINDS = {
    stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}  # fmt: skip
# Suffixes of files that engines and their libraries read from a model's folder.
_READ = frozenset((
    ".bin", ".gguf", ".jinja", ".json", ".model", ".onnx", ".pt", ".pth", ".py", ".safetensors", ".tiktoken", ".txt",
    ".xml", ".yaml", ".yml",
))  # fmt: skip


def open_model_file(path: Path) -> BinaryIO:
    """Open a file for reading in binary mode.

    Raises:
        OSError: it cannot be opened, or is not a regular file; ``strerror`` says what it is.
    """
    return open(path, "rb", opener=_opened)


def read_model_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of a file.

    Raises:
        OSError: as ``open_model_file``.
        UnicodeError: it is not text in this encoding.
    """
    with open_model_file(path) as file:
        return file.read().decode(encoding)


def check_model_files(path: Path) -> None:
    """Check that what libraries read at a path is regular files: the file, or those of a model's folder.

    Raises:
        ModelFileError: one is a named pipe, a socket, a device or a folder; the message names it.
    """
    for file in _read_by_engines(path):
        try:
            found = os.stat(file)
        except OSError:
            continue  # such as a broken link: reading it reports why
        if not stat.S_ISREG(found.st_mode):
            raise ModelFileError(f"{file} cannot be read: {_difference(found)}; copy the model again")


def _read_by_engines(path: Path) -> Iterator[Path]:
    """The file itself, or a folder's files with known suffixes, down to the folders of a Hugging Face folder."""
    if not path.is_dir():
        yield path
        return
    inner = []
    for entry in _entries(path):
        if os.path.splitext(entry.name)[1].lower() in _READ:
            yield Path(entry)
        elif entry.is_dir():
            inner.append(entry)
    if os.path.lexists(path / "config.json"):
        for folder in inner:
            yield from (Path(e) for e in _entries(folder) if os.path.splitext(e.name)[1].lower() in _READ)


def _entries(folder: Path | os.DirEntry[str]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []  # reading a file of it reports why


def _opened(path: str, flags: int) -> int:
    _check(os.stat(path))
    # Without waiting for a writer, if a named pipe has taken the file's place meanwhile.
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    try:
        _check(os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        number = errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.EINVAL
        raise OSError(number, _difference(found))


def _difference(found: os.stat_result) -> str:
    return f"it is {_KINDS.get(stat.S_IFMT(found.st_mode), 'no file')}, expected a regular file"

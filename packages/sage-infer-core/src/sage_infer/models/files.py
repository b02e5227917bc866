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
_TEXTS = frozenset((".bpe", ".jinja", ".json", ".py", ".tiktoken", ".txt", ".vocab", ".xml", ".yaml", ".yml"))
_READ = _TEXTS | {".bin", ".gguf", ".model", ".onnx", ".pt", ".pth", ".safetensors", ".spm"}
_LONGEST_TEXT = 512 << 20  # bytes, read into memory; the largest known tokenizers have about 40 MB


def open_model_file(path: Path) -> BinaryIO:
    """Open a file for reading in binary mode.

    Raises:
        OSError: it cannot be opened, or is not a regular file; ``strerror`` says what it is.
    """
    return open(path, "rb", opener=_opened)


def read_model_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of a file.

    Raises:
        OSError: as ``open_model_file``, or it has more than 512 MB.
        UnicodeError: it is not text in this encoding.
    """
    with open_model_file(path) as file:
        found = os.fstat(file.fileno())
        if found.st_size > _LONGEST_TEXT:
            raise OSError(errno.EFBIG, _too_long(found))
        return (file.read() or b"").decode(encoding)


def check_model_files(path: Path) -> None:
    """Check what libraries read at a path: the file, or those of a model's folder.

    Raises:
        ModelFileError: one is a named pipe, a socket, a device or a folder, or a text of more than 512 MB; the message
            names it.
    """
    for file in _read_by_engines(path):
        try:
            found = os.stat(file)
        except OSError:
            continue  # such as a broken link: reading it reports why
        if not stat.S_ISREG(found.st_mode):
            raise ModelFileError(f"{file} cannot be read: {_difference(found)}; copy the model again")
        if found.st_size > _LONGEST_TEXT and _suffix(file) in _TEXTS:
            raise ModelFileError(f"{file} cannot be read: {_too_long(found)}; copy the model again")


def _read_by_engines(path: Path) -> Iterator[Path]:
    """The file itself, or a folder's files with known suffixes, down to the folders of a Hugging Face folder."""
    if not path.is_dir():
        yield path
        return
    inner = []
    for entry in _entries(path):
        if _suffix(entry.name) in _READ:
            yield Path(entry)
        elif entry.is_dir():
            inner.append(entry)
    if os.path.lexists(path / "config.json"):
        for folder in inner:
            yield from (Path(entry) for entry in _entries(folder) if _suffix(entry.name) in _READ)


def _suffix(name: str | Path) -> str:
    return os.path.splitext(name)[1].lower()


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


def _too_long(found: os.stat_result) -> str:
    return f"it has {found.st_size:,} bytes, expected at most {_LONGEST_TEXT:,}"

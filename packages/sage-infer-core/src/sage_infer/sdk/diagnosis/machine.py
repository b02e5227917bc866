"""What a check may look at: files, environment variables and metadata of distributions, each within bounds."""

from __future__ import annotations

import glob
import importlib.metadata
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

from attrs import field, frozen

from sage_infer.config_file.search import ROOT_VARIABLE
from sage_infer.models.files import open_model_file

__all__ = ["Machine"]

_TEXT_BYTES = 64 * 1024
_PATHS = 4096


@frozen(kw_only=True)
class Machine:
    """A machine to be checked. Nothing here runs a program or imports a package.

    Attributes:
        root: folder in front of every path; empty for this machine.
        environ: its environment variables.
    """

    root: str = ""
    environ: Mapping[str, str] = field(factory=dict)

    @classmethod
    def here(cls) -> Machine:
        """This machine, or the files below the folder that ``SAGE_INFER_ROOT`` names."""
        return cls(root=os.environ.get(ROOT_VARIABLE, "").rstrip("/"), environ=os.environ)

    def paths(self, pattern: str) -> list[str]:
        """Existing paths that match a glob pattern, sorted and without the root; at most 4,096 of them.

        A pattern may begin with a variable (``$KIT_HOME/version``); without a value of it, nothing matches.
        """
        found = islice(self._matches(pattern), _PATHS)
        return sorted((path.removeprefix(self.root) for path in found), key=_by_number)

    def exists(self, *patterns: str) -> bool:
        """Whether a path matches one of the patterns."""
        return any(next(self._matches(pattern), None) is not None for pattern in patterns)

    def _matches(self, pattern: str) -> Iterator[str]:
        if pattern.startswith("$"):
            name, slash, rest = pattern[1:].partition("/")
            folder = self.variable(name)
            if not folder.startswith("/"):
                return iter(())
            return glob.iglob(glob.escape(self.root + folder) + slash + rest)
        return glob.iglob(glob.escape(self.root) + pattern)

    def text(self, path: str) -> str:
        """The first 64 KiB of a regular file; empty if it cannot be read, or is a device or a pipe."""
        return _read(Path(self.root + path))

    def found_in(self, patterns: Iterable[str], expression: str) -> str:
        """The first group, or match, of a regular expression in the first file that has one; else empty."""
        for pattern in patterns:
            for path in self.paths(pattern):
                match = re.search(expression, self.text(path), re.MULTILINE)
                if match is not None:
                    return match[match.re.groups and 1]
        return ""

    def variable(self, name: str) -> str:
        """The stripped value of an environment variable; empty if it is not set."""
        return self.environ.get(name, "").strip()

    def version(self, distribution: str) -> str:
        """The installed version of a distribution; empty if it is not installed."""
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            return ""

    def entry_points(self, group: str) -> dict[str, str]:
        """Entry points of a group: the distribution by name."""
        found = importlib.metadata.entry_points(group=group)
        return {point.name: point.dist.name if point.dist else "unknown distribution" for point in found}

    def installed_text(self, distribution: str, file: str) -> str:
        """The first 64 KiB of an installed distribution's file, such as ``vllm/version.py``; empty if it is missing."""
        try:
            place = importlib.metadata.distribution(distribution).locate_file(file)
        except importlib.metadata.PackageNotFoundError:
            return ""
        return _read(Path(str(place)))


def _by_number(path: str) -> list[tuple[int, str]]:
    """Sorts ``davinci10`` behind ``davinci9``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path)]


def _read(path: Path) -> str:
    try:
        with open_model_file(
            path
        ) as file:  # regular files only: opening others may block, or act on a device
            return file.read(_TEXT_BYTES).decode("utf-8", errors="replace")
    except (OSError, ValueError):
        return ""

"""The kit for readers of recorded tool output (``DetectorSpec.read_recording``)."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sage_infer.errors import ToolOutputError
from sage_infer.schemas import UNKNOWN_MODEL, AcceleratorDescriptor, HardwareProfile, LinkProfile
from sage_infer.schemas.codec import from_json, to_json

from sage_infer_testing.suite import ContractSuite
from sage_infer_testing.unwritten import find_unwritten, report_unwritten

__all__ = ["RecordingContract"]

_FACTS = ("uuid", "pci_address", "numa_node", "memory_bytes", "cpu_affinity", "compute_capability")
_SERIAL = re.compile(r"\b(?=\w*\d)(?=\w*[A-Za-z])[0-9A-Za-z][0-9A-Za-z-]{9,}\b")
_COLOUR = "\x1b[1;32m"
_PLAIN = "\x1b[0m"


class RecordingContract(ContractSuite, kit=True):
    """Guarantees of a reader for intact and for damaged recordings.

    Attributes:
        folder: folder with the recordings.
        pattern: glob pattern of the recordings in the folder.
        damaged: number of damaged variants to test per recording.
        at_once: maximum number of damages per variant. Use 1 for XML: a lost end and a lost start of two elements leave
            a document that looks intact.
        no_number: note of the reader that an output does not identify its device; the index is then not compared.
    """

    folder: ClassVar[Path] = Path()
    pattern: ClassVar[str] = "*.*"
    damaged: ClassVar[int] = 60
    at_once: ClassVar[int] = 2
    no_number: ClassVar[str] = ""

    def read(self, text: str, *, name: str) -> HardwareProfile:
        """Call the function named by ``DetectorSpec.read_recording``."""
        pytest.fail(f"{type(self).__name__} must override read(text, name=…)")

    @pytest.fixture
    def recordings(self, request: pytest.FixtureRequest) -> list[tuple[str, str, HardwareProfile]]:
        """Name, text and profile of each readable recording."""
        try:
            return self._readable()
        except NotImplementedError as error:
            if (missing := find_unwritten(error)) is not None:
                report_unwritten(request.node, missing)
            raise

    def _readable(self) -> list[tuple[str, str, HardwareProfile]]:
        found = []
        for path in sorted(self.folder.glob(self.pattern)):
            text = path.read_text("utf-8")
            profile = self._read(text, path.name)
            if profile is not None:
                found.append((path.name, text, profile))
        assert found, f"no file {self.pattern} in {self.folder} can be read"
        return found

    def _read(self, text: str, name: str) -> HardwareProfile | None:
        """Return the profile, or None for a ``ToolOutputError``; any other result fails the test."""
        refusal = ""
        try:
            profile = self.read(text, name=name)
        except ToolOutputError as error:
            refusal = str(error)
        if refusal:
            assert "\n" not in refusal, f"the error is more than one line: {refusal}"
            assert name in refusal, f"the error does not name the recording {name}: {refusal}"
            return None
        assert isinstance(profile, HardwareProfile), f"read() returned a {type(profile).__name__}"
        return profile

    def test_profiles_survive_json(self, recordings: Any) -> None:
        """A profile survives a round trip through JSON and names its source.

        How to fix: put the tool and its version into ``HardwareProfile.sources``.
        """
        for name, _, profile in recordings:
            assert from_json(to_json(profile), HardwareProfile) == profile, name
            assert profile.sources, f"{name}: no sources"

    def test_lines_may_end_and_be_coloured_in_any_way(self, recordings: Any) -> None:
        """Carriage returns, colours, a byte order mark, trailing blanks and a wide terminal do not change the profile.

        How to fix: remove them before parsing; identify columns by their order, not by their position.
        """
        for name, text, profile in recordings:
            lines = text.split("\n")
            for what, changed in {
                "CRLF": "\r\n".join(lines),
                "a byte order mark": "\ufeff" + text,
                "colours": "\n".join(f"{_COLOUR}{line[:7]}{_PLAIN}{line[7:]}" for line in lines),
                "trailing blanks": "\n".join(f"{line}   \t" for line in lines),
                "a wide terminal": "\n".join(line.replace(" |", " " * 9 + "|") for line in lines),
            }.items():
                found = self._read(changed, name)
                assert found == profile, f"{name} with {what} reads differently"

    def test_what_is_no_output_is_refused(self) -> None:
        """Empty text, prose, and binary noise raise ``ToolOutputError``.

        How to fix: recognize an output by a line that is unique to it, and reject all other text.
        """
        for text in (
            "",
            "\n\n",
            "hello\n",
            "\x00\xff\x1b[",
            "| a | b |\n",
            "{}",
            "[1, 2]",
            "XPU NPU HCU Card 0",
        ):
            assert self._read(text, "noise.txt") is None, f"{text!r} was read as an output"

    def test_damage_never_invents_or_changes_a_device(self, recordings: Any) -> None:
        """Lost lines, shifted or added columns and masked serials result in an error or in part of the same machine.

        How to fix: check the number and content of each line's cells against the heading, and raise
        ``ToolOutputError`` with the line if they do not match.
        """
        for name, text, profile in recordings:
            self._damage(name, text, profile)

    def _damage(self, name: str, text: str, profile: HardwareProfile) -> None:
        @settings(
            max_examples=self.damaged, deadline=None, database=None, derandomize=True,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(_damages(text.split("\n"), self.at_once))
        def check(damaged: list[str]) -> None:
            found = self._read("\n".join(damaged), name)
            if found is not None and not (self.no_number and self.no_number in found.notes):
                _assert_part(found, profile, name)

        check()


def _damages(lines: list[str], at_once: int) -> st.SearchStrategy[list[str]]:
    """Damaged variants of a recording, with up to ``at_once`` damages."""
    place = st.integers(0, max(0, len(lines) - 1))
    damage = st.one_of(
        st.builds(_drop, place),
        st.builds(_drop, place),
        st.builds(_cut, place),
        st.builds(_repeat, place),
        st.builds(_shift, place, st.integers(1, 12)),
        st.builds(_lose_cell, place, st.integers(0, 12)),
        st.just(_add_column),
        st.just(_mask),
        st.just(_without_blank_lines),
    )
    return st.lists(damage, min_size=1, max_size=at_once).map(lambda damages: _apply(damages, lines))


def _apply(damages: Collection[Callable[[list[str]], list[str]]], lines: list[str]) -> list[str]:
    for damage in damages:
        lines = damage(list(lines))
    return lines


def _drop(place: int) -> Callable[[list[str]], list[str]]:
    return lambda lines: lines[:place] + lines[place + 1 :]


def _cut(place: int) -> Callable[[list[str]], list[str]]:
    return lambda lines: lines[:place]


def _repeat(place: int) -> Callable[[list[str]], list[str]]:
    return lambda lines: lines[: place + 1] + lines[place:]


def _cells(line: str) -> tuple[list[str], str]:
    """Return the cells of a line and their separator: ``|`` or blanks."""
    return (line.split("|"), "|") if "|" in line else (re.split(r"\s{2,}|\t", line), "   ")


def _shift(place: int, count: int) -> Callable[[list[str]], list[str]]:
    """Rotate the cells of one line to the right."""

    def shift(lines: list[str]) -> list[str]:
        if place < len(lines):
            cells, between = _cells(lines[place])
            inner = cells[1:-1] if between == "|" else cells
            if inner:
                turn = count % len(inner)
                inner = inner[-turn:] + inner[:-turn] if turn else inner
            lines[place] = between.join([cells[0], *inner, cells[-1]] if between == "|" else inner)
        return lines

    return shift


def _lose_cell(place: int, cell: int) -> Callable[[list[str]], list[str]]:
    def lose(lines: list[str]) -> list[str]:
        if place < len(lines):
            cells, between = _cells(lines[place])
            if len(cells) > 2:
                del cells[1 + cell % (len(cells) - 2)]
                lines[place] = between.join(cells)
        return lines

    return lose


def _add_column(lines: list[str]) -> list[str]:
    """Add a column to each line of a table, as a newer version of the tool may do."""
    if any(line.rstrip().endswith("|") for line in lines):
        return [f"{line.rstrip()} new |" if line.rstrip().endswith("|") else line for line in lines]
    return [line if re.search(r"[:={}\[\]]", line) or not line.strip() else f"{line}   new" for line in lines]


def _mask(lines: list[str]) -> list[str]:
    return [_SERIAL.sub(lambda match: "x" * len(match[0]), line) for line in lines]


def _without_blank_lines(lines: list[str]) -> list[str]:
    return [line for line in lines if line.strip()]


def _assert_part(found: HardwareProfile, whole: HardwareProfile, name: str) -> None:
    devices = {(a.hardware_backend, a.index): a for a in whole.accelerators}
    for accelerator in found.accelerators:
        key = (accelerator.hardware_backend, accelerator.index)
        assert key in devices, f"{name}: {key} was invented"
        _assert_facts(accelerator, devices[key], name)
    links = set(map(_identity, whole.links))
    for link in found.links:
        assert _identity(link) in links, f"{name}: {link} was invented"


def _identity(link: LinkProfile) -> tuple[str | None, ...]:
    """Return the fields that identify a link, without the network card's name, whose legend may be lost."""
    ends = ["nic" if end.startswith("nic:") else end for end in (link.source, link.target)]
    return (*ends, link.kind, link.vendor_code)


def _assert_facts(found: AcceleratorDescriptor, whole: AcceleratorDescriptor, name: str) -> None:
    where = f"{name}: {found.hardware_backend}:{found.index}"
    for fact in _FACTS:
        value = getattr(found, fact)
        assert value is None or value == getattr(whole, fact), f"{where}: {fact} became {value!r}"
    masked = re.search("x{3}", found.model) is not None
    assert masked or found.model in (whole.model, UNKNOWN_MODEL), f"{where}: model became {found.model!r}"

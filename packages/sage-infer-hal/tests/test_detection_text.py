"""Reading what tools print: terminals' additions, tables, matrices, chip tables, recordings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sage_infer.errors import ToolOutputError
from sage_infer.schemas import AcceleratorDescriptor, HardwareProfile
from sage_infer_hal.detection import (
    Chip,
    OutputKind,
    ToolText,
    build_profile,
    bus_address,
    find_chip,
    is_masked,
    json_text,
    mebibytes,
    read_matrix,
    read_recording,
    table_cells,
)
from sage_infer_hal.detection.sections import entries


def text(content: str) -> ToolText:
    return ToolText.of(content, tool="acme-smi", version=r"acme-smi v(\S+)")


def test_what_terminals_add_is_taken_away_and_lines_keep_their_numbers() -> None:
    raw = "\ufeff\x1b[1;32macme-smi v1.2\x1b[0m\r\n\r\n│ a\xa0b │\x1b]0;title\x07\r\n   \n\x1b[Kend\x00  \n"
    read = text(raw)
    assert [(line.number, line.text) for line in read.lines] == [
        (1, "acme-smi v1.2"),
        (3, "| a b |"),
        (5, "end"),
    ]
    assert read.version == "1.2"
    assert read.source == "acme-smi 1.2"
    assert text("x").source == "acme-smi"


def test_an_error_names_version_line_and_what_was_expected() -> None:
    read = text("acme-smi v1.2\n\n" + "y" * 100)
    message = str(read.error(read.lines[1], "a bus id"))
    assert message.startswith("acme-smi 1.2, line 3: expected a bus id, got 'yyyy")
    assert "\n" not in message
    assert len(message) < 220
    assert str(text("x").error(None, "no device")).startswith(
        "acme-smi (no version shown): no device; record it"
    )


@pytest.mark.parametrize(
    ("line", "cells"),
    [
        ("| 0  A | OK |", ["0  A", "OK"]),
        ("  | a || b |  ", ["a", "", "b"]),
        ("+----+---+", None),
        ("|====+===|", None),
        ("|    |   |", None),
        ("plain", None),
        ("|", None),
    ],
)
def test_table_cells(line: str, cells: list[str] | None) -> None:
    assert table_cells(line) == cells


@pytest.mark.parametrize(
    ("printed", "address"),
    [
        ("0000:C1:00.0", "0000:c1:00.0"),
        ("00000000:52:00.0", "0000:52:00.0"),
        ("00010000:52:00.1", "10000:52:00.1"),
        ("C1:00.0", "0000:c1:00.0"),
        ("0000:C1:00.8", None),
        ("0000:XX:00.0", None),
        ("NA", None),
    ],
)
def test_bus_addresses_are_written_one_way(printed: str, address: str | None) -> None:
    assert bus_address(printed) == address


def test_zero_mebibytes_are_not_known() -> None:
    assert mebibytes(0) is None
    assert mebibytes(65536) == 64 * 2**30


def test_what_is_masked() -> None:
    assert [is_masked(value) for value in ("xxxxx", "02Kxxx", "MLUXXX-XX", "****", "0xD802", "65536")] == [
        True, True, True, True, False, False,
    ]  # fmt: skip


# --- matrices

SQUARE = """
        D0   D1   N0   CPU Affinity  NUMA Affinity
D0      X    LNK  PIX  0-3,8-11      0
D1      SYS  X    SYS  4-7           1

Legend:
  X = self
"""


def test_a_cell_that_one_row_lost_is_seen_where_codes_are_not_known() -> None:
    read = ToolText.of("     D0  D1  CPU Affinity\nD0   X   LNK  N/A\nD1   LNK  X\n", tool="x-smi")
    assert read_matrix(read, read.lines, r"D\d+") is not None
    with pytest.raises(ToolOutputError, match=r"line 3.*3 cells, as in the rows above"):
        read_matrix(read, read.lines, r"D\d+", even=True)


def test_a_matrix_keeps_directions_and_affinities() -> None:
    read = text(SQUARE)
    matrix = read_matrix(read, read.lines, r"[DN]\d+")
    assert matrix is not None
    assert matrix.labels == ("D0", "D1", "N0")
    assert matrix.rows == ("D0", "D1")
    assert matrix.codes == {
        ("D0", "D1"): "LNK", ("D0", "N0"): "PIX", ("D1", "D0"): "SYS", ("D1", "N0"): "SYS",
    }  # fmt: skip
    assert matrix.cpu_affinity == {"D0": "0-3,8-11", "D1": "4-7"}
    assert matrix.numa_node == {"D0": 0, "D1": 1}
    links = matrix.links(str.lower, lambda code: {"kind": "other"} if code == "LNK" else None)
    assert [(link.source, link.target, link.vendor_code) for link in links] == [("d0", "d1", "LNK")]


def test_a_table_that_contradicts_itself_is_noted_once() -> None:
    read = text(SQUARE)
    matrix = read_matrix(read, read.lines, r"[DN]\d+")
    assert matrix is not None
    links = matrix.links(str.lower, lambda code: {"kind": "pcie"})
    assert build_profile([], links=links, sources=["x"]).notes == (
        "the link table is not symmetric, both directions are kept: d0 → d1 LNK, d1 → d0 SYS",
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("D0 D1\nD0 LNK X\nD1 LNK X", "expected X where D0 meets itself"),
        ("D0 D1\nD0 X LNK SYS", "expected 2 cells under D0 D1"),
        ("D0 D1 new\nD0 X LNK\nD1 LNK X new", "expected 3 cells under D0 D1 new"),
        ("D0 D1\nD0 X", "expected 2 cells"),
        ("D0 D1\nD0 X LNK\nD0 X LNK", "one row for D0"),
        ("D0 D1\nD0 X ?", "a link code under D1"),
        ("D0 D0\nD0 X X", "repeats an endpoint"),
        ("D0 D1\nD7 LNK LNK", "a row D7 but no such column"),
        ("D0 D1 CPU Affinity\nD0 X LNK SYS", "a list of CPU numbers"),
        ("D0 D1 NUMA Affinity\nD0 X LNK SYS", "a NUMA node"),
    ],
)
def test_a_matrix_that_is_shifted_or_cut_is_refused(content: str, message: str) -> None:
    read = text(content)
    with pytest.raises(ToolOutputError, match=message):
        read_matrix(read, read.lines, r"D\d+")


def test_no_heading_is_no_matrix_and_one_device_is_one() -> None:
    read = text("D0 X LNK\nD1 LNK X")
    assert read_matrix(read, read.lines, r"D\d+") is None
    read = text("D0 CPU Affinity\nD0 X N/A")
    matrix = read_matrix(read, read.lines, r"D\d+")
    assert matrix is not None
    assert (matrix.labels, dict(matrix.codes), dict(matrix.cpu_affinity)) == (("D0",), {}, {})
    read = text("D0 D1 NUMA Affinity\nD0 X LNK 0-1\nD1 LNK X N/A")
    matrix = read_matrix(read, read.lines, r"D\d+")
    assert matrix is not None
    assert matrix.numa_node == {}  # near two nodes is near none of them


# --- chips

TABLE = (
    Chip(
        names=("A1",),
        source="sheet",
        confidence="low",
        memory_gib=64,
        tflops={"fp16": 300},
        precisions=("fp16",),
    ),
    Chip(
        names=("A1-Pro", "A1 Pro"), source="sheet", confidence="high", bandwidth_gbs=1600, architecture="a1"
    ),
)


def test_a_chip_is_found_by_its_whole_name_and_its_memory() -> None:
    found = find_chip(TABLE, "a1", 60 * 2**30)
    assert found is not None
    fields = found.fields()
    assert fields["peak_tflops"]["fp16"].source == "sheet"
    assert fields["peak_tflops"]["fp16"].confidence == "low"
    assert fields["memory_bandwidth_gbs"] is None
    assert find_chip(TABLE, "A1", 32 * 2**30) is None
    assert find_chip(TABLE, "A1-1", 64 * 2**30) is None
    pro = find_chip(TABLE, "A1_PRO", None)
    assert pro is not None
    assert pro.fields()["memory_bandwidth_gbs"].value == 1600


# --- recordings


def lists_one(read: ToolText) -> HardwareProfile:
    index = int(read.lines[1].text)
    device = AcceleratorDescriptor(hardware_backend="acme", vendor="Acme", model="A1", index=index)
    return build_profile([device], sources=[read.source])


KINDS = [
    OutputKind(command="acme-smi -L", is_this=lambda read: read.version is not None, read=lists_one),
    OutputKind(command="acme-smi topo", is_this=lambda read: False, read=lists_one),
]


def test_a_recording_is_recognised_by_what_it_says() -> None:
    profile = read_recording(KINDS, text("acme-smi v1.2\n3\n"), name="rec.txt")
    assert [a.index for a in profile.accelerators] == [3]
    with pytest.raises(
        ToolOutputError, match=r"^rec.txt: line 1, 'hello', does not start a known output of acme-smi"
    ):
        read_recording(KINDS, text("hello"), name="rec.txt")
    with pytest.raises(
        ToolOutputError, match=r"^rec.txt: the recording is empty; .* acme-smi -L, acme-smi topo$"
    ):
        read_recording(KINDS, text("\n \r\n"), name="rec.txt")


def test_what_no_schema_takes_is_the_tools_fault() -> None:
    with pytest.raises(
        ToolOutputError, match=r"rec.txt: impossible values in the output of acme-smi 1.2: .*index"
    ):
        read_recording(KINDS, text("acme-smi v1.2\n-1\n"), name="rec.txt")


@given(st.text())
def test_any_text_is_cleaned_without_a_crash(content: str) -> None:
    for line in text(content).lines:
        assert line.text.strip()
        assert "\x1b[" not in line.text
        table_cells(line.text)


# --- JSON and sections


def test_json_after_warnings_and_its_errors_by_line() -> None:
    assert json_text.load(text('WARNING: low power\n{"card0": {"a": "1"}}')) == {"card0": {"a": "1"}}
    assert json_text.is_json(text("[\n1]"))
    assert not json_text.is_json(text("[WARNING] not JSON"))
    with pytest.raises(ToolOutputError, match=r"line 3: expected JSON .*, got '\]'"):
        json_text.load(text('warning\n{"a": [1,\n]}'.replace("]}", "]")))
    with pytest.raises(ToolOutputError, match="'a' is repeated"):
        json_text.load(text('{"a": 1, "a": 2}'))
    with pytest.raises(ToolOutputError, match="nested too deeply"):
        json_text.load(text('{"a":' * 100_000))
    with pytest.raises(ToolOutputError, match="expected JSON"):
        json_text.load(text('{"a": 1'))


@pytest.mark.parametrize("value", [-1, True, 1.0, "x", None, []])
def test_what_is_no_whole_number(value: object) -> None:
    assert json_text.integer(text("{}"), " 7 ", "a") == 7
    with pytest.raises(ToolOutputError, match="a must be a whole number"):
        json_text.integer(text("{}"), value, "a")


def test_what_is_no_list() -> None:
    assert json_text.items(text("{}"), [1], "a", count=1) == [1]
    for value in ({}, [1, 2]):
        with pytest.raises(ToolOutputError, match="a must be a list of 1"):
            json_text.items(text("{}"), value, "a", count=1)


SECTIONS = """
Name : A1
Memory
    Total : 16 MiB
    Detail
        Rows : 2
    Free : 8 MiB
Serial : 7: 8
--
"""


def test_sections_are_told_by_indentation() -> None:
    found = [(entry.path, entry.value, entry.first) for entry in entries(text(SECTIONS).lines)]
    assert found == [
        ("Name", "A1", False),
        ("Memory/Total", "16 MiB", True),
        ("Memory/Detail/Rows", "2", True),
        ("Memory/Free", "8 MiB", False),
        ("Serial", "7: 8", False),
    ]

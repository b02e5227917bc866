"""Readers of published traces: schemas, times, and errors with lines."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from sage_infer.errors import InvalidRequest
from sage_llm.simulator.traces import open_trace

DATA = Path(__file__).resolve().parents[1] / "data"
BAILIAN = "\n".join(
    f'{{"chat_id": {chat}, "parent_chat_id": {parent}, "timestamp": {at}, "input_length": {prompt}, '
    f'"output_length": {output}, "type": "text", "turn": 1, "hash_ids": {keys}}}'
    for chat, parent, at, prompt, output, keys in (
        (1, -1, 0.5, 40, 7, [1, 2, 3]),
        (2, 1, 9.5, 64, 7, [1, 2, 4, 5]),
        (3, 2, 9.75, 64, 0, [1, 2, 4, 5]),
    )
)
BURSTGPT = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
45,GPT-4,417,276,693,Conversation log
118,ChatGPT,1360,647,2007,API log
"""


def write(folder: Path, text: str, name: str = "trace") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def test_mooncake() -> None:
    trace = open_trace(DATA / "mooncake_200.jsonl")
    rows = list(trace)
    assert (trace.block, len(rows), trace.summary.requests) == (512, 200, 200)
    assert rows[0][:3] == (0.0, 6758, 500)
    assert rows[0].keys == tuple(range(13))  # the 14th block is not full
    assert [row.at for row in rows] == sorted(row.at for row in rows)
    assert len({row.at for row in rows}) == 200  # ticks of 3 s are spread
    assert trace.summary.has_keys


def test_azure() -> None:
    trace = open_trace(DATA / "azure_200.csv")
    rows = list(trace)
    assert rows[0][:3] == (0.0, 4808, 10)
    assert rows[1].at == pytest.approx(0.052, abs=1e-5)
    assert (len(rows), trace.summary.has_keys) == (200, False)


def test_bailian(tmp_path: Path) -> None:
    trace = open_trace(write(tmp_path, BAILIAN))
    rows = list(trace)
    assert trace.block == 16
    assert [row.keys for row in rows] == [(1, 2), (1, 2, 4, 5), (1, 2, 4, 5)]
    assert [row.session for row in rows] == ["1", "1", "1"]
    assert [(row.at, row.output_tokens) for row in rows] == [(0.0, 7), (9.0, 7), (9.25, 1)]


def test_burstgpt_without_its_failed_requests(tmp_path: Path) -> None:
    rows = list(open_trace(write(tmp_path, BURSTGPT)))
    assert [row[:3] for row in rows] == [(0.0, 472, 18), (40.0, 417, 276), (113.0, 1360, 647)]


@pytest.mark.parametrize("name", ["mooncake_200.jsonl", "azure_200.csv"])
def test_a_packed_file_reads_as_the_plain_one(tmp_path: Path, name: str) -> None:
    packed = tmp_path / "trace"  # recognized by its content, not by its name
    packed.write_bytes(gzip.compress((DATA / name).read_bytes()))
    assert list(open_trace(packed)) == list(open_trace(DATA / name))


def test_rows_out_of_order_are_sorted(tmp_path: Path) -> None:
    lines = BURSTGPT.splitlines()
    trace = open_trace(write(tmp_path, "\n".join([lines[0], *reversed(lines[1:])])))
    assert [row.at for row in trace] == [0.0, 40.0, 113.0]
    assert trace.summary.seconds == 113.0


def test_equal_times_are_spread_over_the_smallest_tick(tmp_path: Path) -> None:
    lines = [ROW.replace(": 1,", f": {at},", 1) for at in (0, 0, 2000, 6000, 6000)]
    assert [row.at for row in open_trace(write(tmp_path, "".join(lines)))] == [0.0, 1.0, 2.0, 6.0, 7.0]


ROW = '{"timestamp": 1, "input_length": 600, "output_length": 3, "hash_ids": [1, 2]}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a,b\n1,2\n", "line 1: not a known trace; expected .*Mooncake: timestamp.*Azure: TIMESTAMP"),
        ("[1]\n", "line 1: not a known trace"),
        ('{"timestamp": 1}\n', "line 1: not a known trace"),
        (ROW + "{\n", "line 2: not JSON"),
        (ROW + "\n" + ROW + "[]\n", "line 4: must be a JSON object"),
        (ROW + ROW.replace("600", "0"), "line 2: input_length must be a whole number of at least 1, not 0"),
        (ROW + ROW.replace("600", "6.5"), "line 2: input_length must be a whole number"),
        (ROW + ROW.replace(": 3", ": -3"), "line 2: output_length must be a whole number of at least 0"),
        (ROW + ROW.replace("[1, 2]", '["a"]'), "line 2: hash_ids must be a list of whole numbers"),
        (ROW + ROW.replace(": 1,", ": -1,"), "line 2: timestamp must be a time of at least 0"),
        (ROW + '{"timestamp": 1}\n', "line 2: the field 'input_length' is missing"),
        (BURSTGPT + "1,2\n", "line 6: must have 6 columns"),
        (BURSTGPT + "1,M,x,5,5,log\n", "line 6: Request tokens must be a whole number"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,1,1\n", "line 2: TIMESTAMP must be a date and time"),
        (BURSTGPT.splitlines()[0], "the trace has no requests"),
    ],
)
def test_a_wrong_file_is_an_error_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        list(open_trace(write(tmp_path, text)))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"cannot read the trace .*No such file"):
        open_trace(tmp_path / "absent")
    (tmp_path / "cut").write_bytes(gzip.compress(ROW.encode() * 100)[:60])
    with pytest.raises(InvalidRequest, match="cannot read the trace"):
        open_trace(tmp_path / "cut")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00" * 100)
    with pytest.raises(InvalidRequest, match="is not a text file"):
        open_trace(tmp_path / "binary")

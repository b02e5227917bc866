"""Batch selection: every text once, within the budget, in turn, with little padding."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sage_infer_openvino.encoder.batches import BatchLine

BUDGET = 256
Lengths = st.lists(st.integers(1, 300), min_size=1, max_size=40)


def drain(line: BatchLine[str]) -> list[list[tuple[str, int]]]:
    batches = []
    while line:
        batches.append(line.next_batch())
    return batches


@given(st.lists(Lengths, min_size=1, max_size=6))
def test_every_text_once_within_the_budget(calls: list[list[int]]) -> None:
    line: BatchLine[str] = BatchLine(BUDGET)
    lengths = {f"call {number}": call for number, call in enumerate(calls)}
    for name, call in lengths.items():
        line.add(name, call)
    batches = drain(line)
    wanted = [(name, index) for name, call in lengths.items() for index in range(len(call))]
    assert sorted(text for batch in batches for text in batch) == sorted(wanted)
    for batch in batches:
        own = [lengths[name][index] for name, index in batch]
        assert len(batch) == 1 or len(batch) * max(own) <= BUDGET
        assert len(batch) == 1 or sum(max(own) - length for length in own) <= BUDGET // 16


@given(st.lists(Lengths, min_size=2, max_size=6))
def test_every_call_gets_its_turn(calls: list[list[int]]) -> None:
    """Between two batches with something of a call there is at most one batch of each other call."""
    line: BatchLine[str] = BatchLine(BUDGET)
    for number, call in enumerate(calls):
        line.add(str(number), call)
    batches = drain(line)
    for number in range(len(calls)):
        own = [place for place, batch in enumerate(batches) if any(name == str(number) for name, _ in batch)]
        assert all(later - earlier <= len(calls) for earlier, later in pairwise([-1, *own]))


def test_equal_lengths_of_any_call_fill_a_batch() -> None:
    line: BatchLine[str] = BatchLine(BUDGET)
    for number in range(40):
        line.add(str(number), [8])
    assert [len(batch) for batch in drain(line)] == [32, 8]


def test_a_long_text_is_not_padded_to_with_short_ones() -> None:
    line: BatchLine[str] = BatchLine(BUDGET)
    line.add("long", [60])
    line.add("short", [4] * 3)
    assert [sorted({name for name, _ in batch}) for batch in drain(line)] == [["long"], ["short"]]


def test_discarded_calls_are_gone() -> None:
    line: BatchLine[str] = BatchLine(16)
    line.add("one", [8] * 4)
    line.add("two", [8] * 3)
    line.next_batch()
    line.discard("one")
    line.discard("never there")
    assert {name for batch in drain(line) for name, _ in batch} <= {"two"}
    line.add("nothing", [])
    assert not line
    with pytest.raises(IndexError):
        line.next_batch()

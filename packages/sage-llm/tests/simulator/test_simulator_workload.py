"""Synthetic traces."""

from __future__ import annotations

import pytest
from sage_infer.errors import InvalidRequest
from sage_llm.simulator.workload import synthetic


def test_a_turn_begins_with_the_whole_session_before_it() -> None:
    trace = synthetic("sessions:requests=300,turns=5,block=16,gap_s=5", 1)
    assert trace is not None
    rows = list(trace)
    assert len(rows) == 300
    assert [row.at for row in rows] == sorted(row.at for row in rows)
    last: dict[str, tuple[int, ...]] = {}
    continued = 0
    for row in rows:
        assert len(row.keys) == row.prompt_tokens // 16
        if row.session in last:
            before = last[row.session]
            assert row.keys[: len(before)] == before
            continued += 1
        last[row.session] = row.keys
    assert continued > 100
    first = {row.keys[0] for row in rows}
    assert len(first) == 4  # one system prompt of each kind


def test_rag_prompts_share_documents_in_order() -> None:
    trace = synthetic("rag:requests=200,documents=10,chosen=2,system=64,document=64,block=32", 1)
    assert trace is not None
    rows = list(trace)
    assert len({row.keys[:2] for row in rows}) == 1  # the system prompt
    assert 2 <= len({row.keys[2] for row in rows}) <= 10  # the first document
    whole = [row.keys for row in rows]
    assert len(set(whole)) > 190 or any(row.prompt_tokens < 224 for row in rows)


def test_the_seed_decides() -> None:
    def rows(seed: int) -> list[object]:
        trace = synthetic("sessions:requests=20", seed)
        assert trace is not None
        return list(trace)

    assert rows(1) == rows(1)
    assert rows(1) != rows(2)


def test_a_file_is_no_workload() -> None:
    assert synthetic("conversation.jsonl") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sessions:length=3", "sessions has no parameter 'length'; its parameters: requests, rate"),
        ("rag:documents=many", "rag: documents must be a whole number, not 'many'"),
        ("rag:rate=fast", "rag: rate must be a number"),
        ("sessions:turns=0.5", "sessions: .*turns"),
    ],
)
def test_wrong_parameters(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        synthetic(text)

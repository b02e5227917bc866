"""Limits of a single request are checked before expensive work."""

from __future__ import annotations

from typing import Any

import pytest
from gateway_served import Served

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SAY: list[dict[str, Any]] = [{"role": "user", "content": "x"}]
TOOL = {"type": "function", "function": {"name": "f"}}
LONG_CALL = {
    "id": "1",
    "type": "function",
    "function": {"name": "f", "arguments": "[{}" + ",{}" * 30_000 + "]"},
}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
LARGE_SCHEMA = {"enum": list(range(50_000))}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"messages": SAY * 5000}, "messages"),
        (CHAT, {"messages": SAY, "model": "m" * 100_000}, "model"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 2000}]},
            "content",
        ),
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": [CALL] * 1000}]}, "tool_calls"),
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": [LONG_CALL] * 2}, *SAY]}, "arguments"),
        (CHAT, {"messages": SAY, "tools": [TOOL] * 2000}, "tools"),
        (CHAT, {"messages": SAY, "stop": "x" * 5000}, "stop"),
        (CHAT, {"messages": SAY, "stop": ["x"] * 100}, "stop"),
        (CHAT, {"messages": SAY, "stop_token_ids": [1] * 10_000}, "stop_token_ids"),
        (CHAT, {"messages": SAY, "guided_choice": [str(i) for i in range(10_000)]}, "guided"),
        (CHAT, {"messages": SAY, "guided_regex": "a" * 100_000}, "guided"),
        (CHAT, {"messages": SAY, "guided_grammar": "a" * 1_000_000}, "guided"),
        (CHAT, {"messages": SAY, "guided_json": {"enum": list(range(50_000))}}, "guided"),
        (CHAT, {"messages": SAY, "tools": [{"type": "function", "function": {"name": "x" * 1000}}]}, "name"),
        (COMPLETIONS, {"prompt": ["a"] * 5000}, "prompt"),
        (COMPLETIONS, {"prompt": ["a"] * 100, "n": 100}, "prompt"),
        (COMPLETIONS, {"prompt": [[1]] * 5000}, "prompt"),
        ("/v1/embeddings", {"model": "vectors", "input": ["a"] * 5000}, "input"),
        ("/v1/rerank", {"model": "scores", "query": "a", "documents": ["a"] * 20_000}, "documents"),
        ("/tokenize", {"messages": SAY * 5000}, "messages"),
    ],
)
def test_too_many_or_too_long(served: Served, path: str, body: dict[str, Any], param: str) -> None:
    answer = served.post(path, {"model": "echo", **body})
    assert answer.status == 400, answer.body[:300]
    assert param in answer.error["message"] + str(answer.error["param"])
    assert len(answer.body) < 1000
    assert served.chat().status == 200


def test_caches_of_client_data_are_bounded_by_size(served: Served) -> None:
    """Parameters are kept for the next request that asks for the same, but not those with long texts."""
    from sage_infer_serve.openai.sampling import _without_guide

    before = _without_guide.cache_info().currsize
    for i in range(20):
        assert served.chat(stop=[f"{i}" * 300]).status == 200
        assert served.chat(stop_token_ids=list(range(i + 1))).status == 200
    assert _without_guide.cache_info().currsize == before


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": LARGE_SCHEMA},
                }
            },
            "response_format",
        ),
        ({"guided_json": LARGE_SCHEMA}, "guided_json"),
        ({"guided_choice": ["a", "a"]}, "guided_choice"),
        ({"structured_outputs": {"json": LARGE_SCHEMA}}, "structured_outputs.json"),
        ({"structured_outputs": {"regex": "a" * 100_000}}, "structured_outputs.regex"),
    ],
)
def test_a_refused_constraint_is_named_as_the_client_named_it(
    served: Served, body: dict[str, Any], field: str
) -> None:
    answer = served.post(CHAT, {"model": "echo", "messages": SAY, **body})
    assert answer.status == 400
    assert answer.error["param"] == field
    assert answer.error["message"].startswith(f"{field}: must ")
    assert "exactly one of" not in answer.error["message"]

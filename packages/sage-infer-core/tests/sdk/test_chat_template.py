"""Rendered chats equal those of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sage_infer.errors import InvalidRequest
from sage_infer.sdk.chat_templates import ChatTemplate

DATA = Path(__file__).parents[1] / "data"
REFERENCE = json.loads((DATA / "chat_templates.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("entry", REFERENCE["templates"], ids=lambda entry: entry["name"])
def test_renderings_equal_transformers(entry: dict[str, Any]) -> None:
    template = ChatTemplate(entry["template"])
    for case in entry["renderings"]:
        # As the recording did: the switch is given with one of the two, so that both branches are seen.
        thinking = {"enable_thinking": False} if case["prompt"] else {}

        def render(case: dict[str, Any] = case, thinking: dict[str, Any] = thinking) -> str:
            return template.render(
                REFERENCE["chats"][case["chat"]],
                tools=[REFERENCE["tool"]] * 2 if case["tools"] else None,
                add_generation_prompt=case["prompt"],
                variables={"bos_token": "<s>", "eos_token": "</s>", **thinking},
            )

        if case["text"] is None:
            with pytest.raises(InvalidRequest):
                render()
        else:
            assert render() == case["text"], (case["chat"], case["tools"])


def test_the_reference_has_both_outcomes() -> None:
    texts = [case["text"] for entry in REFERENCE["templates"] for case in entry["renderings"]]
    assert texts.count(None) == 6
    assert len(set(texts)) > 25

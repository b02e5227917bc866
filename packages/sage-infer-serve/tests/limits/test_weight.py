"""Bodies of too many values are refused before they are decoded, and their texts do not count."""

from __future__ import annotations

import asyncio
import json

import pytest
from gateway_served import Served
from sage_infer_serve import weight
from sage_infer_serve.http.errors import HTTPError

CHAT = "/v1/chat/completions"
SAY = [{"role": "user", "content": "x"}]
MANY = b"{}" + b",{}" * 3_000_000


def weigh(body: bytes) -> int:
    """What all pieces weigh together."""
    seen: list[int] = []
    original = weight._weigh

    def counting(piece: bytes, in_text: bool) -> tuple[int, bool]:
        added, after = original(piece, in_text)
        seen.append(added)
        return added, after

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight, "_weigh", counting)
        patch.setattr(weight, "LIGHT", 0)
        asyncio.run(weight.check_weight(body, frozenset()))
    return sum(seen)


@pytest.mark.parametrize("piece", [2, 3, 5, 7, 64])
def test_only_bytes_outside_of_strings_count(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(weight, "_PIECE", piece)
    quiet = {"a": 'x,[{"\\', "b\\\\": ["\\", '"', "{{{", 5, 6]}
    assert weigh(json.dumps(quiet).encode()) == 4 + 2 + 6 + 5  # an object, a list, its texts, commas


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages":[{"role":"user","content":"x"}],"guided_json":{"enum":[%b]}}' % MANY,
        b'{"messages":[{"role":"user","content":"x"}],"chat_template_kwargs":{"a":[%b]}}' % MANY,
        b'{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":[%b]}}]}]}' % MANY,
        b'{"messages":[%b]}' % MANY,
        b'{"nothing":[%b]}' % MANY,
        json.dumps({"messages": SAY, "stop": ["a"] * 1_000_000}).encode(),
        json.dumps({"messages": SAY, "logit_bias": {str(i): 1 for i in range(700_000)}}).encode(),
    ],
    ids=["schema", "template variables", "media", "messages", "unknown", "texts", "bias"],
)
def test_too_many_values_are_refused_early(
    served: Served, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    pieces = []
    original = weight._weigh
    monkeypatch.setattr(weight, "_weigh", lambda *given: pieces.append(given) or original(*given))
    answer = served.ask("POST", CHAT, body, content_type="application/json")
    assert answer.status == 400
    assert "values" in answer.error["message"]
    assert len(pieces) < len(body) // weight._PIECE // 2, "all of it was looked at"
    assert served.chat().status == 200


@pytest.mark.parametrize("name", ["tools", "chat_template_kwargs", "guided_regex", "tool_choice"])
def test_long_fields_are_refused(name: str) -> None:
    body = json.dumps({name: "x" * 2_000_000}).encode()
    with pytest.raises(HTTPError, match=f"{name} has more than") as caught:
        asyncio.run(weight.check_weight(body, frozenset([name])))
    assert caught.value.status == 400
    asyncio.run(weight.check_weight(body, frozenset()))  # an unknown field is not decoded


def test_long_texts_and_many_token_ids_are_light(served: Served) -> None:
    text = json.dumps([{"a": [1, 2, 3], "b": '"'}] * 50_000)
    message = {"role": "user", "content": text}
    answer = served.post(CHAT, {"model": "echo", "messages": [message], "max_tokens": 5})
    assert answer.status == 200
    asyncio.run(weight.check_weight(json.dumps({"prompt": [1] * 500_000}).encode(), frozenset(["prompt"])))


def test_invalid_json_is_left_to_the_decoder(served: Served) -> None:
    for body in (b"\\" * 100_000, b'"' * 100_001, b'{"a":' * 100_000):
        answer = served.ask("POST", CHAT, body, content_type="application/json")
        assert answer.status == 400
        assert "values" not in answer.error["message"]

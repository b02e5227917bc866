"""Log probabilities in both formats: bytes, offsets, alternatives, and no entry for stop tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway_backend import TIMING, EchoBackend
from gateway_served import Served, chat_body, events
from sage_infer.contracts import BufferedTokenStream
from sage_infer.schemas import SamplingParams, TokenDelta, TokenLogprob, Usage

SMILE = "😀".encode()


def entry(token: int, data: bytes, *others: tuple[int, bytes], is_end: bool = False) -> TokenLogprob:
    def text(data: bytes) -> str:
        return data.decode("utf-8", "replace")

    return TokenLogprob(
        token_id=token, text=text(data), logprob=-2.5, data=data, is_end=is_end,
        alternatives=tuple((i, text(d), -0.5 - n) for n, (i, d) in enumerate(others)),
        alternative_data=tuple(d for _, d in others),
    )  # fmt: skip


class SplitBackend(EchoBackend):
    """Says ``a😀b`` in four tokens, of which two are halves of a character, and ends with an end token."""

    def _say(self, text: str, params: SamplingParams, request_id: str) -> BufferedTokenStream:
        stream = BufferedTokenStream(request_id, lambda: None)
        said = [
            ("a", entry(1, b"a", (1, b"a"), (9, b"x"))),
            ("", entry(2, SMILE[:2], (3, SMILE[2:]), (4, b"\x80"))),  # not among its alternatives
            ("😀", entry(3, SMILE[2:], (3, SMILE[2:]), (2, SMILE[:2]))),
            ("b", entry(5, b"b", (6, b"b"), (7, b"c"))),  # 6 is another token of the same text
            ("", entry(0, b"<end>", (0, b"<end>"), (5, b"b"), is_end=True)),
        ]
        for place, (part, logprob) in enumerate(said):
            reason = "stop" if place == len(said) - 1 else None
            stream.push(TokenDelta(part, (logprob.token_id,), 0, (logprob,), reason))  # type: ignore[arg-type]
        stream.finish("stop", Usage(prompt_tokens=1, completion_tokens=5), TIMING)
        return stream


def test_a_chats_entries_have_their_own_bytes(serve: Callable[..., Served]) -> None:
    served = serve(SplitBackend())
    (choice,) = served.chat(logprobs=True, top_logprobs=2).data["choices"]
    entries = choice["logprobs"]["content"]
    assert choice["message"]["content"] == "a😀b"
    assert bytes(byte for one in entries for byte in one["bytes"]).decode() == "a😀b"
    assert [one["token"] for one in entries] == ["a", "\\xf0\\x9f", "\\x98\\x80", "b"]
    assert [len(one["top_logprobs"]) for one in entries] == [2, 2, 2, 2]
    assert entries[1]["top_logprobs"][1] == {"token": "\\x80", "logprob": -1.5, "bytes": [0x80]}
    streamed: list[Any] = []
    answer = served.post("/v1/chat/completions", chat_body(logprobs=True, top_logprobs=2, stream=True))
    for chunk in events(answer.body):
        if chunk != "[DONE]" and (logs := chunk["choices"][0]["logprobs"]):
            streamed += logs["content"]
    assert streamed == entries


def test_a_completions_lists_are_parallel_to_its_text(serve: Callable[..., Served]) -> None:
    served = serve(SplitBackend())
    body = {"model": "echo", "prompt": "x", "logprobs": 2}
    logs = served.post("/v1/completions", body).data["choices"][0]["logprobs"]
    assert logs["tokens"] == ["a", "bytes:\\xf0\\x9f", "bytes:\\x98\\x80", "b"]
    assert logs["text_offset"] == [0, 1, 1, 2]
    assert logs["top_logprobs"] == [
        {"a": -0.5, "x": -1.5},
        {"bytes:\\x98\\x80": -0.5, "bytes:\\x80": -1.5, "bytes:\\xf0\\x9f": -2.5},
        {"bytes:\\x98\\x80": -0.5, "bytes:\\xf0\\x9f": -1.5},
        {"b": -0.5, "c": -1.5, "token_id:5": -2.5},
    ]
    offsets: list[int] = []
    for chunk in events(served.post("/v1/completions", {**body, "stream": True}).body):
        if chunk != "[DONE]" and (part := chunk["choices"][0]["logprobs"]):
            offsets += part["text_offset"]
    assert offsets == logs["text_offset"]


def test_bytes_that_are_not_known_are_null(serve: Callable[..., Served]) -> None:
    class Text(EchoBackend):
        def _say(self, text: str, params: SamplingParams, request_id: str) -> BufferedTokenStream:
            stream = BufferedTokenStream(request_id, lambda: None)
            one = TokenLogprob(1, "\ufffd", -1.0, ((2, "é", -0.5),))
            stream.push(TokenDelta("é", (1,), 0, (one,), "length"))
            stream.finish("length", Usage(prompt_tokens=1, completion_tokens=1), TIMING)
            return stream

    (choice,) = serve(Text()).chat(logprobs=True, top_logprobs=1).data["choices"]
    (one,) = choice["logprobs"]["content"]
    assert one["bytes"] is None
    assert one["top_logprobs"] == [{"token": "é", "logprob": -0.5, "bytes": [0xC3, 0xA9]}]

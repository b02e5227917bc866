"""`return_token_ids` in the shapes of vLLM, and `continue_from`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from gateway_backend import EchoBackend, TokenizingBackend
from gateway_served import Served, chat_body, events
from sage_infer.contracts import BufferedTokenStream
from sage_infer.schemas import CapabilityDescriptor, DecodeState, MediaItem, Prompt, SamplingParams

PROMPT = [ord(c) for c in "user:a b;assistant:"]


class ResumingBackend(TokenizingBackend):
    """Says the tokens that are left of a counted sequence."""

    resumes = True

    def get_model_capability(self, model_id: str) -> CapabilityDescriptor:
        return CapabilityDescriptor(
            backend_name="echo", instance_type="general", hardware_backend="cpu", max_batch_size=4,
            max_sequence_length=64, supported_precisions=("fp32",),
            features=("streaming", "resume") if self.resumes else ("streaming",),
        )  # fmt: skip

    async def resume(
        self, states: Sequence[DecodeState], *, model: str | None = None, request_id: str, options: Any = None
    ) -> BufferedTokenStream:
        self._called("resume", model, "llm", states=states)
        return self._say("the rest", states[0].params, request_id)


@pytest.fixture
def talker(serve: Callable[..., Served]) -> Served:
    return serve(ResumingBackend())


def chunks(served: Served, path: str, body: dict[str, Any]) -> list[Any]:
    return [one for one in events(served.post(path, {**body, "stream": True}).body) if one != "[DONE]"]


def test_a_chat_has_the_ids_of_its_prompt_and_answer(talker: Served) -> None:
    body = chat_body("a b", return_token_ids=True)
    answer = talker.post("/v1/chat/completions", body).data
    assert answer["prompt_token_ids"] == PROMPT
    (choice,) = answer["choices"]
    assert (choice["token_ids"], choice["finish_reason"]) == (list(range(len(PROMPT))), "stop")
    found = chunks(talker, "/v1/chat/completions", {**body, "stream_options": {"include_usage": True}})
    assert [chunk.get("prompt_token_ids") for chunk in found[:2]] == [PROMPT, None]
    choices = [chunk["choices"][0] for chunk in found if chunk["choices"]]
    assert [i for one in choices for i in one.get("token_ids", ())] == choice["token_ids"]
    assert choices[-1] == {
        "index": 0, "delta": {"content": f"{PROMPT[-1]} "}, "logprobs": None, "finish_reason": "stop",
        "token_ids": [len(PROMPT) - 1],
    }  # fmt: skip
    assert found[-1]["usage"]["completion_tokens"] == len(PROMPT)
    text = "".join(one["delta"].get("content", "") for one in choices)
    assert text == choice["message"]["content"]


def test_a_completion_has_the_ids_of_each_prompt_and_answer(talker: Served) -> None:
    body = {"model": "echo", "prompt": ["ab", "c"], "n": 2, "return_token_ids": True}
    whole = talker.post("/v1/completions", body).data["choices"]
    assert [one["prompt_token_ids"] for one in whole] == [[97, 98], [97, 98], [99], [99]]
    assert [one["token_ids"] for one in whole] == [[0, 1], [0, 1], [0], [0]]
    prompts: dict[int, Any] = {}
    ids: dict[int, list[int]] = {}
    for chunk in chunks(talker, "/v1/completions", body):
        (choice,) = chunk["choices"]
        if choice["index"] not in ids:
            prompts[choice["index"]] = choice["prompt_token_ids"]
        else:
            assert "prompt_token_ids" not in choice
        ids.setdefault(choice["index"], []).extend(choice["token_ids"])
    assert [prompts[n] for n in range(4)] == [one["prompt_token_ids"] for one in whole]
    assert [ids[n] for n in range(4)] == [one["token_ids"] for one in whole]


def test_without_the_field_there_are_no_ids(talker: Served) -> None:
    assert b"token_ids" not in talker.chat("a b").body
    assert b"token_ids" not in talker.post("/v1/completions", {"model": "echo", "prompt": "a"}).body
    (name, _) = talker.backend.calls[0]
    assert name == "chat"  # the backend renders and tokenizes the chat itself


def test_ids_of_hidden_thoughts_are_not_shown(talker: Served) -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    body = chat_body("a b", return_token_ids=True, tools=tools)
    assert "token_ids" in talker.post("/v1/chat/completions", body).data["choices"][0]
    hidden = {**body, "include_reasoning": False}
    assert "token_ids" not in talker.post("/v1/chat/completions", hidden).data["choices"][0]
    assert not any("token_ids" in c["choices"][0] for c in chunks(talker, "/v1/chat/completions", hidden))


def test_ids_that_nobody_knows_are_refused(serve: Callable[..., Served]) -> None:
    served = serve(EchoBackend())
    for path, body in (
        ("/v1/completions", {"model": "echo", "prompt": "a", "return_token_ids": True}),
        ("/v1/chat/completions", chat_body("a", return_token_ids=True)),
    ):
        answer = served.post(path, body)
        assert (answer.status, answer.error["code"]) == (400, "unsupported_feature"), answer.body
        assert "no tokenizer" in answer.error["message"]
    ids = served.post("/v1/completions", {"model": "echo", "prompt": [5, 6], "return_token_ids": True}).data
    assert ids["choices"][0]["prompt_token_ids"] == [5, 6]


def test_ids_of_a_prompt_with_images_are_refused(serve: Callable[..., Served]) -> None:
    class Seeing(TokenizingBackend):
        async def render_chat(self, messages: Any, **more: Any) -> Prompt:
            return Prompt(text="look", media=(MediaItem(kind="image", uri="data:x"),))

    answer = serve(Seeing()).chat("a", return_token_ids=True)
    assert (answer.status, answer.error["code"]) == (400, "unsupported_feature")
    assert "images" in answer.error["message"]


def test_an_answer_is_continued(talker: Served) -> None:
    given = {"token_ids": [7, 8, 9], "delivered_chars": 5}
    body = {"model": "echo", "prompt": [1, 2], "max_tokens": 9, "seed": 3, "continue_from": given}
    whole = talker.post("/v1/completions", body).data["choices"][0]
    assert whole["text"] == "the rest "
    name, arguments = talker.backend.calls[-1]
    (state,) = arguments["states"]
    assert (name, state.model_id, state.prompt_token_ids) == ("resume", "echo", (1, 2))
    assert (state.output_token_ids, state.delivered_chars, state.seed) == ((7, 8, 9), 5, 3)
    assert state.params == SamplingParams(max_tokens=9, seed=3)
    found = chunks(talker, "/v1/completions", {**body, "return_token_ids": True})
    assert [i for chunk in found for i in chunk["choices"][0]["token_ids"]] == [0, 1]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"prompt": "text"}, "prompt of token ids"),
        ({"prompt": [[1], [2]]}, "prompt of token ids"),
        ({"n": 2}, "n = 1"),
        ({"continue_from": {"token_ids": [], "delivered_chars": 0}}, "continue_from.token_ids"),
        ({"continue_from": {"token_ids": [1]}}, "delivered_chars is missing"),
        ({"continue_from": {"token_ids": [1], "delivered_chars": 0, "text": ""}}, "unknown field"),
    ],
)
def test_what_cannot_be_continued(talker: Served, fields: dict[str, Any], told: str) -> None:
    given = {"token_ids": [7], "delivered_chars": 1}
    body = {"model": "echo", "prompt": [1, 2], "continue_from": given, **fields}
    answer = talker.post("/v1/completions", body)
    assert answer.status == 400
    assert told in answer.error["message"]


def test_a_backend_that_cannot_continue(serve: Callable[..., Served]) -> None:
    backend = ResumingBackend()
    backend.resumes = False
    given = {"token_ids": [7], "delivered_chars": 1}
    answer = serve(backend).post("/v1/completions", {"model": "echo", "prompt": [1], "continue_from": given})
    assert (answer.status, answer.error["code"]) == (400, "unsupported_feature")


def test_the_list_of_models_has_their_features(talker: Served, serve: Callable[..., Served]) -> None:
    assert talker.get("/v1/models").data["data"][0]["features"] == ["streaming", "resume"]
    assert serve(EchoBackend()).get("/v1/models/echo").data["features"] is None

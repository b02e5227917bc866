"""Joined servers that return token ids as vLLM does, scripted: what is continued there, and what is not."""

from __future__ import annotations

import asyncio
import codecs
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from plane import running_plane
from sage_infer.errors import Overloaded
from sage_infer.schemas import ModelDescriptor, Prompt, SamplingParams
from sage_llm.commands.joined import Join, with_joined
from sage_llm.manager.migration import NotMigratable
from sage_llm.replicas.local import LocalExecutor
from sage_llm.replicas.openai.llm import OpenAIReplica

HELLO = [{"role": "user", "content": "Hello"}]
PROMPT, WORDS = [5, 6, 7], [b"the ", b"old ", b"\xf0\x9f", b"\x8c\x8a ", b"is calm"]  # a wave is two tokens
TEXT = b"".join(WORDS).decode()
FIRST = 100  # id of the first word


class Ocean:
    """Some servers that all say ``WORDS``, a token each; the first stream is cut after ``cut`` tokens.

    Attributes:
        asked: bodies of completions and chats with their paths, without probes.
    """

    def __init__(self, *, owner: str = "vllm", cut: int = 2, returns_ids: bool = True) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.probes = 0
        self.busy = 0
        self._owner, self._cut, self._returns_ids = owner, cut, returns_ids

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m", "owned_by": self._owner, "max_model_len": 64}]})

    async def tokenize(self, request: web.Request) -> web.Response:
        return web.json_response({"tokens": PROMPT if "messages" in await request.json() else [9]})

    async def detokenize(self, request: web.Request) -> web.Response:
        ids = (await request.json())["tokens"]
        return web.json_response(
            {"prompt": b"".join(WORDS[i - FIRST] for i in ids).decode("utf-8", "replace")}
        )

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if not body.get("stream"):
            self.probes += 1
            if self.busy:
                self.busy -= 1
                return web.json_response(
                    {"error": {"message": "full"}}, status=429, headers={"Retry-After": "0"}
                )
            found = {"prompt_token_ids": body["prompt"], "token_ids": [FIRST]} if self._returns_ids else {}
            return web.json_response({"choices": [{"index": 0, "text": "the ", **found}]})
        self.asked.append((request.path, body))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        is_chat = "messages" in body
        start = 0 if is_chat else max(len(body["prompt"]) - len(PROMPT), 0)
        decoder = codecs.getincrementaldecoder("utf-8")()
        end = min(len(WORDS), start + (body.get("max_tokens") or 99))
        for place in range(start, end):
            if place == start + self._cut:
                self._cut = -1
                assert request.transport is not None
                request.transport.close()
                return response
            new = decoder.decode(WORDS[place])
            text = {"delta": {"content": new}} if is_chat else {"text": new}
            choice = {"index": 0, **text, "finish_reason": "stop" if place == end - 1 else None}
            chunk: dict[str, Any] = {"choices": [choice]}
            if body.get("return_token_ids"):
                choice["token_ids"] = [FIRST + place]
                if place == start:
                    (chunk if is_chat else choice)["prompt_token_ids"] = PROMPT if is_chat else body["prompt"]
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        usage = {"prompt_tokens": len(PROMPT) + start, "completion_tokens": end - start}
        await response.write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    @asynccontextmanager
    async def server(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/completions", self.complete)
        app.router.add_post("/v1/chat/completions", self.complete)
        app.router.add_post("/tokenize", self.tokenize)
        app.router.add_post("/detokenize", self.detokenize)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


@asynccontextmanager
async def joined(ocean: Ocean) -> AsyncIterator[Any]:
    """A control plane over two servers."""
    async with ocean.server() as one, ocean.server() as other:
        models = await asyncio.to_thread(with_joined, [], [Join(one), Join(other)])
        async with running_plane(models, LocalExecutor()) as plane:
            yield plane


@pytest.mark.parametrize(
    ("owner", "path"), [("vllm", "/v1/completions"), ("sage-infer", "/v1/chat/completions")]
)
def test_a_cut_chat_continues_by_its_token_ids(owner: str, path: str) -> None:
    """Chats of vLLM are rendered first; `sage infer serve` renders them, and returns the ids of the prompt."""

    async def main() -> None:
        ocean = Ocean(owner=owner)
        async with joined(ocean) as plane:
            stream = await plane.chat(HELLO, SamplingParams(temperature=0.0, max_tokens=5, min_tokens=3))
            deltas = [delta async for delta in stream]
            assert "".join(delta.text for delta in deltas) == TEXT
            assert [i for delta in deltas for i in delta.token_ids] == [FIRST + n for n in range(5)]
            assert stream.finish_reason == "stop"
            assert (stream.usage.prompt_tokens, stream.usage.completion_tokens) == (3, 5)
            assert plane.dispatcher.migrations == 1
        (first, _), (again, body) = ocean.asked
        assert (first, again) == (path, "/v1/completions")
        assert body["prompt"] == [*PROMPT, FIRST, FIRST + 1]
        assert (body["max_tokens"], body["min_tokens"]) == (3, 1)
        assert ocean.probes == 2

    asyncio.run(main())


def test_a_cut_completion_of_a_text_continues() -> None:
    async def main() -> None:
        ocean = Ocean(owner="sage-infer")
        async with joined(ocean) as plane:
            params = SamplingParams(temperature=0.0, max_tokens=5)
            (stream,) = await plane.generate(Prompt(token_ids=tuple(PROMPT)), params)
            assert "".join([delta.text async for delta in stream]) == TEXT
        assert [body["prompt"] for _, body in ocean.asked] == [PROMPT, [*PROMPT, FIRST, FIRST + 1]]

    asyncio.run(main())


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_character_that_was_cut_is_generated_again(temperature: float) -> None:
    """Greedy only: sampled again, it could be another one."""

    async def main() -> None:
        ocean = Ocean(cut=3)
        async with joined(ocean) as plane:
            stream = await plane.chat(HELLO, SamplingParams(temperature=temperature, max_tokens=5))
            deltas: list[Any] = []

            async def read() -> None:
                async for delta in stream:
                    deltas.append(delta)

            if temperature:
                with pytest.raises(NotMigratable, match="how much of its text"):
                    await read()
                return
            await read()
            assert "".join(delta.text for delta in deltas) == TEXT
            assert [i for delta in deltas for i in delta.token_ids] == [FIRST + n for n in range(5)]
            assert stream.usage.completion_tokens == 5
        assert ocean.asked[1][1]["prompt"] == [*PROMPT, FIRST, FIRST + 1]
        assert ocean.asked[1][1]["max_tokens"] == 3

    asyncio.run(main())


@pytest.mark.parametrize(
    ("fields", "options", "told"),
    [
        ({"temperature": 0.9, "seed": 3}, {}, "it is seeded"),
        ({"frequency_penalty": 0.5}, {}, "it sets frequency_penalty"),
        ({}, {"returns_ids": False}, "its server does not return token ids"),
        ({}, {"owner": "sage-infer", "tools": True}, "its server parses tool calls"),
        ({}, {"owner": "someone"}, "token ids"),
    ],
)
def test_what_no_server_continues_says_why(
    fields: dict[str, Any], options: dict[str, Any], told: str
) -> None:
    async def main() -> None:
        tools = [{"type": "function", "function": {"name": "look"}}] if options.pop("tools", False) else None
        ocean = Ocean(**options)
        async with joined(ocean) as plane:
            params = SamplingParams(**{"temperature": 0.0, "max_tokens": 5, **fields})
            stream = await plane.chat(HELLO, params, tools=tools)
            texts: list[str] = []

            async def read() -> None:
                async for delta in stream:
                    texts.append(delta.text)

            with pytest.raises(NotMigratable, match=told):
                await read()
            assert texts == ["the ", "old "]
        assert len(ocean.asked) == 1

    asyncio.run(main())


def test_a_server_that_is_too_busy_to_be_asked() -> None:
    async def main() -> None:
        ocean = Ocean()
        async with ocean.server() as url:
            descriptor = ModelDescriptor(model_id="m", model_type="llm", model_path=url)
            for busy, probes in ((2, 3), (99, 10)):
                ocean.busy, ocean.probes = busy, 0
                backend = OpenAIReplica(descriptor)
                if busy == 2:
                    await backend.start()
                    assert not backend.get_capability().supports("resume")
                else:
                    with pytest.raises(Overloaded, match="full"):
                        await backend.start()
                assert ocean.probes == probes
                await backend.close()

    asyncio.run(main())

"""OpenAI-compatible servers as backends: our own gateway, and scripted servers for what it does not do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from kit_reference.hybrid import ReferenceHybrid
from sage_infer.backends import open_backend
from sage_infer.errors import (
    ConfigError,
    ContextLengthExceeded,
    EngineDead,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PluginFailed,
    RequestCancelled,
    SageInferError,
    UnsupportedFeature,
)
from sage_infer.schemas import (
    GuidedDecoding,
    ModelDescriptor,
    Prompt,
    ReplicaSpec,
    RequestOptions,
    SamplingParams,
)
from sage_infer_serve import GatewaySettings, running_gateway
from sage_infer_testing.waiting import eventually
from sage_llm.replicas.connect import connect
from sage_llm.replicas.local import SERVER, LocalExecutor
from sage_llm.replicas.openai.client import EventParser, error_of
from sage_llm.replicas.openai.fields import sampling_fields

WAIT_S = 120.0
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


class Hybrid(ReferenceHybrid):
    """The kit's hybrid, with tokenization and a reranker."""

    def __init__(self) -> None:
        super().__init__()
        self.models["judge"] = ModelDescriptor(model_id="judge", model_type="reranker", model_path="/")

    async def embed(self, texts: Any, model: str | None = None, **more: Any) -> Any:
        return await super().embed(texts, model, **{**more, "options": None})  # the gateway adds a tenant

    async def rerank(self, query: str, documents: Any, model: str | None = None, **more: Any) -> Any:
        return await self.find("judge", "").rerank(query, documents, **{**more, "options": None})

    async def render_chat(self, messages: Any, *, model: str | None = None, **more: Any) -> Prompt:
        prompt: Prompt = await self.find(model, "llm").render_chat(messages, **more)
        return prompt

    async def tokenize(self, prompt: Any, *, model: str | None = None) -> list[int]:
        found: list[int] = await self.find(model, "llm").tokenize(prompt)
        return found

    async def detokenize(self, token_ids: Any, *, model: str | None = None) -> str:
        text: str = await self.find(model, "llm").detokenize(token_ids)
        return text


@asynccontextmanager
async def our_server(backend: Any = None) -> AsyncIterator[tuple[Any, str]]:
    backend = backend or Hybrid()
    await backend.start()
    async with running_gateway(backend, GatewaySettings(port=0)) as running:
        yield backend, running.url
    await backend.close()


def model(url: str, model_id: str = "talker", kind: Any = "llm", **more: Any) -> ModelDescriptor:
    return ModelDescriptor(**{"model_id": model_id, "model_type": kind, "model_path": url,
                              "max_sequence_length": 160, **more})  # fmt: skip


@asynccontextmanager
async def scripted(
    complete: Callable[[web.Request], Awaitable[web.StreamResponse]], **row: Any
) -> AsyncIterator[str]:
    """A server with one model ``m`` and this handler of completions."""

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m", **row}]})

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/completions", complete)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def events(request: web.Request, *data: Any, done: bool = True) -> web.StreamResponse:
    """Answer with server-sent events."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for one in data:
        await response.write(b"data: " + json.dumps(one).encode() + b"\n\n")
    if done:
        await response.write(b"data: [DONE]\n\n")
    return response


async def text_of(stream: Any) -> str:
    return "".join([delta.text async for delta in stream])


async def whole(backend: Any) -> str:
    (stream,) = await backend.generate("x", SamplingParams(max_tokens=4))
    return await text_of(stream)


def test_generation_on_our_own_gateway() -> None:
    async def main() -> None:
        async with our_server() as (behind, url):
            (expected,) = await behind.generate("Once", GREEDY, "talker")
            wanted = await text_of(expected)
            async with open_backend("openai", model=model(url), serves="llm") as backend:
                capability = backend.get_capability()
                assert {"chat", "tokenize", "guided_json", "seed"} <= set(capability.features)
                assert "resume" not in capability.features
                assert capability.max_sequence_length == 160
                (stream,) = await backend.generate("Once", GREEDY, request_id="one")
                assert await text_of(stream) == wanted
                assert stream.request_id == "one"
                assert stream.finish_reason == "length"
                assert stream.usage == expected.usage
                several = await backend.generate(["Once", "Twice"], GREEDY, request_id="two")
                assert [one.request_id for one in several] == ["two/0", "two/1"]
                assert await text_of(several[0]) == wanted
                await text_of(several[1])
                tokens = await backend.tokenize("Once")  # type: ignore[attr-defined]
                (again,) = await backend.generate(tokens, GREEDY)
                assert await text_of(again) == wanted
                assert await backend.detokenize(tokens) == "Once"  # type: ignore[attr-defined]
                (longest,) = await backend.generate("Once", SamplingParams(ignore_eos=True, seed=1))
                await text_of(longest)
                assert longest.usage is not None
                assert longest.usage.total_tokens == 160
                stats = backend.stats()
                assert (stats.running, stats.waiting, stats.finished) == (0, 0, 5)
                assert (await backend.health()).status == "ok"

    asyncio.run(main())


def test_chats_are_rendered_by_the_server() -> None:
    async def main() -> None:
        messages = [{"role": "user", "content": "Hello"}]
        async with our_server() as (behind, url), open_backend("openai", model=model(url)) as backend:
            prompt = await backend.render_chat(messages)
            local = await behind.render_chat(messages)
            assert list(prompt.token_ids) == await behind.tokenize(local)
            with pytest.raises(InvalidRequest):
                await backend.render_chat([])

    asyncio.run(main())


def test_several_completions_and_guided_output() -> None:
    async def main() -> None:
        async with our_server() as (_, url), open_backend("openai", model=model(url)) as backend:
            params = SamplingParams(n=3, max_tokens=5, seed=1, ignore_eos=True)
            (stream,) = await backend.generate("Once", params)
            texts = {0: "", 1: "", 2: ""}
            async for delta in stream:
                texts[delta.index] += delta.text
            assert all(texts.values())
            guided = SamplingParams(temperature=0.0, guided=GuidedDecoding(choice=("yes", "no")))
            (stream,) = await backend.generate("Is it?", guided)
            assert await text_of(stream) in ("yes", "no")

    asyncio.run(main())


def test_requests_end_at_the_server_too() -> None:
    async def main() -> None:
        endless = SamplingParams(ignore_eos=True, max_tokens=150)
        async with our_server() as (behind, url), open_backend("openai", model=model(url)) as backend:
            engine = behind.backends["talker"]
            for way in ("cancel", "abort", "leave"):
                (stream,) = await backend.generate("Once", endless, request_id="x")
                if way == "cancel":
                    stream.cancel()
                elif way == "abort":
                    await backend.abort("x")
                if way == "leave":
                    async for _ in stream:
                        break
                else:
                    with pytest.raises(RequestCancelled) as raised:
                        await text_of(stream)
                    assert raised.value.by == "caller"
                await eventually(lambda: not engine.running, f"{way}: the request runs", within_s=WAIT_S)
            with pytest.raises(RequestCancelled) as raised:
                await backend.generate("Once", endless, options=RequestOptions(deadline=0.0))
            assert raised.value.by == "deadline"

    asyncio.run(main())


def test_errors_of_the_gateway_keep_their_meaning() -> None:
    async def main() -> None:
        async with our_server() as (_, url), open_backend("openai", model=model(url)) as backend:
            with pytest.raises(InvalidRequest):
                await backend.generate([5] * 500, GREEDY)
            with pytest.raises(UnsupportedFeature, match="logprobs"):
                await backend.generate("Once", SamplingParams(logprobs=1))
            with pytest.raises(UnsupportedFeature):
                await backend.prefill("Once", request_id="p")
            with pytest.raises(UnsupportedFeature):
                backend.get_kv_schema()
            (stream,) = await backend.generate("Once", GREEDY)
            await text_of(stream)
        with pytest.raises(EngineDead):
            await backend.generate("Once", GREEDY)
        with pytest.raises(EngineDead, match="is lost"):
            async with open_backend("openai", model=model(url)):
                pass

    asyncio.run(main())


def test_models_that_are_not_there() -> None:
    async def main() -> None:
        async with our_server() as (_, url):
            with pytest.raises(ModelNotFound, match="talker"):
                async with open_backend("openai", model=model(url, "nobody")):
                    pass
        with pytest.raises(InvalidRequest, match="http"):
            async with open_backend("openai", model=model("/a/folder")):
                pass
        with pytest.raises(ConfigError, match="NO_SUCH_KEY"):
            async with open_backend("openai", model=model(url), api_key_env="NO_SUCH_KEY"):
                pass
        with pytest.raises(ConfigError, match="dialect"):
            async with open_backend("openai", model=model(url), dialect="latin"):
                pass

    asyncio.run(main())


def test_embedding_and_reranking() -> None:
    async def main() -> None:
        async with our_server() as (behind, url):
            texts = ["two words", "three more words"]
            expected = await behind.embed(texts, "embedder")
            async with open_backend("openai", model=model(url, "embedder", "embedding")) as backend:
                found = await backend.embed(texts)
                assert bytes(found.data) == bytes(expected.data)
                assert found.usage == expected.usage
                assert backend.get_embedding_dim() == expected.dim
                assert len(await backend.embed_batch(texts, 1)) == 2
                assert len(await backend.embed([])) == 0
                with pytest.raises(UnsupportedFeature):
                    await backend.rerank("a", ["b"])
                with pytest.raises(InvalidRequest, match="text 0"):
                    await backend.embed([""])
                assert len(await backend.embed(["word " * 500], truncate="end")) == 1
            ranking = await behind.rerank("words", texts)
            async with open_backend("openai", model=model(url, "judge", "reranker")) as backend:
                assert (await backend.rerank("words", texts)).hits == ranking.hits
                assert len((await backend.rerank("words", texts, top_n=1)).hits) == 1
                assert (await backend.rerank("words", [])).hits == ()
                with pytest.raises(UnsupportedFeature):
                    await backend.embed(["a"])

    asyncio.run(main())


def test_a_server_is_a_replica() -> None:
    async def main() -> None:
        async with our_server() as (_, url):
            executor = LocalExecutor(server=SERVER)
            spec = ReplicaSpec(replica_id="far/0", backend="openai", model=model(url))
            handle = await executor.start(spec)
            replica = await connect(handle, interval_s=0.01)
            reported = asyncio.Event()
            replica.on_report(lambda report: reported.set() if report.state == "ready" else None)
            await reported.wait()
            (stream,) = await replica.backend.generate("Once", GREEDY)
            assert await text_of(stream)
            await replica.close()
            await executor.close()

    asyncio.run(main())


def test_a_server_with_token_ids() -> None:
    asked: list[Any] = []

    async def complete(request: web.Request) -> web.StreamResponse:
        asked.append(await request.json())
        if not asked[-1].get("stream"):
            one = {"index": 0, "text": "a", "prompt_token_ids": asked[-1]["prompt"], "token_ids": [11]}
            return web.json_response({"choices": [one]})
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}
        return await events(
            request,
            {"choices": [{"index": 0, "text": "a", "token_ids": [11]}]},
            {"choices": [{"index": 0, "text": "b", "token_ids": [12], "finish_reason": "stop"}]},
            {"choices": [], "usage": usage},
        )

    async def main() -> None:
        async with scripted(complete, owned_by="vllm", max_model_len=64) as url:
            descriptor = model(url, "m", max_sequence_length=None)
            async with open_backend("openai", model=descriptor) as backend:
                assert backend.get_capability().max_sequence_length == 64
                assert not backend.get_capability().supports("chat")
                (stream,) = await backend.generate("x", SamplingParams(max_tokens=4, top_k=5))
                found = [(delta.text, delta.token_ids) async for delta in stream]
                assert found == [("a", (11,)), ("b", (12,))]
                assert stream.usage.cached_tokens == 1
                assert backend.stats().prefix_hit_tokens == 1
                with pytest.raises(UnsupportedFeature, match="max_tokens"):
                    await backend.generate("x", SamplingParams())
                with pytest.raises(UnsupportedFeature, match="/tokenize"):
                    await backend.tokenize("x")
        probe, sent = asked
        assert (probe["prompt"], probe["max_tokens"], probe["return_token_ids"]) == ([1], 1, True)
        assert (sent["top_k"], sent["return_token_ids"]) == (5, True)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda r: web.json_response({"error": {"message": "slow"}}, status=429, headers={"Retry-After": "7"}),
         Overloaded),
        (lambda r: web.Response(text="busy", status=503), Overloaded),
        (lambda r: web.Response(text="<html>oops</html>", status=500), PluginFailed),
        (lambda r: events(r, {"choices": [{"text": "a"}]}, done=False), EngineDead),
        (lambda r: events(r, {"error": {"message": "died", "code": "engine_dead"}}), EngineDead),
        (lambda r: events(r, ["no chunk"]), PluginFailed),
    ],
)  # fmt: skip
def test_failures_of_a_server(answer: Any, expected: type[SageInferError]) -> None:
    async def complete(request: web.Request) -> Any:
        made = answer(request)
        return await made if asyncio.iscoroutine(made) else made

    async def main() -> None:
        async with scripted(complete) as url, open_backend("openai", model=model(url, "m")) as backend:
            with pytest.raises(expected) as raised:
                await whole(backend)
            if isinstance(raised.value, Overloaded):
                assert raised.value.retry_after in (7.0, 1.0)
            assert backend.stats().running == 0
            assert len(backend.requests) == 0

    asyncio.run(main())


def test_a_server_need_not_report_its_length() -> None:
    asked: list[Any] = []

    async def complete(request: web.Request) -> web.StreamResponse:
        asked.append(await request.json())
        return await events(request, {"choices": [{"text": "a", "finish_reason": "stop"}]})

    async def main() -> None:
        descriptor = {"max_sequence_length": None}
        async with (
            scripted(complete) as url,
            open_backend("openai", model=model(url, "m", **descriptor)) as backend,
        ):
            assert backend.get_capability().max_sequence_length == 1 << 20
            (stream,) = await backend.generate([1, 2], SamplingParams())
            assert await text_of(stream) == "a"
        assert "max_tokens" not in asked[0]

    asyncio.run(main())


def test_plain_servers_get_plain_fields() -> None:
    params = SamplingParams(stop=("a",), seed=3, stop_token_ids=(1,), top_k=2)
    with pytest.raises(UnsupportedFeature, match="top_k, stop_token_ids"):
        sampling_fields(params, "openai")
    fields = sampling_fields(params, "vllm")
    assert (fields["stop"], fields["seed"], fields["stop_token_ids"]) == (["a"], 3, [1])


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, b'{"error": {"message": "m", "code": "context_length_exceeded"}}', ContextLengthExceeded),
        (400, b'{"object": "error", "message": "maximum context length is 5"}', ContextLengthExceeded),
        (400, b'{"detail": "bad"}', InvalidRequest),
        (400, b'["odd"]', InvalidRequest),
        (401, b"{}", ConfigError),
        (404, b"{}", ModelNotFound),
        (504, b"", RequestCancelled),
        (502, b"", PluginFailed),
    ],
)
def test_statuses(status: int, body: bytes, expected: type[SageInferError]) -> None:
    assert type(error_of(status, {"retry-after": "tomorrow"}, body)) is expected


def test_events_may_be_split_anywhere() -> None:
    data = b": comment\n\ndata: one\r\n\r\ndata: two\ndata: lines\n\nevent: x\ndata:three\n\ndata: rest"
    for size in range(1, len(data)):
        parser = EventParser()
        found: list[bytes] = []
        for start in range(0, len(data), size):
            found += parser.feed(data[start : start + size])
        assert found == [b"one", b"two\nlines", b"three"], size

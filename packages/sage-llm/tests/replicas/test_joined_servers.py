"""`sage llm serve --join`: models of other servers, from the flag to the answers of the API."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from aiohttp import web
from plane import running_plane
from sage_infer.errors import (
    BackendUnavailable,
    ConfigError,
    InvalidRequest,
    Overloaded,
    PluginFailed,
    SageInferError,
)
from sage_infer.schemas import SamplingParams
from sage_llm.commands.joined import Join, joins, with_joined
from sage_llm.manager.migration import NotMigratable
from sage_llm.manager.restarts import RestartLimits, Restarts
from sage_llm.replicas.local import LocalExecutor
from sage_llm.replicas.run_folder import RUN_FOLDER_VARIABLE
from served_command import GUARD_S, served

ROUNDS = 20
HELLO = [{"role": "user", "content": "Hello"}]
LISTED = json.dumps({"data": [{"id": "m"}]})


# --- the list of models


@contextmanager
def answering(*answers: tuple[int, str]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server whose answers these are, the last one for ever; and the headers that it has seen."""
    left, seen = list(answers), []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append({name.lower(): value for name, value in self.headers.items()})
            status, body = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *arguments: Any) -> None:
            """Print nothing."""

    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_models_of_a_server_are_further_replicas() -> None:
    rows = [{"id": "m"}, {"id": "far", "type": "embedding", "max_model_len": 64}]
    with answering((200, json.dumps({"data": rows}))) as (url, _):
        llm, far = with_joined([], joins([f"{url}/v1/"]))
        assert [spec.replica_id for spec in llm.specs] == [f"m@{url[7:]}"]
        assert [(spec.backend, spec.model.model_path) for spec in far.specs] == [("openai", url)]
        assert (llm.descriptor.model_type, far.descriptor.model_type) == ("llm", "embedding")
        again, _ = with_joined([llm, far], [Join(url)])
        assert len(again.specs) == 2


def test_servers_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAR_KEY", "sk-1")
    with answering((200, LISTED)) as (url, seen):
        entry = {"url": url, "api_key_env": "FAR_KEY", "type": "embedding"}
        (model,) = with_joined([], joins([entry]))
        assert model.descriptor.model_type == "embedding"
        assert model.specs[0].options == {"api_key_env": "FAR_KEY"}
        assert seen[0]["authorization"] == "Bearer sk-1"
    for wrong, told in (
        ({"url": url, "key": "x"}, "no key 'key'"),
        ({"url": url, "type": "image"}, "'image'"),
        ({}, "--join"),
        ("ftp://x", "--join"),
    ):
        with pytest.raises(InvalidRequest, match=told):
            joins([wrong])


@pytest.mark.parametrize(
    ("status", "body", "expected", "told"),
    [
        (401, "{}", ConfigError, "needs an API key.*--join-key-env"),
        (404, "not found", BackendUnavailable, "has no /v1/models"),
        (500, '{"error": {"message": "broken"}}', BackendUnavailable, "500: broken"),
        (503, "loading", BackendUnavailable, "503: loading"),
        (200, "<html>", PluginFailed, "does not answer with JSON"),
        (200, "[1]", PluginFailed, "is not a list of models"),
        (200, '{"data": [{"name": "m"}]}', PluginFailed, "is not a list of models"),
        (200, '{"data": []}', BackendUnavailable, "lists no model"),
    ],
)
def test_a_server_that_cannot_be_joined(
    status: int, body: str, expected: type[SageInferError], told: str
) -> None:
    with answering((status, body)) as (url, _), pytest.raises(expected, match=told):
        with_joined([], [Join(url)], ready_s=0)


def test_a_key_that_is_missing_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering((403, "")) as (url, _):
        with pytest.raises(ConfigError, match="FAR_KEY is not set"):
            with_joined([], [Join(url, "FAR_KEY")])
        monkeypatch.setenv("FAR_KEY", "sk-1")
        with pytest.raises(ConfigError, match="refuses the key in FAR_KEY"):
            with_joined([], [Join(url, "FAR_KEY")])
    with pytest.raises(BackendUnavailable, match="is the server ready"):
        with_joined([], [Join(url)])


def test_a_server_that_loads_its_model_is_waited_for() -> None:
    with answering((503, "loading"), (429, "later"), (200, LISTED)) as (url, seen):
        assert len(with_joined([], [Join(url)])) == 1
        assert len(seen) == 3


def test_a_joined_server_is_tried_for_ever() -> None:
    limits = RestartLimits(most=3)
    ours, joined = Restarts(limits), Restarts(limits, ends=False)
    assert [ours.pause(now, 0) for now in range(3)][-1] is None
    assert [joined.pause(now, 0) for now in range(40)][-1] == limits.longest_s


def test_a_joined_server_is_tried_often() -> None:
    """It costs nothing, and a server that is back is used soon."""

    async def main() -> None:
        async with chat_server([], []) as url:
            models = await asyncio.to_thread(with_joined, [], [Join(url)])
            async with running_plane(models, LocalExecutor()) as plane:
                (replica,) = plane.fleet.replicas.values()
                assert [replica.restarts.pause(now, 0) for now in range(20)] == [1.0, *[2.0] * 19]

    asyncio.run(main())


# --- a server that has chats only, and no token ids


@asynccontextmanager
async def chat_server(script: list[Any], asked: list[Any]) -> AsyncIterator[str]:
    """Answers each chat with the next entry: chunks, or a response."""

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m", "object": "model"}]})

    async def chat(request: web.Request) -> web.StreamResponse:
        asked.append(await request.json())
        answer = script.pop(0)
        if not isinstance(answer, list):
            return answer()  # type: ignore[no-any-return]
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for chunk in answer:
            data = chunk if isinstance(chunk, str) else json.dumps(chunk)
            await response.write(b"data: " + data.encode() + b"\n\n")
        return response

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def chunk(reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}


def test_chats_pass_through() -> None:
    async def main() -> None:
        asked: list[Any] = []
        call = {"index": 0, "id": "c", "function": {"name": "look", "arguments": "{}"}}
        script: list[Any] = [
            [chunk(content="Good "), chunk(content="day"), chunk("stop"), USAGE, "[DONE]"],
            [chunk(reasoning_content="Hm."), chunk(tool_calls=[call]), chunk("tool_calls"), USAGE, "[DONE]"],
            lambda: web.json_response({"error": {"message": "m"}}, status=429, headers={"Retry-After": "7"}),
            [chunk(content="Good ")],  # lost in the middle: what was delivered is not repeated
        ]
        async with chat_server(script, asked) as url:
            models = await asyncio.to_thread(with_joined, [], [Join(url)])
            async with running_plane(models, LocalExecutor()) as plane:
                params = SamplingParams(temperature=0.0, max_tokens=5)
                stream = await plane.chat(HELLO, params)
                assert [delta.text async for delta in stream] == ["Good ", "day", ""]
                assert stream.usage is not None
                assert (stream.usage.prompt_tokens, stream.usage.completion_tokens) == (9, 2)
                assert asked[0]["messages"] == HELLO
                assert (asked[0]["max_tokens"], asked[0]["temperature"]) == (5, 0.0)
                tools = [{"type": "function", "function": {"name": "look"}}]
                stream = await plane.chat(HELLO, params, tools=tools)
                deltas = [delta async for delta in stream]
                assert deltas[0].reasoning == "Hm."
                assert (deltas[1].tool_calls[0].name, deltas[1].tool_calls[0].arguments) == ("look", "{}")
                assert asked[1]["tools"] == tools
                with pytest.raises(Overloaded) as busy:
                    await plane.chat(HELLO, params)
                assert busy.value.retry_after == 7.0
                stream = await plane.chat(HELLO, params)
                texts: list[str] = []

                async def read() -> None:
                    async for delta in stream:
                        texts.append(delta.text)

                with pytest.raises(NotMigratable, match="token ids"):
                    await read()
                assert texts == ["Good "]

    asyncio.run(main())


# --- a real engine behind `sage infer serve`, joined by `sage llm serve`


def post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=GUARD_S) as answer:
        data = answer.read()
    return json.loads(data) if data.startswith(b"{") else data


def embedded(url: str, number: int) -> Any:
    text = f"The keeper of lighthouse {number} writes down the weather. " * (1 + number % 12)
    return post(f"{url}/v1/embeddings", {"model": "minilm", "input": [text, f"note {number}"]})


def counted(url: str, name: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=GUARD_S) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def check_batches(behind: str, front: str) -> None:
    """Simultaneous requests reach the server in batches; each gets its own vectors, and all tokens are counted."""
    numbers = range(32)
    wanted = [embedded(behind, number) for number in numbers]
    for _ in range(ROUNDS):  # until requests came close enough together
        before = counted(front, "sage_llm_batches_total")
        with ThreadPoolExecutor(len(numbers)) as threads:
            found = list(threads.map(lambda number: embedded(front, number), numbers))
        batches = counted(front, "sage_llm_batches_total") - before
        for one, other in zip(found, wanted, strict=True):
            for mine, theirs in zip(one["data"], other["data"], strict=True):
                assert mine["embedding"] == pytest.approx(theirs["embedding"], abs=1e-5)
        used = [sum(answer["usage"]["prompt_tokens"] for answer in answers) for answers in (found, wanted)]
        assert used[0] == used[1]
        if batches < len(numbers):
            break
    assert batches < len(numbers)


def test_a_served_model_is_joined(
    smollm2: str, minilm: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Answers through the control plane equal those of the server behind it."""
    pytest.importorskip("sage_infer_hybrid", reason="`sage infer serve` serves several models with it")
    folder = tmp_path_factory.mktemp("joined")
    folder.chmod(0o700)
    config = folder / "behind.yaml"
    models = [{"model": "smollm2-135m", "options": {"kv_cache_gb": 0.25}}, {"model": "minilm"}]
    config.write_text(json.dumps({"serve": {"models": models}}))
    chat = {"model": "smollm2-135m", "messages": HELLO, "max_tokens": 6, "temperature": 0}
    run = {RUN_FOLDER_VARIABLE: str(folder)}
    with (
        served(folder, "--config", str(config), "infer", "serve", environment=run) as (_, behind),
        served(folder, "llm", "serve", "--join", behind["url"], environment=run) as (_, front),
    ):
        assert {row["state"] for row in front["replicas"]} == {"ready"}
        wanted, found = (post(f"{one['url']}/v1/chat/completions", chat) for one in (behind, front))
        assert found["choices"] == wanted["choices"]
        assert found["usage"]["completion_tokens"] == 6
        events = post(f"{front['url']}/v1/chat/completions", {**chat, "stream": True}).split(b"\n\n")
        assert events[-2] == b"data: [DONE]"
        deltas = [json.loads(event[6:])["choices"][0]["delta"] for event in events[:-2]]
        text = "".join(delta.get("content", "") for delta in deltas)
        assert text == wanted["choices"][0]["message"]["content"]
        for path, body in (
            ("/v1/embeddings", {"model": "minilm", "input": ["two words"]}),
            ("/tokenize", {"model": "smollm2-135m", "prompt": "two words"}),
            ("/tokenize", {"model": "smollm2-135m", "messages": HELLO}),
            ("/detokenize", {"model": "smollm2-135m", "tokens": [28, 29]}),
        ):
            wanted, found = (post(one["url"] + path, body) for one in (behind, front))
            for answer in (wanted, found):
                answer.pop("created", None), answer.pop("id", None)
            assert found == wanted, path
        check_batches(behind["url"], front["url"])
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(f"{front['url']}/v1/completions", {"model": "smollm2-135m", "prompt": "x " * 9000})
        assert refused.value.code == 400
        assert "context" in refused.value.read().decode()

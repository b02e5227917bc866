"""The load generator against a real server on a real socket, with responses defined by the test."""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import Iterator
from typing import Any

import bench_server as server
import pytest
from bench_server import Asked, ScriptedServer, serving
from sage_infer.errors import BackendUnavailable, ConfigError, InvalidRequest, ModelNotFound
from sage_infer_serve.bench.load import Outcome, Run, Sender, closed_loop, open_loop
from sage_infer_serve.bench.preflight import choose_model, warm_up
from sage_infer_serve.bench.progress import Progress
from sage_infer_serve.bench.workload import Lengths, Workload
from sage_infer_serve.http.client import Client, Disconnected, Server

LENGTHS = Lengths(input=5, output=3)
CHAT = Workload(endpoint="chat", model="toy", lengths=LENGTHS)


def client_of(scripted: ScriptedServer, **settings: Any) -> Client:
    return Client(Server.parse(scripted.url), **settings)


def sender_of(scripted: ScriptedServer, workload: Workload = CHAT, timeout_s: float = 300.0) -> Sender:
    return Sender(client_of(scripted), workload, timeout_s=timeout_s)


async def one(scripted: ScriptedServer, workload: Workload = CHAT, timeout_s: float = 300.0) -> Outcome:
    return await sender_of(scripted, workload, timeout_s).send(next(workload.requests(0)))


async def closed(scripted: ScriptedServer, **settings: Any) -> Run:
    ended: list[Outcome] = []
    settings = {"count": None, "duration_s": None, "on_outcome": ended.append, **settings}
    run = await closed_loop(sender_of(scripted), CHAT.requests(0), **settings)
    assert len(ended) == len(run.outcomes)
    return run


# --- one request


def test_a_stream() -> None:
    async def main() -> None:
        async with serving(server.good_stream(tokens=4, prompt=11)) as scripted:
            outcome = await one(scripted)
        assert outcome.error is None
        assert outcome.due == outcome.sent <= (outcome.first or 0) <= outcome.ended
        assert len(outcome.gaps) == 3
        assert (outcome.prompt_tokens, outcome.output_tokens, outcome.counted) == (11, 4, True)
        (asked,) = scripted.generations
        assert asked.path == "/v1/chat/completions"
        assert asked.headers["content-type"] == "application/json"
        assert asked.data["max_tokens"] == 3

    asyncio.run(main())


def test_a_stream_without_usage_counts_chunks() -> None:
    async def main() -> None:
        async with serving(
            server.stream(server.text_chunk("a"), server.text_chunk("b"), server.DONE)
        ) as scripted:
            outcome = await one(scripted, Workload(endpoint="completions", model="toy", lengths=LENGTHS))
        assert (outcome.output_tokens, outcome.prompt_tokens, outcome.counted) == (2, 0, False)
        assert scripted.generations[0].path == "/v1/completions"

    asyncio.run(main())


def test_answers_in_one_piece() -> None:
    async def reply(asked: Asked, writer: asyncio.StreamWriter) -> None:
        result = {"data": [{}, {}]} if "input" in asked.data else {"choices": [{}]}
        await server.answer_json(writer, {**result, "usage": {"prompt_tokens": 8, "completion_tokens": 2}})

    async def main() -> None:
        async with serving(reply) as scripted:
            whole = await one(scripted, Workload(endpoint="chat", model="toy", lengths=LENGTHS, stream=False))
            texts = await one(
                scripted, Workload(endpoint="embeddings", model="toy", lengths=LENGTHS, batch=2)
            )
        assert (whole.error, whole.first, whole.output_tokens) == (None, None, 2)
        assert (texts.error, texts.texts, texts.prompt_tokens) == (None, 2, 8)

    asyncio.run(main())


async def not_http(asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail.example ESMTP\r\n")


async def never(asked: Asked, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def cut_json(asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"choices":')
    writer.close()


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (server.refuse("429 Too Many Requests", "the queue is full"), "HTTP 429: the queue is full"),
        (server.refuse("500 Internal Server Error", ""), "HTTP 500: "),
        (server.stream(server.chat_chunk("half"), cut=True), "closed before the end of the response"),
        (server.stream(server.chat_chunk("half")), "stream truncated"),
        (server.stream(server.chat_chunk("a"), server.event({"error": {"message": "dead"}})), "stream: dead"),
        (not_http, "not HTTP"),
        (never, "no complete answer within 0.05 s"),
        (cut_json, "closed before the end of the response"),
    ],
)
def test_malformed_responses_are_errors(reply: server.Reply, message: str) -> None:
    async def main() -> None:
        async with serving(reply) as scripted:
            outcome = await one(scripted, timeout_s=0.05 if reply is never else 300.0)
        assert outcome.error is not None
        assert message in outcome.error
        assert (outcome.output_tokens, list(outcome.gaps), outcome.texts) == (0, [], 0)

    asyncio.run(main())


# --- connections


def test_a_connection_is_kept_and_one_that_was_closed_meanwhile_is_replaced() -> None:
    async def main() -> None:
        closing = False

        async def reply(asked: Asked, writer: asyncio.StreamWriter) -> None:
            await server.good_stream()(asked, writer)
            if closing:  # after the answer, and without saying so in it
                writer.close()

        async with serving(reply) as scripted:
            sender, requests = sender_of(scripted), CHAT.requests(0)
            assert (await sender.send(next(requests))).error is None
            closing = True
            assert (await sender.send(next(requests))).error is None
            assert scripted.connections == 1
            assert (await sender.send(next(requests))).error is None
            assert scripted.connections == 2

    asyncio.run(main())


@pytest.mark.parametrize("head", ["HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\n"])
def test_a_body_may_end_with_its_connection(head: str) -> None:
    async def reply(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(head.encode() + server.chat_chunk("a") + server.DONE)
        writer.close()

    async def main() -> None:
        async with serving(reply) as scripted:
            sender, requests = sender_of(scripted), CHAT.requests(0)
            assert [(await sender.send(next(requests))).error for _ in range(2)] == [None, None]
        assert scripted.connections == 2

    asyncio.run(main())


def test_an_interim_answer_is_none() -> None:
    async def reply(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 102 Processing\r\n\r\n")
        await server.good_stream()(asked, writer)

    async def main() -> None:
        async with serving(reply) as scripted:
            assert (await one(scripted)).error is None

    asyncio.run(main())


def test_a_prefix_and_a_key_are_sent() -> None:
    async def main() -> None:
        async with serving(server.good_stream()) as scripted:
            client = Client(Server.parse(f"{scripted.url}/team/v1"), api_key="sk-1")
            await client.post("/v1/chat/completions", b"{}")
            client.close()
        (asked,) = scripted.generations
        assert asked.path == "/team/v1/chat/completions"
        assert asked.headers["authorization"] == "Bearer sk-1"
        assert f"http://{asked.headers['host']}" == scripted.url

    asyncio.run(main())


def test_tls_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = []
    create = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda: contexts.append(create()) or contexts[-1])

    async def speak_plainly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def main() -> None:
        listener = await asyncio.start_server(speak_plainly, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        async with listener:
            with pytest.raises(Disconnected, match="cannot connect"):
                await Client(Server.parse(f"https://127.0.0.1:{port}")).get("/v1/models")

    asyncio.run(main())
    assert contexts[0].verify_mode == ssl.CERT_REQUIRED


# --- loops


def test_a_closed_loop_keeps_its_number_open() -> None:
    """Every answer waits until as many requests are open as there may be, so fewer would hang and more would show."""
    open_now, most = 0, 0

    async def main() -> None:
        all_here = asyncio.Condition()

        async def reply(asked: Asked, writer: asyncio.StreamWriter) -> None:
            nonlocal open_now, most
            async with all_here:
                open_now += 1
                most = max(most, open_now)
                all_here.notify_all()
                await asyncio.wait_for(all_here.wait_for(lambda: most >= 4), 300)
                open_now -= 1
            await server.good_stream()(asked, writer)

        async with serving(reply) as scripted:
            run = await closed(scripted, concurrency=4, count=20)
        assert len(run.outcomes) == len(scripted.generations) == 20
        assert {o.error for o in run.outcomes} == {None}
        assert run.began < run.ended
        assert run.cpu_s > 0

    asyncio.run(main())
    assert most == 4


def test_a_closed_loop_ends_after_its_time() -> None:
    async def main() -> None:
        async with serving(server.good_stream()) as scripted:
            run = await closed(scripted, concurrency=1, duration_s=0.05)
        *before, last = run.outcomes
        assert all(o.ended < run.began + 0.05 for o in before)  # or the one after it would not have been sent
        assert last.ended <= run.ended
        assert run.ended >= run.began + 0.05

    asyncio.run(main())


def test_an_open_loop_does_not_wait_for_answers() -> None:
    """No answer comes before all ten requests are there: a loop that waits for one would never send the next."""

    async def main() -> None:
        all_here = asyncio.Event()

        async def reply(asked: Asked, writer: asyncio.StreamWriter) -> None:
            if len(scripted.generations) == 10:
                all_here.set()
            await asyncio.wait_for(all_here.wait(), 300)
            await server.good_stream()(asked, writer)

        times = [n / 1000 for n in range(100)]
        async with serving(reply) as scripted:
            sender = sender_of(scripted)
            run = await open_loop(
                sender, CHAT.requests(0), iter(times), count=10, duration_s=None, on_outcome=lambda _: None
            )
        assert sorted(o.due - run.began for o in run.outcomes) == pytest.approx(times[:10])
        assert all(o.sent >= o.due for o in run.outcomes)

    asyncio.run(main())


def test_an_open_loop_counts_from_when_a_request_was_due() -> None:
    """Requests that were due a minute before the run began are a minute late, however quick their answers are."""

    async def main() -> None:
        async with serving(server.good_stream()) as scripted:
            run = await open_loop(
                sender_of(scripted), CHAT.requests(0), iter([-60.0, -60.0]), count=None, duration_s=None,
                on_outcome=lambda _: None,
            )  # fmt: skip
        assert [o.first is not None and o.first - o.due >= 60 for o in run.outcomes] == [True, True]

    asyncio.run(main())


def test_an_open_loop_ends_after_its_time() -> None:
    async def main() -> None:
        async with serving(server.good_stream()) as scripted:
            times = (0.001 * n for n in itertools.count())
            run = await open_loop(
                sender_of(scripted),
                CHAT.requests(0),
                times,
                count=None,
                duration_s=0.02,
                on_outcome=lambda _: None,
            )
        assert len(run.outcomes) == 20

    asyncio.run(main())


def test_results_before_an_interruption_are_kept() -> None:
    async def main() -> Run:
        async def reply(asked: Asked, writer: asyncio.StreamWriter) -> None:
            if len(scripted.generations) > 3:
                running.cancel()
                await asyncio.Event().wait()
            await server.good_stream()(asked, writer)

        async with serving(reply) as scripted:
            running = asyncio.create_task(closed(scripted, concurrency=1, count=50))
            return await running

    run = asyncio.run(main())
    assert run.interrupted
    assert [o.error for o in run.outcomes] == [None, None, None]


# --- before anything is measured


async def choose(scripted: ScriptedServer, wanted: str | None = None) -> tuple[str, list[str]]:
    return await choose_model(client_of(scripted), Server.parse(scripted.url), wanted)


def test_the_only_model_is_taken() -> None:
    async def main() -> None:
        async with serving(server.good_stream(), models=["only"]) as scripted:
            assert await choose(scripted) == ("only", ["only"])
        async with serving(server.good_stream(), models=["a", "b"]) as scripted:
            assert await choose(scripted, "an-alias") == ("an-alias", ["a", "b"])
            with pytest.raises(InvalidRequest, match="the models a, b; name the one to measure with --model"):
                await choose(scripted)
        async with serving(server.good_stream(), models=[]) as scripted:
            with pytest.raises(InvalidRequest, match="has no models"):
                await choose(scripted)

    asyncio.run(main())


def test_without_a_server() -> None:
    async def main() -> None:
        address = Server.parse("http://127.0.0.1:1")
        with pytest.raises(
            BackendUnavailable, match=r"no server answers at http://127.0.0.1:1 .* `sage infer serve`"
        ):
            await choose_model(Client(address), address, None)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("status", "wanted", "error", "message"),
    [
        ("401 Unauthorized", "m", ConfigError, "OPENAI_API_KEY"),
        ("403 Forbidden", None, ConfigError, "rejects the API key"),
        ("404 Not Found", None, InvalidRequest, "does not list its models.*--model"),
    ],
)
def test_a_server_that_does_not_list_its_models(
    status: str, wanted: str | None, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {"error": {"message": "no"}}

    async def refuse_models(writer: asyncio.StreamWriter, data: Any, *_: Any) -> None:
        await original(writer, answer, status)

    original = server.answer_json
    monkeypatch.setattr(server, "answer_json", refuse_models)

    async def main() -> None:
        async with serving(server.good_stream()) as scripted:
            with pytest.raises(error, match=message):
                await choose(scripted, wanted)
            if status.startswith("404"):
                assert await choose(scripted, "given") == ("given", [])

    asyncio.run(main())


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        (
            server.refuse("404 Not Found", "no such model"),
            ModelNotFound,
            r"no such model; check --model .*toy",
        ),
        (server.refuse("401 Unauthorized", "who?"), ConfigError, "OPENAI_API_KEY"),
        (
            server.refuse("400 Bad Request", "too long"),
            InvalidRequest,
            "rejects this workload: HTTP 400: too long",
        ),
        (server.refuse("503 Service Unavailable", "loading"), BackendUnavailable, "HTTP 503: loading"),
    ],
)
def test_a_failed_warm_up_reports_the_reason(
    reply: server.Reply, error: type[Exception], message: str
) -> None:
    async def main() -> None:
        async with serving(reply) as scripted:
            progress = Progress(3, None)
            with pytest.raises(error, match=message):
                await warm_up(
                    sender_of(scripted), CHAT.requests(0), concurrency=2, progress=progress, models=["toy"]
                )
            assert (progress.ended, progress.failed, len(scripted.generations)) == (3, 3, 3)

    asyncio.run(main())


def test_a_warm_up_with_some_answers_is_enough() -> None:
    refusals: Iterator[bool] = iter([True, False, True])

    async def reply(asked: Asked, writer: asyncio.StreamWriter) -> None:
        busy = server.refuse("429 Too Many Requests", "busy")
        await (busy if next(refusals) else server.good_stream())(asked, writer)

    async def main() -> None:
        async with serving(reply) as scripted:
            progress = Progress(3, None)
            await warm_up(sender_of(scripted), CHAT.requests(0), concurrency=1, progress=progress, models=[])
            assert (progress.ended, progress.failed) == (3, 2)

    asyncio.run(main())

"""A real HTTP server in the test's own loop, whose answers a test writes down byte by byte."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from attrs import define, field

Reply = Callable[["Asked", asyncio.StreamWriter], Awaitable[None]]


@define
class Asked:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def data(self) -> Any:
        return json.loads(self.body)


@define
class ScriptedServer:
    """Answers ``GET /v1/models`` with ``models`` and everything else by ``reply``."""

    reply: Reply
    models: list[str] = field(factory=lambda: ["toy"])
    url: str = ""
    asked: list[Asked] = field(factory=list)
    connections: int = 0

    @property
    def generations(self) -> list[Asked]:
        return [a for a in self.asked if a.method == "POST"]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *lines = head.decode("latin-1").strip().split("\r\n")
                method, path, _ = line.split(" ")
                headers = {k.lower(): v.strip() for k, _, v in (item.partition(":") for item in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                asked = Asked(method, path, headers, body)
                self.asked.append(asked)
                if path.endswith("/v1/models"):
                    await answer_json(writer, {"data": [{"id": name} for name in self.models]})
                else:
                    await self.reply(asked, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(reply: Reply, **settings: Any) -> AsyncIterator[ScriptedServer]:
    server = ScriptedServer(reply, **settings)
    listener = await asyncio.start_server(server._serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listener.close()


async def answer_json(writer: asyncio.StreamWriter, data: Any, status: str = "200 OK") -> None:
    body = json.dumps(data).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


def refuse(status: str, message: str) -> Reply:
    async def reply(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await answer_json(
            writer, {"error": {"message": message, "type": "t", "param": None, "code": "c"}}, status
        )

    return reply


def event(data: Any) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data)
    return f"data: {text}\n\n".encode()


def chat_chunk(text: str = "", finish_reason: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}]})


def text_chunk(text: str) -> bytes:
    return event({"choices": [{"index": 0, "text": text, "finish_reason": None}]})


def usage_chunk(prompt: int, output: int) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": output}})


DONE = event("[DONE]")


def stream(*events: bytes, cut: bool = False) -> Reply:
    """Answers with a chunk of HTTP for each event; ``cut`` closes the connection where more should come."""

    async def reply(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for data in events:
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        if cut:
            writer.close()
            return
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    return reply


def good_stream(tokens: int = 3, prompt: int = 11) -> Reply:
    chunks = [chat_chunk("word ") for _ in range(tokens)]
    return stream(chat_chunk(), *chunks, chat_chunk("", "length"), usage_chunk(prompt, tokens), DONE)

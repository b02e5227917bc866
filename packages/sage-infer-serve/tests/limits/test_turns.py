"""Work of many clients leaves time in each iteration of the event loop for the others."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
from sage_infer_serve.http.connections import ConnectionLimits
from sage_infer_serve.http.protocol import limited_protocol
from sage_infer_serve.http.turns import LoopTime
from uvicorn.server import ServerState

REQUEST = b"GET /%b HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Iterations:
    """Counts the iterations of the event loop, and what happens in each."""

    def __init__(self) -> None:
        self.events: Counter[int] = Counter()
        self._now = 0
        asyncio.get_running_loop().call_soon(self._next)

    def note(self) -> None:
        self.events[self._now] += 1

    def _next(self) -> None:
        self._now += 1
        asyncio.get_running_loop().call_soon(self._next)


async def pipelined_requests() -> None:
    iterations = Iterations()

    async def app(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Any]) -> None:
        if scope["path"] == "/first":
            iterations.note()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    limits = ConnectionLimits(
        max_idle=100,
        max_connections=100,
        max_per_peer=100,
        header_timeout_s=600,
        write_timeout_s=600,
        idle_timeout_s=600,
    )
    protocol = limited_protocol(limits)
    config = uvicorn.Config(app, lifespan="off", log_config=None)
    config.load()
    loop = asyncio.get_running_loop()
    state = ServerState()
    server = await loop.create_server(lambda: protocol(config, state, {}), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
    for _, writer in clients:
        writer.write(REQUEST % b"first" + REQUEST % b"later" * 8)
    for reader, writer in clients:
        for _ in range(9):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.close()
    assert sum(iterations.events.values()) == 20
    assert set(iterations.events.values()) == {1}
    server.close()


async def work_beyond_the_time() -> None:
    iterations = Iterations()
    time = LoopTime(most_s=-1)  # each piece of work uses it up

    async def work() -> None:
        for _ in range(5):
            await time.turn()
            iterations.note()
            await asyncio.sleep(0)

    await asyncio.gather(*(work() for _ in range(20)))
    assert sum(iterations.events.values()) == 100
    assert set(iterations.events.values()) == {1}


async def little_work() -> None:
    iterations = Iterations()
    time = LoopTime(most_s=1e6)

    async def work() -> None:
        await time.turn()
        iterations.note()

    await asyncio.gather(*(work() for _ in range(20)))
    assert list(iterations.events.values()) == [20]


def test_one_connection_with_pipelined_requests_is_read_in_an_iteration() -> None:
    asyncio.run(pipelined_requests())


def test_coroutines_that_have_used_an_iterations_time_wait_for_the_next() -> None:
    asyncio.run(work_beyond_the_time())


def test_coroutines_with_little_work_do_not_wait() -> None:
    asyncio.run(little_work())

"""One gateway process, as its owner sees it."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sage_infer.compat import wait_for
from sage_infer.errors import BackendUnavailable

from sage_llm.gateways.channel import Channel, open_channel
from sage_llm.gateways.messages import (
    AnnouncedReplica,
    Answer,
    Emptied,
    Failed,
    Order,
    Question,
    Ready,
    Replicas,
    Uses,
)
from sage_llm.gateways.process import run
from sage_llm.manager.replica import Drained

__all__ = ["GatewayProcess"]

_ANSWER_S = 2.0
_spawn = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks


class GatewayProcess:
    """One gateway process over its restarts.

    Args:
        number: its number, from 0.
        on_question: called with what it asks.
        on_use: called with what it has used of the limits of keys.
    """

    def __init__(
        self,
        number: int,
        on_question: Callable[[GatewayProcess, Question], object],
        on_use: Callable[[GatewayProcess, Uses], object],
    ) -> None:
        self.number, self._on_question, self._on_use = number, on_question, on_use
        self._process: Any = None
        self._channel: Channel | None = None
        self._ready: asyncio.Future[None] | None = None
        self._ended: asyncio.Future[int | None] | None = None
        self._numbers = itertools.count()
        self._questions: dict[int, asyncio.Future[Answer | None]] = {}
        self._emptied: dict[tuple[str, int], asyncio.Future[Drained]] = {}

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    @property
    def is_ready(self) -> bool:
        """Whether it runs and accepts requests."""
        ready, ended = self._ready, self._ended
        return ready is not None and ready.done() and ended is not None and not ended.done()

    async def start(self, order: Order, replicas: tuple[AnnouncedReplica, ...]) -> None:
        """Start the process."""
        loop = asyncio.get_running_loop()
        here, there = socket.socketpair()
        with there:
            self._process = _spawn.Process(target=run, args=(order, there), name=f"gateway {self.number}")
            self._process.start()
        self._ready, self._ended = loop.create_future(), loop.create_future()
        loop.add_reader(self._process.sentinel, self._has_ended)
        self._channel = await open_channel(here, self._take, lambda: None)
        self.tell(replicas)

    async def until_ready(self) -> None:
        """Wait until it accepts requests.

        Raises:
            BackendUnavailable: it has ended before.
        """
        assert self._ready is not None
        await asyncio.shield(self._ready)

    async def until_ended(self) -> int | None:
        """Wait for its end; returns the exit code, or None if it was never started."""
        return None if self._ended is None else await asyncio.shield(self._ended)

    def signal(self, number: int) -> None:
        if self._ended is not None and not self._ended.done():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def tell(self, replicas: tuple[AnnouncedReplica, ...]) -> None:
        """Announce the replicas."""
        if self._channel is not None:
            self._channel.send_newest(Replicas(replicas))

    def tell_use(self, uses: Uses) -> bool:
        """Tell what others have used of the limits of keys. Returns whether it reads."""
        if self._channel is None or self._channel.is_congested:
            return False
        self._channel.send(uses)
        return True

    def answer(self, answer: Answer) -> None:
        if self._channel is not None:
            self._channel.send(answer)

    async def ask(self, method: str, arguments: dict[str, Any]) -> Answer | None:
        """Ask the process; None if it does not answer in time."""
        if self._channel is None or self._channel.is_congested:
            return None
        number = next(self._numbers)
        answer = self._questions[number] = asyncio.get_running_loop().create_future()
        self._channel.send(Question(number, method, arguments))
        try:
            return await wait_for(answer, _ANSWER_S)
        except TimeoutError:
            return None
        finally:
            del self._questions[number]

    async def emptied(self, replica_id: str, generation: int) -> Drained:
        """Wait until the process has left a replica that is announced as stopping, or has ended."""
        nothing = Drained(replica_id=replica_id, open=0, ended=0, migrated=0, took_s=0.0)
        if self._ended is None or self._ended.done():
            return nothing
        key = replica_id, generation
        left = self._emptied.setdefault(key, asyncio.get_running_loop().create_future())
        ends: set[asyncio.Future[Any]] = {left, self._ended}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        self._emptied.pop(key, None)
        return left.result() if left.done() else nothing

    def _take(self, message: Ready | Failed | Emptied | Uses | Question | Answer) -> None:
        assert self._ready is not None
        if isinstance(message, Ready):
            self._ready.set_result(None)
        elif isinstance(message, Failed):
            self._fail(message.message)
        elif isinstance(message, Emptied):
            left = self._emptied.get((message.drained.replica_id, message.generation))
            if left is not None and not left.done():
                left.set_result(message.drained)
        elif isinstance(message, Uses):
            self._on_use(self, message)
        elif isinstance(message, Question):
            self._on_question(self, message)
        elif (question := self._questions.get(message.number)) is not None and not question.done():
            question.set_result(message)

    def _fail(self, reason: str) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(BackendUnavailable(f"gateway {self.number}: {reason}"))
            self._ready.exception()  # mark it as read: perhaps no task waits

    def _has_ended(self) -> None:
        assert self._ended is not None
        asyncio.get_running_loop().remove_reader(self._process.sentinel)
        self._process.join()
        code = self._process.exitcode
        for question in self._questions.values():
            if not question.done():
                question.set_result(None)
        # After what it has sent last.
        asyncio.get_running_loop().call_soon(self._close, code)

    def _close(self, code: int | None) -> None:
        assert self._ended is not None
        if self._channel is not None:
            self._channel.close()
        self._fail(f"ended before it was ready: exit code {code}")
        self._ended.set_result(code)

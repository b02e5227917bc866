"""The gateway processes, in the process that owns the replicas."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sage_infer.errors import BackendUnavailable

from sage_llm.gateways.handle import GatewayProcess
from sage_llm.gateways.messages import (
    AnnouncedReplica,
    Answer,
    Order,
    Question,
    Uses,
)
from sage_llm.gateways.metrics import merged
from sage_llm.gateways.shares import EXCHANGE_S
from sage_llm.gateways.uses import UseBoard
from sage_llm.manager.fleet import Fleet
from sage_llm.manager.replica import Drained, Replica
from sage_llm.manager.restarts import RestartLimits, Restarts
from sage_llm.replicas.openai import is_remote
from sage_llm.tasks import Tasks

__all__ = ["Gateways", "announced"]

log = logging.getLogger("sage_llm.gateways")

_LOOK_S = 0.05


class Gateways:
    """Gateway processes in front of the replicas of one fleet; those that end are started again.

    Args:
        fleet: the replicas; a replica is stopped after every gateway has left it.
        orders: makes the order of the gateway with a number.
        count: number of processes.
    """

    def __init__(self, fleet: Fleet, orders: Callable[[int], Order], count: int) -> None:
        self._fleet, self._orders = fleet, orders
        self._processes = [GatewayProcess(number, self._asked, self._used) for number in range(count)]
        self._uses = UseBoard(count)
        self._restarts = [Restarts(RestartLimits()) for _ in range(count)]
        self._tasks = Tasks()
        self._stopping = asyncio.Event()
        self._told: tuple[AnnouncedReplica, ...] = ()
        fleet.before_stop = self._before_stop

    @property
    def pids(self) -> list[int]:
        """Processes that accept requests."""
        return [process.pid for process in self._processes if process.is_ready]

    async def start(self) -> None:
        """Start all, and wait until they accept requests.

        Raises:
            BackendUnavailable: one could not start.
        """
        self._told = announced(self._fleet)
        for process in self._processes:
            await process.start(self._orders(process.number), self._told)
        await asyncio.gather(*(process.until_ready() for process in self._processes))
        self._tasks.spawn(self._announce())
        self._tasks.spawn(self._pass_on_use())
        for process, restarts in zip(self._processes, self._restarts, strict=True):
            self._tasks.spawn(self._keep(process, restarts))

    async def ask(self, method: str, **arguments: Any) -> dict[int, Answer]:
        """Ask all that run. Returns the answers by number of the gateway, without those that are not in time."""
        asked = [process for process in self._processes if process.is_ready]
        answers = await asyncio.gather(*(process.ask(method, arguments) for process in asked))
        return {process.number: a for process, a in zip(asked, answers, strict=True) if a is not None}

    def signal_all(self) -> None:
        """Let all finish their open requests and end; a second call cancels the requests."""
        self._stopping.set()
        for process in self._processes:
            process.signal(signal.SIGTERM)

    async def stopped(self) -> None:
        """Wait until all have ended."""
        await self._tasks.cancel()
        await asyncio.gather(*(process.until_ended() for process in self._processes))

    def kill(self) -> None:
        """End all immediately."""
        self._stopping.set()
        for process in self._processes:
            process.signal(signal.SIGKILL)

    def _asked(self, process: GatewayProcess, question: Question) -> None:
        """A gateway wants the metrics of all."""
        self._tasks.spawn(self._answer(process, question))

    def _used(self, process: GatewayProcess, uses: Uses) -> None:
        self._uses.reported(process.number, uses.uses)

    async def _pass_on_use(self) -> None:
        """Tell each gateway what the others have used of the limits of keys."""
        while True:
            await asyncio.sleep(EXCHANGE_S)
            for process in self._processes:
                self._uses.tell(process.number, process.tell_use)

    async def _answer(self, process: GatewayProcess, question: Question) -> None:
        texts = {str(number): answer.result for number, answer in (await self.ask("metrics")).items()}
        process.answer(Answer(question.number, merged(texts)))

    async def _keep(self, process: GatewayProcess, restarts: Restarts) -> None:
        """Start a process again whenever it has ended."""
        while True:
            started = time.monotonic()
            code = await process.until_ended()
            self._uses.ended(process.number)
            if self._stopping.is_set():
                return
            pause = restarts.pause(time.monotonic(), time.monotonic() - started)
            if pause is None:
                log.error(
                    "gateway %d ended too often (last exit code %s), not restarted", process.number, code
                )
                return
            log.warning("gateway %d ended (exit code %s), restarting in %.0f s", process.number, code, pause)
            await asyncio.sleep(pause)
            if self._stopping.is_set():
                return
            await process.start(self._orders(process.number), self._told)
            process.tell_use(self._uses.started(process.number))
            with suppress(BackendUnavailable):  # it has ended again
                await process.until_ready()

    async def _announce(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            now = announced(self._fleet)
            if now != self._told:
                self._told = now
                for process in self._processes:
                    process.tell(now)

    async def _before_stop(self, replica: Replica, result: Drained) -> Drained:
        """Wait until no gateway has a request on the replica; returns the sum of their results."""
        if replica.instance is None or is_remote(replica.spec.model):
            return result
        key = replica.replica_id, replica.instance.generation
        results = [result, *await asyncio.gather(*(process.emptied(*key) for process in self._processes))]
        return Drained(
            replica_id=replica.replica_id,
            open=sum(one.open for one in results),
            ended=sum(one.ended for one in results),
            migrated=sum(one.migrated for one in results),
            took_s=result.took_s,
        )


def announced(fleet: Fleet) -> tuple[AnnouncedReplica, ...]:
    """The replicas of this machine as the gateways should see them."""
    found = []
    for replica in fleet.replicas.values():
        if replica.word != "gone" and not is_remote(replica.spec.model):
            handle = replica.handle if replica.word in ("running", "stopping") else None
            found.append(
                AnnouncedReplica(
                    spec=replica.spec if handle is None else handle.spec,
                    word=replica.word,
                    reason=replica.reason,
                    descriptor=None if handle is None else handle.descriptor,
                    pid=getattr(handle, "pid", None),
                )
            )
    return tuple(found)

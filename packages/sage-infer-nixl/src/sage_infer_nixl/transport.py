"""A transport over NIXL, which runs in a process of its own."""

from __future__ import annotations

import asyncio
from typing import Any

from sage_infer.errors import ConfigError, InvalidRequest
from sage_infer.schemas import KVLocation, TransportSettings, TransportStep
from sage_infer.sdk import BaseTransport
from sage_infer_transport.addresses import FileAddress
from sage_infer_transport.copying import Segments, copy
from sage_infer_transport.execution import Failed, Move

from sage_infer_nixl.addresses import parse, reachable
from sage_infer_nixl.process import AgentProcess, ProcessEnded, SharedProcess

__all__ = ["NIXLTransport"]

STOP_S = 5.0
"""Seconds for a transfer to stop before the process is killed: until then NIXL may write to its target."""

_SHARED = SharedProcess()


class NIXLTransport(BaseTransport):
    """Implements ``sage_infer.contracts.Transport`` for ``nixl:``, ``shm:`` and ``file:``, in any combination.

    All transports of a process share one that runs NIXL, which starts with the first step that needs it. If it ends, or
    does not answer, each of its steps is tried once more in a new one. Steps within this host are copies, without NIXL.

    Args:
        settings: up to ``max_in_flight`` chunks travel simultaneously; ``chunk_bytes`` is not used, because NIXL
            divides messages itself.
        timeout_s: seconds after which the transfer of one chunk fails.

    Raises:
        ConfigError: ``timeout_s`` is out of range.
    """

    schemes = ("file", "nixl", "shm")

    def __init__(self, *, settings: TransportSettings, timeout_s: float = 60.0) -> None:
        if type(timeout_s) not in (int, float) or not 0 < timeout_s <= 3600:
            raise ConfigError(f"timeout_s must be a number of seconds between 0 and 3600, got {timeout_s!r}")
        super().__init__(settings)
        self._timeout_s = float(timeout_s)
        self._has_joined = False
        self._segments = Segments()
        self._closed = False

    def can_reach(self, source: KVLocation, target: KVLocation) -> bool:
        return reachable(source, target)

    async def move(self, step: TransportStep) -> int:
        source, target = parse(step.source.uri), parse(step.target.uri)
        if isinstance(source, FileAddress) and isinstance(target, FileAddress):
            await self._copied(source, target, Move(step))
            return 0
        retries = 0
        while True:
            process = await self._process()
            try:
                await self._carried(process, step)
                return retries
            except ProcessEnded as error:
                if retries:
                    raise Failed(str(error)) from None
                retries += 1

    async def close(self) -> None:
        self._closed = True
        joined, self._has_joined = self._has_joined, False
        if joined:
            await asyncio.to_thread(_SHARED.leave)
        self._segments.close()

    async def _copied(self, source: FileAddress, target: FileAddress, move: Move) -> None:
        copying = asyncio.ensure_future(asyncio.to_thread(copy, source, target, move, self._segments))
        try:
            await asyncio.shield(copying)
        except asyncio.CancelledError:
            move.stop.set()
            await asyncio.wait([copying])
            copying.exception()  # retrieved
            raise

    async def _process(self) -> AgentProcess:
        """The running process; a new one if it has ended.

        Raises:
            BackendUnavailable: as ``AgentProcess``.
        """
        if self._closed:
            raise InvalidRequest("the transport is closed; open another one")
        if not self._has_joined:
            self._has_joined = True
            _SHARED.join()
        return await asyncio.shield(asyncio.wrap_future(_SHARED.running()))

    async def _carried(self, process: AgentProcess, step: TransportStep) -> None:
        """
        Raises:
            Failed: the chunk did not arrive.
            ProcessEnded: the process ended.
        """
        assert step.chunk.checksum is not None  # execute() has seen to it
        number, future = process.ask(
            "move",
            source=step.source.uri,
            target=step.target.uri,
            nbytes=step.nbytes,
            digest=int(step.chunk.checksum.rpartition(":")[2], 16),
            timeout_s=self._timeout_s,
        )
        answer = asyncio.wrap_future(future)
        try:
            done, _ = await asyncio.wait([answer], timeout=self._timeout_s + STOP_S)
        except asyncio.CancelledError:
            process.stop(number)
            await self._stopped(process, answer)
            raise
        if not done:
            process.kill(f"NIXL did not answer for {self._timeout_s + STOP_S:g} s and was ended")
        found = await answer
        if "error" in found:
            raise Failed(str(found["error"]))

    async def _stopped(self, process: AgentProcess, answer: asyncio.Future[Any]) -> None:
        """Wait until nothing is written to the target any more."""
        done, _ = await asyncio.wait([answer], timeout=STOP_S)
        if not done:
            process.kill(f"NIXL did not stop a transfer within {STOP_S:g} s and was ended")
            await asyncio.wait([answer])
        answer.exception()  # retrieved

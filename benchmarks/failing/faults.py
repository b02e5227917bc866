"""The faults: each is injected into sixteen running streams."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

from failing.cluster import Namespaces, Plane, answers, until
from failing.poison_engine import MARK
from failing.streams import Stream, Streams, body, read

__all__ = ["FAULTS", "SHAPES", "SHORT", "Round"]

STOPPED_S = 4.0  # longer than `lost_s`, shorter than `revive_s`
# A busy machine reports late, so that a silent replica is lost later; shorter than `revive_s`.
NOTICED_S = 8.0
SLOW_S, SLOW_ON_S, SLOW_OFF_S = 4.0, 0.05, 0.4  # shorter than `suspect_s`
SHORT, LONG = 48, 100  # tokens of a stream


class Round:
    """One round of a fault: its streams, and what was measured.

    Attributes:
        figures: times in seconds by name.
        notes: what else is worth knowing.
        extra: short requests that follow; only their errors count.
        lost: streams that the fault ends in any case, as their connections end.
        moves: streams that moved, with what ``sage llm explain`` says of it.
    """

    def __init__(self, cluster: Any, draw: random.Random) -> None:
        self.cluster, self.draw = cluster, draw
        self.figures: dict[str, float] = {}
        self.notes: list[str] = []
        self.streams: list[Stream] = []
        self.lost: list[Stream] = []
        self.extra: list[Stream] = []
        self.moves: list[tuple[Stream, dict[str, Any]]] = []
        self.at = 0.0

    async def start(self, count: int = 16, tokens: int = SHORT) -> Streams:
        """Start streams, and wait until half of them have so many parts that a fault hits them in the middle.

        Before that, it waits until the cluster is whole again after the last fault.
        """
        await self.cluster.open()
        streams = self.streams_of(count, tokens)
        await streams.reach(self.draw.randint(2, 24))
        self.at = time.perf_counter()
        return streams

    def streams_of(self, count: int = 16, tokens: int = SHORT) -> Streams:
        return Streams(self.cluster.url, count, tokens, greedy=self.cluster.greedy)

    async def end(self, streams: Streams) -> None:
        ended = await streams.end()
        self.streams += ended
        if isinstance(self.cluster, Plane):
            for stream in ended:
                self.moves += [(stream, move) for move in await self.cluster.moves(stream.id)]

    def pick(self) -> tuple[str, int]:
        instance, pid = self.draw.choice(sorted(self.cluster.pids().items()))
        return instance, pid

    async def silent(self) -> None:
        """Wait until the control plane has moved the requests of a silent replica; a router gets as much time."""
        begun = time.monotonic()
        if isinstance(self.cluster, Plane):
            plane: Plane = self.cluster
            healthy = ("ready", "probation", "suspect")
            try:
                await until(
                    lambda: any(r["state"] not in healthy for r in plane.rows()), "the loss", NOTICED_S
                )
            except TimeoutError:
                self.notes.append("not noticed")
        await asyncio.sleep(max(0.2, begun + STOPPED_S - time.monotonic()))

    async def used(self, instance: str, old: int | None = None) -> None:
        """Wait until a replica is back, in another process than ``old``, and used."""
        plane: Plane = self.cluster
        extra: list[asyncio.Task[Stream]] = []
        back = used = 0.0
        served: int | None = None
        number = 0
        while not used:
            row = await asyncio.to_thread(plane.row, instance)
            now = time.perf_counter()
            if not back and row["state"] in ("ready", "probation") and row["pid"] != old:
                back, served = now, row["served"]
            if back and (
                row.get("running") or row.get("queued_tokens") or row.get("served", 0) > (served or 0)
            ):
                used = now
            extra = [task for task in extra if not task.done()]
            if back and len(extra) < 4:
                number = (number + 1) % 16
                stream = Stream(number)
                self.extra.append(stream)
                extra.append(asyncio.ensure_future(read(plane.url, stream, body(number, 8))))
            if now - self.at > 120:
                raise TimeoutError(f"{instance} was not used again: {row}")
            await asyncio.sleep(0.03)
        self.figures |= {"back after": back - self.at, "used after back": used - back}
        await asyncio.gather(*extra)


async def kill(at: Round) -> None:
    streams = await at.start()
    instance, pid = at.pick()
    os.killpg(pid, signal.SIGKILL)
    if isinstance(at.cluster, Plane) and at.cluster.servers is None:
        await asyncio.gather(at.end(streams), at.used(instance, pid))
    else:
        await at.end(streams)


async def stop(at: Round) -> None:
    streams = await at.start()
    instance, pid = at.pick()
    os.kill(pid, signal.SIGSTOP)
    await at.silent()
    os.kill(pid, signal.SIGCONT)
    begun, at_fault = time.perf_counter(), at.at
    if isinstance(at.cluster, Plane):
        at.at = begun
        await asyncio.gather(at.end(streams), at.used(instance))
        at.at = at_fault
    else:
        await at.end(streams)


async def slow(at: Round) -> None:
    """A replica that runs for a ninth of the time."""
    streams = await at.start()
    _, pid = at.pick()
    until_s = time.monotonic() + SLOW_S
    while time.monotonic() < until_s:
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(SLOW_OFF_S)
        os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(SLOW_ON_S)
    await at.end(streams)


async def memory(at: Round) -> None:
    """The process of a replica gets no more memory from the system, and long prompts need some."""
    streams = await at.start()
    instance, pid = at.pick()
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (2**20, before[1]))
    long = []
    for number in range(2):
        request = body(number, 8)
        request["messages"][0]["content"] += " It has a lamp and a keeper." * (60 + at.draw.randrange(20))
        at.extra.append(Stream(number))
        long.append(asyncio.ensure_future(read(at.cluster.url, at.extra[-1], request)))
    await at.end(streams)
    await asyncio.gather(*long)
    if at.cluster.pids().get(instance) == pid:
        try:
            resource.prlimit(pid, resource.RLIMIT_AS, before)
            at.notes.append("survived")
        except ProcessLookupError:
            at.notes.append("ended")
    else:
        at.notes.append("ended")


async def poison(at: Round) -> None:
    """A request that crashes every engine which runs it, among sixteen good ones."""
    streams = await at.start()
    bad = body(99, SHORT)
    bad["messages"][0]["content"] = f"The {MARK} {at.draw.random()}"
    stream = await read(at.cluster.url, Stream(99), bad)
    if "crashed" not in stream.error:
        at.notes.append(f"the poisonous request was not isolated: {stream.error or stream.text!r}")
    at.figures["poison ended after"] = time.perf_counter() - at.at
    await at.end(streams)


async def plane(at: Round) -> None:
    """``kill -9`` of the control plane, or of the router; it is started again immediately."""
    cluster = at.cluster
    streams = await at.start()
    before = cluster.pids()
    cluster.kill()
    at.lost += await streams.end()
    killed = time.perf_counter()
    cluster.start_again()
    at.figures["API after"] = await until(lambda: answers(cluster.url), "the API") - killed
    at.figures["replicas after"] = await until(lambda: cluster.pids() == before, "taking over", 60) - killed
    await at.end(at.streams_of())


async def storm(at: Round) -> None:
    """All replicas are killed, then the first one that is back."""
    streams = await at.start()
    old = set(at.cluster.pids().values())
    for pid in old:
        os.killpg(pid, signal.SIGKILL)
    new: list[int] = []

    def returned() -> bool:
        new[:] = [pid for pid in [at.cluster.returned(old)] if pid is not None]
        return bool(new)

    await until(returned, "the return of a replica")
    os.killpg(new[0], signal.SIGKILL)
    await at.end(streams)


async def drain(at: Round) -> None:
    """A replica with about sixteen long streams of thirty-two is drained, then started again."""
    streams = await at.start(32, LONG)
    instance, _ = at.pick()
    at.figures["gone after"], note = await at.cluster.drain(instance)
    at.notes += [note] if note else []
    await at.end(streams)


async def restart(at: Round) -> None:
    """All replicas are restarted one after another, while sixteen streams run all the time."""
    streams = await at.start()
    restarting = asyncio.ensure_future(at.cluster.restart())
    await at.end(streams)
    while not restarting.done():
        await at.end(at.streams_of())
    at.figures["longest drain"] = await restarting


async def network(at: Round) -> None:
    """The network to one of two servers drops all packets for a while."""
    servers: Namespaces = at.cluster.servers
    streams = await at.start()
    number = at.draw.randrange(2)
    servers.cut(number, is_cut=True)
    try:
        await at.silent()
    finally:
        servers.cut(number, is_cut=False)
    await at.end(streams)


SHAPES: dict[Callable[[Round], Awaitable[None]], tuple[int, int]] = {drain: (32, LONG)}
"""Number and tokens of the streams of a fault, if not ``(16, SHORT)``."""

FAULTS: dict[str, dict[str, Callable[[Round], Awaitable[None]]]] = {
    "children": {
        "kill": kill, "stop": stop, "slow": slow, "memory": memory, "plane": plane, "drain": drain, "restart": restart,
        "storm": storm,
    },
    "network": {"network": network},
    "poison": {"poison": poison},
    "vllm": {"vllm kill": kill},
    "router": {
        f"router {fault.__name__}": fault for fault in (kill, stop, slow, memory, plane, drain, restart, storm)
    },
    "router network": {"router network": network},
    "router poison": {"router poison": poison},
}  # fmt: skip
"""The faults by the cluster that they need."""

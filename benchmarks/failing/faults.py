"""The faults: each is injected into sixteen running streams, and waits until the cluster is whole again."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

from failing.cluster import Joined, Plane, answers, until
from failing.poison_engine import MARK
from failing.streams import Stream, Streams, body, read

__all__ = ["FAULTS", "Round"]

STOPPED_S = 6.0  # longer than `lost_s`, shorter than `revive_s`
SLOW_S, SLOW_ON_S, SLOW_OFF_S = 6.0, 0.05, 0.4  # shorter than `suspect_s`
LONG = 200  # tokens of a long stream


class Round:
    """One round of a fault: its streams, and what was measured.

    Attributes:
        figures: times in seconds by name.
        notes: what else is worth knowing.
        extra: short requests that follow; only their errors count.
        lost: streams that the fault ends in any case, as their connections end.
    """

    def __init__(self, cluster: Any, draw: random.Random) -> None:
        self.cluster, self.draw = cluster, draw
        self.figures: dict[str, float] = {}
        self.notes: list[str] = []
        self.streams: list[Stream] = []
        self.lost: list[Stream] = []
        self.extra: list[Stream] = []
        self.at = 0.0

    async def start(self, count: int = 16, tokens: int = 80) -> Streams:
        """Start streams, and wait until half of them have so many parts that a fault hits them in the middle."""
        streams = Streams(self.cluster.url, count, tokens)
        await streams.reach(self.draw.randint(2, 30))
        self.at = time.perf_counter()
        return streams

    async def end(self, streams: Streams) -> None:
        self.streams += await streams.end()

    def pick(self) -> tuple[str, int]:
        instance, pid = self.draw.choice(sorted(self.cluster.pids().items()))
        return instance, pid

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
            await asyncio.sleep(0.01)
        self.figures |= {"back after": back - self.at, "used after back": used - back}
        await asyncio.gather(*extra)


async def kill(at: Round) -> None:
    streams = await at.start()
    instance, pid = at.pick()
    os.kill(pid, signal.SIGKILL)
    if isinstance(at.cluster, Plane):
        await asyncio.gather(at.end(streams), at.used(instance, pid))
    else:
        await at.end(streams)
    await at.cluster.open()


async def stop(at: Round) -> None:
    streams = await at.start()
    instance, pid = at.pick()
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(STOPPED_S)
    os.kill(pid, signal.SIGCONT)
    begun, at_fault = time.perf_counter(), at.at
    if isinstance(at.cluster, Plane):
        at.at = begun
        await asyncio.gather(at.end(streams), at.used(instance))
        at.at = at_fault
    else:
        await at.end(streams)
    await at.cluster.open()


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
    await at.cluster.open()


async def memory(at: Round) -> None:
    """The process of a replica gets no more memory from the system, and long prompts need some."""
    streams = await at.start()
    instance, pid = at.pick()
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (2**20, before[1]))
    for number in range(4):
        request = body(number, 8)
        request["messages"][0]["content"] += " It has a lamp and a keeper." * (100 + at.draw.randrange(50))
        at.extra.append(Stream(number))
        await read(at.cluster.url, at.extra[-1], request)
    await at.end(streams)
    if at.cluster.pids().get(instance) == pid:
        try:
            resource.prlimit(pid, resource.RLIMIT_AS, before)
            at.notes.append("survived")
        except ProcessLookupError:
            at.notes.append("ended")
    else:
        at.notes.append("ended")
    await at.cluster.open()


async def poison(at: Round) -> None:
    """A request that crashes every engine which runs it, among sixteen good ones."""
    streams = await at.start()
    bad = body(99, 80)
    bad["messages"][0]["content"] = f"The {MARK} {at.draw.random()}"
    stream = await read(at.cluster.url, Stream(99), bad)
    if "crashed" not in stream.error:
        at.notes.append(f"the poisonous request was not isolated: {stream.error or stream.text!r}")
    at.figures["poison ended after"] = time.perf_counter() - at.at
    await at.end(streams)
    await at.cluster.open()


async def plane(at: Round) -> None:
    """``kill -9`` of the control plane; it is started again immediately."""
    cluster: Plane = at.cluster
    streams = await at.start()
    before = cluster.pids()
    cluster.kill()
    at.lost += await streams.end()
    killed = time.perf_counter()
    cluster.start_again()
    at.figures["API after"] = await until(lambda: answers(cluster.url), "the API") - killed
    at.figures["replicas after"] = await until(lambda: cluster.pids() == before, "taking over", 60) - killed
    await at.end(Streams(cluster.url))


async def storm(at: Round) -> None:
    """All replicas are killed, then the first one that is back."""
    streams = await at.start()
    pids = at.cluster.pids()
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)

    def returned() -> int | None:
        new = {row["pid"] for row in at.cluster.rows() if row["state"] in ("ready", "probation")}
        return next(iter(new - set(pids.values())), None)

    await until(returned, "the return of a replica")
    if (pid := returned()) is not None:
        os.kill(pid, signal.SIGKILL)
    await at.end(streams)
    await at.cluster.open()


async def drain(at: Round) -> None:
    """A replica with about sixteen long streams of thirty-two is drained, then started again."""
    streams = await at.start(32, LONG)
    instance, _ = at.pick()
    result = await at.cluster.ask("drain", replica=instance)
    at.figures["gone after"] = result["took_s"]
    at.notes.append(f"{result['open']} open, {result['migrated']} moved")
    await at.cluster.ask("scale", model=instance.rpartition("/")[0], replicas=2)
    await at.end(streams)
    await at.cluster.open()


async def restart(at: Round) -> None:
    """All replicas are restarted one after another."""
    streams = await at.start(16, LONG)
    results = await at.cluster.ask("restart")
    at.figures["longest drain"] = max(result["took_s"] for result in results)
    await at.end(streams)
    await at.cluster.open()


async def network(at: Round) -> None:
    """The network to one of two joined servers drops all packets for a while."""
    joined: Joined = at.cluster.servers
    streams = await at.start()
    number = at.draw.randrange(2)
    joined.cut(number, is_cut=True)
    await asyncio.sleep(STOPPED_S)
    joined.cut(number, is_cut=False)
    await at.end(streams)
    await at.cluster.open()


FAULTS: dict[str, dict[str, Callable[[Round], Awaitable[None]]]] = {
    "children": {
        "kill": kill, "stop": stop, "slow": slow, "memory": memory, "plane": plane, "storm": storm, "drain": drain,
        "restart": restart,
    },
    "poison": {"poison": poison},
    "network": {"network": network},
    "router": {"router kill": kill, "router stop": stop},
}  # fmt: skip
"""The faults by the cluster that they need."""

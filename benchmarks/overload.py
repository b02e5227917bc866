"""Overload: goodput, waits and `Retry-After` of `sage infer serve` at twenty times the rate that it can serve.

    hatch run python benchmarks/overload.py [--minutes 5] [--times 20] [--nice -15] [--replicas 2] [--json results.json]

A closed loop finds the peak. An open loop then sends ``times`` that rate; its clients give up after 60 s. An accepted
request's wait is compared with what the last client that was refused before it had been told. With --replicas,
`sage llm serve` is measured instead, with so many replicas of one thread each. The clients' process has the lowest
priority (nice 19), because real clients would not use the server's processors. Exits with 1 if more than 1 % of the
accepted requests miss their 60 s, or if goodput is below 0.9 of the peak.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import platform
import random
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import uvloop
from attacks import quantile
from attrs import define, field
from sage_infer.compat import Runner, TaskGroup, timeout
from servers import free_port, prefer, running

LLM = "smollm2-135m"
MODELS = [{"model": LLM, "options": {"kv_cache_gb": 0.25}}]
PATIENCE_S = 60.0
CONCURRENCY = 64  # of the closed loop: a full batch, and its successors
PEAK_S = 40.0
RETRY_AFTER = re.compile(rb"\r\nretry-after: (\d+)", re.IGNORECASE)


@define
class Answer:
    """One request: status 0 where the client gave up."""

    sent: float
    status: int = 0
    began: float = 0.0
    ended: float = 0.0
    tokens: int = 0
    retry_after: float | None = None
    told: float | None = None  # what was said last before it was accepted


@define
class Reading(asyncio.Protocol):
    """Reads one response. Streams of asyncio would take several times the processor time, which the server needs."""

    answer: Answer
    ended: asyncio.Future[None]
    _head: bytes = b""

    def data_received(self, data: bytes) -> None:
        if not self.answer.began:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            self.answer.began = time.perf_counter()
            self.answer.status = int(head.split(b" ", 2)[1])
            if after := RETRY_AFTER.search(head):
                self.answer.retry_after = float(after[1])
        self.answer.tokens += data.count(b"data: {")

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


@define
class Clients:
    port: int
    draw: random.Random = field(factory=lambda: random.Random(1))
    answers: list[Answer] = field(factory=list)
    last_told: float | None = None

    def request(self) -> bytes:
        words = " ".join(self.draw.choices(["tell", "me", "a", "story", "of", "the", "old", "sea"], k=20))
        body = json.dumps(
            {
                "model": LLM, "messages": [{"role": "user", "content": words}], "stream": True, "ignore_eos": True,
                "max_tokens": self.draw.randint(16, 96),
            }
        ).encode()  # fmt: skip
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        return f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    async def ask(self) -> Answer:
        answer = Answer(sent=time.perf_counter())
        self.answers.append(answer)
        loop = asyncio.get_running_loop()
        try:
            async with timeout(PATIENCE_S):
                made = partial(Reading, answer, loop.create_future())
                transport, reading = await loop.create_connection(made, "127.0.0.1", self.port)
                try:
                    answer.told = self.last_told
                    transport.write(self.request())
                    await reading.ended
                finally:
                    transport.close()
        except (TimeoutError, OSError):
            answer.status = 0
        if answer.retry_after is not None:
            self.last_told = answer.retry_after
        answer.ended = time.perf_counter()
        return answer

    async def closed(self, seconds: float) -> float:
        """Answers per second at full load, without the time in which the batch fills and empties."""
        until = time.perf_counter() + seconds

        async def one() -> None:
            while time.perf_counter() < until:
                await self.ask()

        await asyncio.gather(*(one() for _ in range(CONCURRENCY)))
        begin, end = until - seconds * 0.75, until
        return sum(begin < a.ended <= end and a.status == 200 for a in self.answers) / (end - begin)

    async def open(self, rate: float, seconds: float) -> None:
        until = time.perf_counter() + seconds
        async with TaskGroup() as tasks:
            while time.perf_counter() < until:
                tasks.create_task(self.ask())
                await asyncio.sleep(self.draw.expovariate(rate))


async def health(port: int, times: list[float]) -> None:
    def one() -> float:
        began = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/health")
        connection.getresponse().read()
        connection.close()
        return time.perf_counter() - began

    while True:
        times.append(await asyncio.to_thread(one))
        await asyncio.sleep(0.2)


async def measure(options: argparse.Namespace, port: int, pid: int) -> dict[str, Any]:
    def resident_mb() -> float:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    peak = await Clients(port).closed(PEAK_S)
    print(f"peak: {peak:.2f} answers/s", file=sys.stderr, flush=True)
    before = resident_mb()
    clients, seconds = Clients(port), 60 * options.minutes
    checks: list[float] = []
    checking = asyncio.create_task(health(port, checks))
    began = time.perf_counter()
    await clients.open(options.times * peak, seconds)
    checking.cancel()
    again = await Clients(port).closed(PEAK_S)
    refused = [a for a in clients.answers if a.status == 429]
    accepted = [a for a in clients.answers if a.status != 429]
    late = [a for a in accepted if a.status != 200]
    # The first minute fills the queue, and answers of the last one come after it.
    filled = min(60.0, seconds / 3)
    goodput = sum(a.status == 200 and began + filled < a.ended <= began + seconds for a in accepted) / (
        seconds - filled
    )
    told = [(a.told, a.began - a.sent) for a in accepted if a.told is not None and a.began]
    ratios = [expected / wait for expected, wait in told if wait > 1]
    refusals = [(a.ended - a.sent) * 1000 for a in refused]
    waits = [a.began - a.sent for a in accepted if a.began]
    return {
        "server": "sage infer serve" if options.replicas is None else f"sage llm serve, {options.replicas} replicas",
        "minutes": options.minutes, "load of the machine": os.getloadavg()[0],
        "peak before and after, answers/s": [peak, again],
        "offered/s": len(clients.answers) / seconds,
        "accepted": len(accepted), "refused": len(refused), "missed 60 s": len(late),
        "missed, share": len(late) / max(1, len(accepted)),
        "goodput/s": goodput, "goodput, share of peak": goodput / statistics.mean([peak, again]),
        "wait of accepted p50, s": quantile(waits, 0.5), "wait of accepted p99, s": quantile(waits, 0.99),
        "Retry-After, s": dict(Counter(a.retry_after for a in refused).most_common(5)),
        "Retry-After over wait, p5, p50, p95": [quantile(ratios, q) for q in (0.05, 0.5, 0.95)],
        "Retry-After within a factor of two, share": sum(0.5 <= r <= 2 for r in ratios) / max(1, len(ratios)),
        "refusal p50 and p99, ms": [quantile(refusals, 0.5), quantile(refusals, 0.99)],
        "/health p50 and p99, ms": [quantile(checks, 0.5) * 1000, quantile(checks, 0.99) * 1000],
        "resident MB before and after": [before, resident_mb()],
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--times", type=float, default=20)
    parser.add_argument("--nice", type=int, help="priority of the server; root may say -15")
    parser.add_argument("--clients-nice", type=int, default=19, help="priority of the clients")
    parser.add_argument("--replicas", type=int, help="of `sage llm serve`, which is measured then")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "sage_infer.yaml")
        command = [str(Path(sys.executable).with_name("sage")), "--config", str(config)]
        if options.replicas is None:
            config.write_text(json.dumps({"serve": {"models": MODELS, "port": port}}))
            command += ["infer", "serve"]
        else:
            model = {
                "model": LLM,
                "replicas": options.replicas,
                "options": {"kv_cache_gb": 0.25, "threads": 1},
            }
            config.write_text(json.dumps({"serve": {"port": port}, "llm": {"models": [model]}}))
            command += ["llm", "serve"]
        with running(command, port, Path(folder, "log"), start_s=300, path="/health") as pid:
            if options.nice is not None:
                prefer(pid, options.nice)
            prefer(os.getpid(), options.clients_nice)
            with Runner(loop_factory=uvloop.new_event_loop) as runner:
                figures = runner.run(measure(options, port, pid))
    for name, value in figures.items():
        print(f"{name}: {value}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    missed, goodput = figures["missed, share"], figures["goodput, share of peak"]
    return 1 if missed > 0.01 or goodput < 0.9 else 0


if __name__ == "__main__":
    sys.exit(main())

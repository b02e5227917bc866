"""Half an hour of mixed traffic at 80 % load: no resource of the gateway process may keep growing.

    hatch run python benchmarks/soak.py [--minutes 30] [--load 0.8] [--json results.json]

Starts `sage infer serve` with SmolLM2 and MiniLM. Closed loops find the machine's capacity: of chat beside embedding,
and of embedding beside ``load`` of that chat. Open loops then send ``load`` of both rates at random times, while other
clients disconnect mid-stream and some send invalid requests. /metrics is sampled throughout. Exits
with 1 if a request failed, if the resident set of the last quarter exceeds that of the second by more than
``growth_mb``, or if file descriptors, tasks or open requests increased.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sage_infer.compat import wait_for
from sage_infer_serve.bench.load import Outcome, Sender, closed_loop, open_loop
from sage_infer_serve.bench.workload import Lengths, Workload, arrivals
from sage_infer_serve.http.client import Client, Server
from servers import free_port

LLM, ENCODER = "smollm2-135m", "minilm"
# A KV cache small enough to be fully used within a minute: memory touched late is not a leak.
MODELS = [{"model": LLM, "options": {"kv_cache_gb": 0.125}}, {"model": ENCODER}]
AT_ONCE = {LLM: 12, ENCODER: 16}  # enough to keep the server saturated
LENGTHS = Lengths(scale=0.1)
GAUGES = {
    "resident MB": "process_resident_memory_bytes",
    "file descriptors": "process_open_fds",
    "tasks": "sage_infer_event_loop_tasks",
    "open requests": "sage_infer_open_requests",
}
Sample = dict[str, float]


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The server's address, once it is ready."""
    port = free_port()
    config = folder / "sage_infer.yaml"
    config.write_text(json.dumps({"serve": {"models": MODELS, "port": port}}))
    log = folder / "serve.log"
    sage = Path(sys.executable).with_name("sage")
    command = [str(sage), "--config", str(config), "infer", "serve"]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=output, text=True)
    try:
        assert process.stdout is not None
        if not any("/v1 (API)" in line for line in process.stdout):
            raise SystemExit(f"the server did not start: {log.read_text()[-1000:]}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(300)


async def sample(client: Client) -> Sample:
    answer = await client.get("/metrics")
    text = answer.body.decode()
    found = {}
    for name, gauge in GAUGES.items():
        match = re.search(rf"^{gauge} (\S+)", text, re.MULTILINE)
        if match is None:
            raise SystemExit(f"/metrics has no {gauge}")
        found[name] = float(match[1]) / (1e6 if name.endswith("MB") else 1)
    return found


async def idle(client: Client) -> Sample:
    """A sample taken when no request is open and earlier connections are closed."""
    until, last = time.perf_counter() + 30, await sample(client)
    while time.perf_counter() < until:
        await asyncio.sleep(0.5)
        now = await sample(client)
        if now["open requests"] == 0 and now["file descriptors"] == last["file descriptors"]:
            return now
        last = now
    return last


class Traffic:
    """Chat and embedding traffic, at full speed or at given rates."""

    def __init__(self, url: str) -> None:
        self.server = Server.parse(url)
        self.ends: Counter[str] = Counter()
        self.workloads = {
            LLM: Workload(endpoint="chat", model=LLM, lengths=LENGTHS),
            ENCODER: Workload(endpoint="embeddings", model=ENCODER, lengths=Lengths(input=40), batch=8),
        }

    def count(self, outcome: Outcome) -> None:
        self.ends[outcome.error or "answered"] += 1

    def count_saturating(self, outcome: Outcome) -> None:
        """Closed loops saturate the server on purpose, so that it may refuse; those requests are no capacity."""
        if not (outcome.error or "").startswith("HTTP 429"):
            self.count(outcome)

    async def capacity(self, seconds: float, load: float) -> dict[str, float]:
        """Requests per second of each model."""
        found = dict(await asyncio.gather(*(self._closed(name, seconds) for name in self.workloads)))
        # With fewer streams than a closed loop, embedding gets different slices.
        chat = self._open(LLM, load * found[LLM], seconds)
        _, embedding = await asyncio.gather(chat, self._closed(ENCODER, seconds))
        return {**found, **dict([embedding])}

    async def _closed(self, name: str, seconds: float) -> tuple[str, float]:
        client = Client(self.server)
        try:
            run = await closed_loop(
                Sender(client, self.workloads[name], timeout_s=120), self.workloads[name].requests(0),
                concurrency=AT_ONCE[name], count=None, duration_s=seconds, on_outcome=self.count_saturating,
            )  # fmt: skip
        finally:
            client.close()
        answered = sum(not outcome.error for outcome in run.outcomes)
        return name, answered / (run.ended - run.began)

    async def steady(self, rates: dict[str, float], seconds: float) -> None:
        await asyncio.gather(*(self._open(name, rate, seconds) for name, rate in rates.items()))

    async def _open(self, name: str, rate: float, seconds: float) -> None:
        client = Client(self.server)
        try:
            await open_loop(
                Sender(client, self.workloads[name], timeout_s=300), self.workloads[name].requests(1),
                arrivals(rate, 1), count=None, duration_s=seconds, on_outcome=self.count,
            )  # fmt: skip
        finally:
            client.close()

    async def misbehave(self, seconds: float) -> None:
        """Every other second a client disconnects mid-answer or sends an invalid request."""
        until, turn = time.perf_counter() + seconds, 0
        messages = [{"role": "user", "content": "Tell a story."}]
        body = json.dumps({"model": LLM, "stream": True, "max_tokens": 200, "messages": messages}).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        asks = [
            head + b"content-length: %d\r\n\r\n" % len(body) + body,
            head + b"content-length: 5\r\n\r\n{]{]{",
            b"\x16\x03\x01 this is not HTTP\r\n\r\n",
        ]
        while time.perf_counter() < until:
            reader, writer = await asyncio.open_connection(self.server.host, self.server.port)
            writer.write(asks[turn % len(asks)])
            with contextlib.suppress(OSError, TimeoutError):
                await wait_for(reader.read(100), 300)
            writer.close()
            turn += 1
            await asyncio.sleep(2)


async def soak(url: str, minutes: float, load: float) -> dict[str, Any]:
    traffic, client = Traffic(url), Client(Server.parse(url))
    seconds = 60 * minutes
    find_s = min(120.0, seconds / 2)
    say(f"measuring capacity for {find_s:.0f} s")
    capacity = await traffic.capacity(find_s / 2, load)
    before = await idle(client)
    rates = {name: load * rate for name, rate in capacity.items()}
    say(", ".join(f"{name}: {rate:.2f} requests/s" for name, rate in rates.items()))
    samples: list[Sample] = []

    async def watch() -> None:
        began = time.perf_counter()
        while True:
            samples.append(await sample(client))
            figures = ", ".join(f"{value:.0f} {name}" for name, value in samples[-1].items())
            done = traffic.ends.total()
            bar(f"{(time.perf_counter() - began) / 60:.1f} of {minutes:g} min, {done} requests, {figures}")
            await asyncio.sleep(min(5.0, seconds / 40))

    watching = asyncio.create_task(watch())
    try:
        await asyncio.gather(traffic.steady(rates, seconds), traffic.misbehave(seconds))
    finally:
        watching.cancel()
    after = await idle(client)
    client.close()
    return {
        "minutes": minutes, "load": load, "requests/s": rates, "ends": dict(traffic.ends), "before": before,
        "after": after, "samples": samples,
    }  # fmt: skip


def problems(result: dict[str, Any], growth_mb: float) -> list[str]:
    """Failed checks, one line each."""
    found = [f"{count} requests: {end}" for end, count in result["ends"].items() if end != "answered"]
    resident = [sample["resident MB"] for sample in result["samples"]]
    quarter = max(1, len(resident) // 4)
    second, last = statistics.median(resident[quarter : 2 * quarter]), statistics.median(resident[-quarter:])
    if last > second + growth_mb:
        found.append(f"the resident set grew from {second:.0f} to {last:.0f} MB")
    for name in ("file descriptors", "tasks", "open requests"):
        if result["after"][name] > result["before"][name]:
            found.append(
                f"{result['after'][name]:.0f} {name} after the traffic, {result['before'][name]:.0f} before"
            )
    return found


def table(result: dict[str, Any]) -> str:
    lines = ["| | before | first quarter | second | third | last | after |", "|---|---|---|---|---|---|---|"]
    samples = result["samples"]
    quarter = max(1, len(samples) // 4)
    for name in GAUGES:
        quarters = [[s[name] for s in samples[i * quarter : (i + 1) * quarter]] for i in range(4)]
        values = [
            result["before"][name],
            *(statistics.median(q or [0.0]) for q in quarters),
            result["after"][name],
        ]
        lines.append(f"| {name} | {' | '.join(f'{value:.0f}' for value in values)} |")
    return "\n".join(lines)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def bar(text: str) -> None:
    print(
        f"\r{text}\x1b[K" if sys.stderr.isatty() else text,
        end="" if sys.stderr.isatty() else "\n",
        file=sys.stderr,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--load", type=float, default=0.8, help="share of the machine's capacity")
    parser.add_argument("--growth-mb", type=float, default=8, help="maximum growth of the resident set")
    parser.add_argument("--json", type=Path, help="write all samples here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as url:
        result = asyncio.run(soak(url, options.minutes, options.load))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    say("")
    print(f"{sum(result['ends'].values())} requests in {options.minutes:g} minutes\n\n{table(result)}")
    found = problems(result, options.growth_mb)
    for line in found:
        say(f"error: {line}")
    return 1 if found else 0


if __name__ == "__main__":
    os.environ["NO_COLOR"] = "1"
    sys.exit(main())

"""Several gateways against one: hit rate and time to first token, and what clients see when a gateway is killed.

    python benchmarks/gateways.py TRACE [--counts 1 4] [--rounds 2] [--seconds 30] [--requests 90] [--streams 12]
        [--replicas 2] [--kv-gb 0.25] [--sessions 0.03] [--nice -15] [--json FILE]

TRACE is a Mooncake trace, scaled as in ``simulator_life.py``. Each reading is a new ``sage llm serve`` with replicas of
the embedded engine of one thread each; numbers of gateways take turns, in the opposite order in each second round.
Each request has a connection of its own, so that the system spreads them among the gateways.

In the last reading with several gateways, equal streams run twice: undisturbed, and with a gateway killed while they
run. Clients of the killed one connect again and repeat their request. Printed: how many streams broke and were
repeated, whether all texts are equal, and the longest gap between tokens of the other streams, beside the undisturbed
run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import uvloop
from attrs import define, field
from kv_policies import tokens_of
from sage_infer_serve.bench.load import Outcome, Sender
from sage_infer_serve.bench.replies import BadAnswer, StreamReader
from sage_infer_serve.bench.report import percentile
from sage_infer_serve.bench.workload import Lengths, Request, Workload
from sage_infer_serve.http.client import Client, Disconnected, Server
from sage_llm.simulator.schemas import Row
from servers import free_port, running
from simulator_life import LLM, SAGE, START_S, favour, request_of, rows_of, serve

OUTPUT = 200  # tokens of the streams beside which a gateway is killed
AGAIN_S = 0.05


class Figures(NamedTuple):
    saved: float
    ttft_mean_s: float
    ttft_p90_s: float


async def replay(rows: Sequence[Row], port: int) -> Figures:
    server = Server.parse(f"http://127.0.0.1:{port}")
    workload = Workload(endpoint="completions", model=LLM, lengths=Lengths())

    async def one(request: Request, due: float) -> Outcome:
        await asyncio.sleep(due - time.perf_counter())
        client = Client(server)
        try:
            return await Sender(client, workload, timeout_s=120.0).send(request, due)
        finally:
            client.close()

    now = time.perf_counter()
    await asyncio.gather(*(one(request_of([600 + n, *tokens_of(-1 - n)], 8), now) for n in range(8)))
    bodies = [
        request_of([t for h in row.keys for t in tokens_of(h)] + [7], row.output_tokens) for row in rows
    ]
    start = time.perf_counter() + 0.2
    found = await asyncio.gather(*(one(body, start + row.at) for body, row in zip(bodies, rows, strict=True)))
    failed = [outcome.error for outcome in found if outcome.error is not None or outcome.first is None]
    if failed:
        raise SystemExit(f"{len(failed)} of {len(found)} requests failed: {failed[0]}")
    times = sorted(outcome.first - outcome.due for outcome in found if outcome.first is not None)
    saved = sum(outcome.cached_tokens or 0 for outcome in found) / sum(o.prompt_tokens for o in found)
    return Figures(saved, statistics.fmean(times), percentile(times, 0.9))


# --- a gateway is killed


@define
class Stream:
    """One client, which repeats its request if its connection breaks."""

    port: int
    gaps: list[float] = field(factory=list)
    text: bytes = b""
    repeated: int = 0
    started: asyncio.Event = field(factory=asyncio.Event)

    async def run(self) -> None:
        body = request_of(tokens_of(77), OUTPUT).body
        while True:
            client, reader = Client(Server.parse(f"http://127.0.0.1:{self.port}")), StreamReader()
            pieces: list[bytes] = []

            def on_piece(
                piece: bytes, now: float, reader: StreamReader = reader, pieces: list[bytes] = pieces
            ) -> None:
                reader.feed(piece, now)
                pieces.append(piece)
                self.started.set()

            try:
                answer = await client.post("/v1/completions", body, on_piece)
                reader.end()
            except (Disconnected, BadAnswer):
                self.repeated += 1
                await asyncio.sleep(AGAIN_S)
                continue
            finally:
                client.close()
            assert answer.status == 200, answer.body
            self.gaps, self.text = list(reader.gaps), texts_of(b"".join(pieces))
            return


def texts_of(events: bytes) -> bytes:
    """The text of a stream, without ids and times."""
    found = []
    for line in events.split(b"\n"):
        if line.startswith(b"data: {"):
            found += [choice.get("text", "") for choice in json.loads(line[6:])["choices"]]
    return "".join(found).encode()


async def streams(port: int, count: int, victim: int | None) -> list[Stream]:
    """Equal streams; with a victim, that process is killed once all have begun."""
    found = [Stream(port) for _ in range(count)]
    tasks = [asyncio.create_task(stream.run()) for stream in found]
    for stream in found:
        await stream.started.wait()
    if victim is not None:
        os.kill(victim, signal.SIGKILL)
    await asyncio.gather(*tasks)
    return found


def gateway_pids(port: int) -> list[int]:
    done = subprocess.run(
        [SAGE, "llm", "status", "--json", "--port", str(port)],
        capture_output=True,
        text=True,
        check=True,
    )
    return [row["pid"] for row in json.loads(done.stdout)["gateways"]]


def killed(port: int, count: int) -> dict[str, Any]:
    calm = uvloop.run(streams(port, count, None))
    disturbed = uvloop.run(streams(port, count, gateway_pids(port)[0]))
    others = [stream for stream in disturbed if not stream.repeated]
    gap = max(max(stream.gaps) for stream in calm)
    return {
        "streams": count,
        "broken_and_repeated": count - len(others),
        "equal_texts": len({stream.text for stream in [*calm, *disturbed]}) == 1,
        "longest_gap_s": max(max(stream.gaps) for stream in others),
        "longest_gap_undisturbed_s": gap,
        "gateways_after": len(gateway_pids(port)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--requests", type=int, default=90)
    parser.add_argument("--streams", type=int, default=12)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--kv-gb", type=float, default=0.25)
    parser.add_argument("--sessions", type=float, default=0.03)
    parser.add_argument("--nice", type=int, help="as in simulator_life.py")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the servers end as well
    rows = rows_of(arguments.trace, arguments.sessions)[: arguments.requests]
    first, last = rows[0].at, rows[-1].at
    rows = [row._replace(at=(row.at - first) * arguments.seconds / (last - first)) for row in rows]
    readings: list[dict[str, Any]] = []
    kill: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            counts = arguments.counts if number % 2 == 0 else [*reversed(arguments.counts)]
            for count in counts:
                port = free_port()
                command = serve(
                    arguments,
                    port,
                    "-m",
                    LLM,
                    "--replicas",
                    str(arguments.replicas),
                    "--gateways",
                    str(count),
                )
                with running(command, port, Path(folder) / "log", start_s=START_S, path="/health") as pid:
                    favour(pid, port, arguments.nice)
                    found = uvloop.run(replay(rows, port))
                    is_last = number == arguments.rounds - 1 and count > 1 and not kill
                    kill = killed(port, arguments.streams) if is_last else kill
                readings.append(
                    {"round": number, "gateways": count, **found._asdict(), "load": os.getloadavg()[0]}
                )
                print(readings[-1], flush=True)
    base = arguments.counts[0]
    for count in arguments.counts:
        mean = {
            name: statistics.fmean(row[name] for row in readings if row["gateways"] == count)
            for name in Figures._fields
        }
        usual = {
            name: statistics.fmean(row[name] for row in readings if row["gateways"] == base)
            for name in Figures._fields
        }
        parts = (f"{name} {mean[name]:.3f} ({mean[name] / max(usual[name], 1e-9):.2f}x)" for name in mean)
        print(f"{count} gateways: {', '.join(parts)}")
    if kill:
        print(
            f"killed one: {kill}, gap {kill['longest_gap_s'] / kill['longest_gap_undisturbed_s']:.2f}x of undisturbed"
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"readings": readings, "kill": kill}, indent=1), "utf-8")


if __name__ == "__main__":
    main()

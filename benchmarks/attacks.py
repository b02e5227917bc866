"""Effect of attacks on other clients: chats at a steady rate and /health, without and during each attack.

    hatch run python benchmarks/attacks.py [--seconds 20] [--only WORDS] [--short] [--json results.json]

Starts `sage infer serve` with SmolLM2 and MiniLM in its own process. Chats (streams of 8 tokens) arrive in an open loop
that needs less than half of the server's capacity, which is the share of one client beside another, and /health is
requested on a new connection each time. Each attack runs between two quiet periods of half its time, from another
process and another address. Other programs on the machine affect all periods equally, so the ratio of the attack's p99
to that of both quiet periods together is reported. These have as many chats as the attack, or fewer if it takes longer
than --seconds, so that both quantiles are of equally large samples (nearest rank; of fewer than 100 chats it is the
slowest). The attacker's process has the lowest priority (nice 19), because a real attacker would not use the server's
processors.

Exits with 1 if an attack's request got a response other than a rejection, a valid response, or a closed connection, if
a chat or /health failed, or if the server exited. Unless --short, also if the limits below are exceeded in each of
three tries.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import Any

from hostile.bodies import BODIES, ENCODER, LLM
from hostile.peer import CLOSED, Peer, request
from hostile.wire import WIRE
from sage_infer.compat import timeout
from sage_infer_serve.bench.load import Outcome, Sender, open_loop
from sage_infer_serve.bench.workload import Lengths, Workload
from sage_infer_serve.http.client import Client, Server
from servers import free_port, prefer, running

RATE = 2.0  # chats per second: about a third of what two cores can do, so less than one client's share of two
CHAT = Workload(endpoint="chat", model=LLM, lengths=Lengths(input=20, output=8))
P99_RATIO, HEALTH_MS, RSS_RATIO = 2.0, 100.0, 1.1
TRIES = 3
SETTLE_S = 60.0  # time for the release of memory and connections
PAGES = 5, 800  # prompts that together are longer than the KV cache, and their tokens
MODELS = [{"model": LLM, "options": {"kv_cache_gb": 0.125}}, {"model": ENCODER}]
SHORT = (
    "chain of 3,000 references", "20,000 choices", "prompt of 10 MB without a blank", "150 MB of tiny trailers",
    "100,000 pipelined requests",
)  # fmt: skip
REFUSED = re.compile(r"4\d\d|503")
HARMLESS = {CLOSED, "closed by the client", "not connected", "200"}

Figures = dict[str, Any]


async def attack(name: str, port: int, seconds: float) -> Counter[str]:
    """Run one attack in this process; returns the server's responses."""
    peer = Peer(port)
    if name in WIRE:
        await WIRE[name](peer, seconds)
        return peer.outcomes
    made = [request(path, given, head=head) for path, given, head in _some(BODIES[name]())]
    requests = cycle(made)
    await peer.together(3, lambda: peer.ask(next(requests)), seconds)
    return peer.outcomes


def _some(bodies: Iterator[Any]) -> list[Any]:
    return [given for given, _ in zip(bodies, range(50), strict=False)]


class Watcher:
    """Another client: sends chats and requests /health, and observes the server's process."""

    def __init__(self, port: int, pid: int, rate: float = RATE) -> None:
        self._rate = rate
        self._server, self._pid = Server.parse(f"http://127.0.0.1:{port}"), pid
        self._requests = CHAT.requests(0)

    async def during(self, seconds: float, meanwhile: Callable[[], bool]) -> Figures:
        """Figures over ``seconds``, or longer while ``meanwhile`` is true."""
        chats: list[Outcome] = []
        health: list[float] = []
        failures: Counter[str] = Counter()
        client = Client(self._server)
        began = time.perf_counter()

        def times() -> Iterator[float]:
            at = 0.0
            while at < seconds or meanwhile():
                yield at
                at += 1 / self._rate

        async def ask() -> None:
            while time.perf_counter() - began < seconds or meanwhile():
                other = Client(self._server)
                due = time.perf_counter()
                try:
                    async with timeout(60):
                        answer = await other.get("/health")
                    if answer.status != 200:
                        failures[f"/health: {answer.status}"] += 1
                except Exception as error:
                    failures[f"/health: {str(error) or type(error).__name__}"] += 1
                health.append(time.perf_counter() - due)
                other.close()
                await asyncio.sleep(0.05)

        chatting = open_loop(
            Sender(client, CHAT, timeout_s=120), self._requests, times(), count=None, duration_s=None,
            on_outcome=chats.append,
        )  # fmt: skip
        await asyncio.gather(chatting, ask())
        client.close()
        for chat in chats:
            if chat.error:
                failures[f"chat: {chat.error}"] += 1
        waits = [(chat.ended - chat.due) * 1000 for chat in chats if not chat.error]
        return {
            "chats": len(chats), "answered": len(waits), "waits, ms": [round(wait, 1) for wait in waits],
            "chat p50, ms": quantile(waits, 0.5), "chat p99, ms": quantile(waits, 0.99),
            "worst /health, ms": max(health) * 1000, "/health p99, ms": quantile([h * 1000 for h in health], 0.99),
            "failures": dict(failures),
        }  # fmt: skip

    def resident_mb(self) -> float:
        """Of the server and its children."""
        total = 0
        for pid in [self._pid, *children(self._pid)]:
            with suppress(OSError):
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return total * os.sysconf("SC_PAGE_SIZE") / 1e6

    def descriptors(self) -> int:
        with suppress(OSError):
            return len(os.listdir(f"/proc/{self._pid}/fd"))
        return 0

    def is_alive(self) -> bool:
        with suppress(OSError):
            return Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        return False


def children(pid: int) -> list[int]:
    with suppress(OSError):
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in found]
    return []


def quantile(values: list[float], share: float) -> float:
    if not values:
        return float("nan")
    return sorted(values)[math.ceil(share * len(values)) - 1]


async def one(watcher: Watcher, name: str, port: int, options: argparse.Namespace) -> Figures:
    """An attack between two quiet periods."""
    seconds = options.seconds
    quiet = [] if options.short else [await watcher.during(seconds / 2, lambda: False)]
    before = watcher.resident_mb(), watcher.descriptors()
    command = [sys.executable, __file__, "--attack", name, "--port", str(port), "--seconds", str(seconds)]
    attacker = subprocess.Popen(  # noqa: ASYNC220 - returns before the new process does anything
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    prefer(attacker.pid, 0 if options.short else options.attacker_nice)
    peak = [before]

    async def look() -> None:
        while attacker.poll() is None:
            peak.append((watcher.resident_mb(), watcher.descriptors()))
            await asyncio.sleep(0.2)

    looking = asyncio.create_task(look())
    attacked = await watcher.during(seconds, lambda: attacker.poll() is None)
    await looking
    assert attacker.stdout is not None
    outcomes = json.loads(attacker.stdout.read() or "{}")
    until = time.perf_counter() + (0 if options.short else SETTLE_S)
    after = watcher.resident_mb(), watcher.descriptors()
    while time.perf_counter() < until:
        after = watcher.resident_mb(), watcher.descriptors()
        if after[0] <= before[0] * RSS_RATIO and after[1] <= before[1] + 2:
            break
        await asyncio.sleep(0.5)
    if not options.short:
        quiet.append(await watcher.during(seconds / 2, lambda: False))

    calm = [wait for period in quiet for wait in period["waits, ms"]]

    def ratio(share: float) -> float:
        return quantile(attacked["waits, ms"], share) / quantile(calm, share)

    return {
        "outcomes": outcomes, "quiet": quiet, "attacked": attacked,
        "chat p99, ratio": ratio(0.99), "chat p50, ratio": ratio(0.5),
        "resident MB": [before[0], max(p[0] for p in peak), after[0]],
        "descriptors": [before[1], max(p[1] for p in peak), after[1]],
        "alive": watcher.is_alive(),
    }  # fmt: skip


def faults(figures: Figures, *, refusals: bool) -> list[str]:
    """Faults that no machine excuses. With ``refusals``, chats may be refused by 429, as on a very busy machine."""
    found = [
        f"{count} answers: {end}"
        for end, count in figures["outcomes"].items()
        if not REFUSED.fullmatch(end) and end not in HARMLESS
    ]
    if not figures["outcomes"]:
        found.append("the attack did not run")
    if not figures["alive"]:
        found.append("the server has ended")
    for period in (*figures["quiet"], figures["attacked"]):
        found += [
            f"{count} failures: {failure}"
            for failure, count in period["failures"].items()
            if not (refusals and "HTTP 429" in failure)
        ]
    if not figures["attacked"]["answered"]:
        found.append("no chat was answered")
    return found


def excesses(figures: Figures) -> list[str]:
    """Figures above the limits."""
    found = []
    if figures["chat p99, ratio"] > P99_RATIO:
        found.append(f"chat p99 {figures['chat p99, ratio']:.1f} times that of quiet")
    if (worst := figures["attacked"]["worst /health, ms"]) > HEALTH_MS:
        found.append(f"/health took {worst:.0f} ms")
    before, _, after = figures["resident MB"]
    if after > before * RSS_RATIO:
        found.append(f"resident set {after:.0f} MB, before {before:.0f}")
    before, _, after = figures["descriptors"]
    if after > before + 2:
        found.append(f"{after} descriptors, before {before}")
    return found


async def warm_up(port: int, watcher: Watcher) -> None:
    """Trigger allocations of first use, which are not leaks: constraints, long prompts, embedding, all KV pages."""
    peer = Peer(port, address="127.0.0.1")
    draw = random.Random(1)
    for _ in range(PAGES[0]):
        prompt = [draw.randrange(1000, 40_000) for _ in range(PAGES[1])]
        await peer.ask(request("/v1/completions", {"model": LLM, "prompt": prompt, "max_tokens": 1}))
    names = (
        "4,000 choices, others each time", "regular expression of nested quantifiers", "4,096 messages of 3 kB",
        "embeddings of 2,048 texts of 7 kB", "streams abandoned after their first bytes",
    )  # fmt: skip
    for name in names:
        await (WIRE[name](peer, 5) if name in WIRE else peer.ask(_first(name)))
    for _ in range(3):
        await asyncio.gather(*(peer.ask(_first("4,000 choices, others each time")) for _ in range(2)))
    await watcher.during(5, lambda: False)


def _first(name: str) -> bytes:
    path, given, head = next(BODIES[name]())
    return request(path, given, head=head)


async def measure(options: argparse.Namespace, port: int, pid: int) -> tuple[dict[str, Figures], list[str]]:
    watcher, results, bad = Watcher(port, pid, 0.5 if options.short else RATE), {}, []
    if not options.short:
        await warm_up(port, watcher)
    names = [
        n for n in (*BODIES, *WIRE) if (n in SHORT if options.short else any(o in n for o in options.only))
    ]
    for number, name in enumerate(names, 1):
        for _ in range(1 if options.short else options.tries):
            figures = await one(watcher, name, port, options)
            found = faults(figures, refusals=options.short)
            above = [] if options.short else excesses(figures)
            results[name] = figures
            say(f"{number}/{len(names)} {row(name, figures)} {'; '.join(found + above)}")
            if found or not above:
                break
        bad += [f"{name}: {fault}" for fault in found + above]
        if not figures["alive"]:
            break
    return results, bad


def row(name: str, figures: Figures) -> str:
    outcomes = ", ".join(f"{count} × {end}" for end, count in sorted(figures["outcomes"].items()))
    quiet = max((period["worst /health, ms"] for period in figures["quiet"]), default=float("nan"))
    resident = " → ".join(f"{mb:.0f}" for mb in figures["resident MB"])
    descriptors = " → ".join(map(str, figures["descriptors"]))
    return (
        f"| {name} | {outcomes} | {figures['chat p50, ratio']:.2f} | {figures['chat p99, ratio']:.2f} "
        f"| {figures['attacked']['worst /health, ms']:.0f} ({quiet:.0f}) | {resident} | {descriptors} |"
    )


HEAD = (
    "| attack | answers | chat p50 ratio | chat p99 ratio | worst /health ms (quiet) | resident MB before, peak, after "
    "| descriptors |\n|---|---|---|---|---|---|---|"
)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument(
        "--tries", type=int, default=TRIES, help="maximum runs of an attack that exceeds the limits"
    )
    parser.add_argument("--only", nargs="*", default=[""], help="attacks whose names contain one of these")
    parser.add_argument("--nice", type=int, help="priority of the server and its clients; root may use -15")
    parser.add_argument("--attacker-nice", type=int, default=19, help="priority of the attacker")
    parser.add_argument("--short", action="store_true", help="five attacks, nothing measured")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--attack", help=argparse.SUPPRESS)  # this process is the attacker
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.attack:
        print(json.dumps(asyncio.run(attack(options.attack, options.port, options.seconds))))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server must not stay
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "sage_infer.yaml")
        config.write_text(json.dumps({"serve": {"models": MODELS, "port": port}}))
        sage = Path(sys.executable).with_name("sage")
        command = [str(sage), "--config", str(config), "infer", "serve"]
        log = Path(folder, "serve.log")
        with running(command, port, log, start_s=300, path="/health") as pid:
            if options.nice is not None:
                prefer(pid, options.nice)
                prefer(os.getpid(), options.nice)
            results, bad = asyncio.run(measure(options, port, pid))
    print("\n".join([HEAD, *(row(name, figures) for name, figures in results.items())]))
    if options.json:
        machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
        options.json.write_text(json.dumps({"machine": machine, "attacks": results}, indent=1) + "\n")
    for line in bad:
        say(f"error: {line}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

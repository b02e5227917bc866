"""A step, a burst and a night without requests: replicas that follow the load, beside fixed numbers.

    hatch run python benchmarks/scaling.py [--live | --simulated] [--json results.json]

Live: the control plane serves SmolLM2 on the embedded engine with 0 to 2 replicas in processes of their own, then with
2 fixed ones, under the same arrivals. One replica's rate is measured first; times of the policy are short. Simulated:
an hour on 0 to 8 instances, with the policy's usual times and starts of 30 s, beside 8 and 4 fixed ones.

A request is in time if its first token arrives within 1 s more than that of an idle replica (live) or of its prompt
alone (simulated). ``ready`` is the share outside of starts. ``changes`` are decisions about
the number of replicas.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
from sage_infer import SamplingParams, resolve_model
from sage_llm import ControlPlaneManager, LocalExecutor, ServedModel
from sage_llm.policies import order, placement
from sage_llm.replicas.local import SERVER
from sage_llm.scaling.settings import Autoscale, parse_autoscale
from sage_llm.simulator import Cluster, EngineModel, open_trace, simulate
from sage_llm.types import Step

LLM = "smollm2-135m"
WORDS = ["river", "market", "engine", "paper", "music", "winter", "garden", "signal", "bridge", "cloud"]
BATCH, TOKENS, SLO_S = 4, 24, 1.0
LIVE = "0:2,interval_s=0.25,up_s=1,down_s=6,idle_s=6,smooth_s=2,ttft_s=0.7"
PHASES = (("calm", 10.0, 0.3), ("step", 20.0, 1.4), ("after", 14.0, 0.3))  # seconds, and load of one replica
BURST = 6
ENGINE = EngineModel(step=Step(0.012, 1 / 5000, 1e-4, 4e-8))  # 5,000 prompt tokens per second
SIMULATED = "0:8"
COLUMNS = ("", "requests", "in time", "ready", "TTFT p50", "p99", "hours", "changes", "at zero")


# --- live


def model(bounds: Autoscale | None, replicas: int) -> ServedModel:
    return ServedModel(
        descriptor=resolve_model(LLM),
        backend="openvino",
        options={"kv_cache_gb": 0.25, "max_batch_size": BATCH, "threads": 1, "prefix_caching": False},
        replicas=replicas,
        server=SERVER,
        autoscale=bounds,
    )


async def ask(plane: ControlPlaneManager, number: int) -> float:
    """Send a request, read its answer and return the time to its first token."""
    words = " ".join(random.Random(number).choices(WORDS, k=20))
    params = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
    begun, first = time.monotonic(), 0.0
    async with await plane.chat([{"role": "user", "content": words}], params, LLM) as stream:
        async for _ in stream:
            first = first or time.monotonic() - begun
    return first


async def rate_of_one(plane: ControlPlaneManager) -> float:
    """Requests per second of one replica with a full batch."""
    left = list(range(8 * BATCH))

    async def client() -> None:
        while left:
            await ask(plane, left.pop())

    begun = time.monotonic()
    await asyncio.gather(*(client() for _ in range(BATCH)))
    return 8 * BATCH / (time.monotonic() - begun)


def arrivals(rate: float) -> Iterator[tuple[float, str]]:
    """Times of the requests, and their phases; a burst comes in the middle of the last one."""
    numbers, start = random.Random(1), 0.0
    for name, seconds, load in PHASES:
        now = start + numbers.expovariate(rate * load)
        while now < start + seconds:
            yield now, name
            now += numbers.expovariate(rate * load)
        start += seconds
    for _ in range(BURST):
        yield start - 6.0, "burst"


async def live(
    bounds: Autoscale | None, fixed: int, rate: float, alone: float, folder: Path
) -> dict[str, Any]:
    """Send the planned arrivals to a control plane of its own, then wait for the night to pass."""
    plane = ControlPlaneManager([model(bounds, 1 if bounds else fixed)], LocalExecutor(folder=folder))
    await plane.start()
    seen: list[tuple[str, float, bool]] = []
    found: dict[str, Any] = {"load_1m": os.getloadavg()[0]}

    def scaling() -> dict[str, Any]:
        return plane.cluster()["scaling"][0] if bounds else {"starting": 0, "actual": fixed, "desired": fixed}

    async def one(number: int, phase: str) -> None:
        state = scaling()
        is_ready = not state["starting"] and state["actual"] >= state["desired"] > 0
        seen.append((phase, await ask(plane, number), is_ready))

    try:
        begun, tasks = time.monotonic(), []
        for number, (at, phase) in enumerate(sorted(arrivals(rate))):
            await asyncio.sleep(max(begun + at - time.monotonic(), 0.0))
            tasks.append(asyncio.ensure_future(one(number, phase)))
        await asyncio.gather(*tasks)
        day_s = time.monotonic() - begun
        if bounds is not None:
            rested = time.monotonic()
            await asleep(plane)
            found["to_zero_s"] = time.monotonic() - rested
            await one(0, "morning")
            await asleep(plane)
        row = scaling()
        found |= {
            "hours": row["replica_hours"] if bounds else fixed * (time.monotonic() - begun) / 3600,
            "day_s": day_s,
            "events": row.get("events", []),
            "failed": plane.dispatcher.ends["failed"],
            "at_end": len(plane.fleet.of(LLM)),
        }
    finally:
        await plane.close()
    for name in ("all", *dict.fromkeys(phase for phase, _, _ in seen)):
        own = [(ttft, is_ready) for phase, ttft, is_ready in seen if name in ("all", phase)]
        ready = [ttft for ttft, is_ready in own if is_ready]
        found[name] = {
            "requests": len(own),
            "in_time": share([ttft for ttft, _ in own], alone + SLO_S),
            "ready": share(ready, alone + SLO_S),
            "ttft_p50": statistics.median(ttft for ttft, _ in own),
            "ttft_p99": sorted(ttft for ttft, _ in own)[int(0.99 * len(own))],
        }
    return found


async def asleep(plane: ControlPlaneManager) -> None:
    """Wait until no replica runs."""
    while plane.fleet.of(LLM):  # noqa: ASYNC110 - the fleet has no event
        await asyncio.sleep(0.05)


def share(values: list[float], limit: float) -> float | None:
    return sum(value <= limit for value in values) / len(values) if values else None


async def all_live() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plane = ControlPlaneManager([model(None, 1)], LocalExecutor(folder=folder))
        await plane.start()
        try:
            await rate_of_one(plane)  # warms up
            rate = await rate_of_one(plane)
            alone = statistics.median([await ask(plane, number) for number in range(7)])
        finally:
            await plane.close()
        print(
            f"one replica: {rate:.1f} requests/s, first token after {alone:.2f} s",
            file=sys.stderr,
            flush=True,
        )
        scaled = await live(parse_autoscale(f"{LIVE},requests={BATCH}"), 0, rate, alone, folder)
        fixed = await live(None, 2, rate, alone, folder)
    for name in ("calm", "step", "after", "burst", "morning"):
        print_row(f"  {name}", scaled[name])
    print_row("0:2 replicas", scaled["all"], scaled)
    print_row("2 replicas", fixed["all"], fixed)
    for event in scaled["events"]:
        print(f"    {event['kind']}: {event['text']}")
    return {"rate": rate, "alone_s": alone, "scaled": scaled, "fixed": fixed}


# --- simulated


def write_trace(file: Path, kind: str) -> None:
    """A trace of an hour: a step from 0.9 to 3.5 instances' work, bursts of a minute, or a night."""
    numbers = random.Random(kind)
    rates = {
        "step": lambda at: 2.5 if at < 1200 or at > 2600 else 10.0,
        "burst": lambda at: 10.0 if at % 900 > 840 else 2.5,
        "night": lambda at: 0.0 if 1200 < at < 2700 else 5.0,
    }
    with file.open("w") as out:
        at = 0.0
        while at < 3600:
            rate = rates[kind](at)
            at += numbers.expovariate(rate) if rate else 1.0
            if rate:
                row = {
                    "timestamp": round(at * 1000), "input_length": numbers.randint(500, 3000),
                    "output_length": numbers.randint(50, 300), "hash_ids": [],
                }  # fmt: skip
                out.write(json.dumps(row) + "\n")


def all_simulated() -> dict[str, Any]:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("step", "burst", "night"):
            file = Path(folder) / f"{kind}.jsonl"
            write_trace(file, kind)
            trace, cluster = open_trace(file), Cluster(instances=8, model=ENGINE)
            scaled = attrs.evolve(cluster, autoscale=parse_autoscale(SIMULATED))
            for name, one in (
                ("0:8 instances", scaled), ("8 instances", cluster),
                ("4 instances", attrs.evolve(cluster, instances=4)),
            ):  # fmt: skip
                result = simulate(trace, one, placement(), order())
                row = {
                    "requests": result.requests, "in_time": result.slo, "ready": result.slo_ready,
                    "ttft_p50": result.ttft_s.p50 if result.ttft_s else 0.0,
                    "ttft_p99": result.ttft_s.p99 if result.ttft_s else 0.0,
                }  # fmt: skip
                whole = {
                    "hours": result.instance_hours,
                    "events": [attrs.asdict(change) for change in result.changes],
                    "at_end": result.changes[-1].instances if result.changes else one.instances,
                }
                print_row(f"{kind}: {name}", row, whole)
                for change in result.changes:
                    print(f"    {change.at:,.0f} s: {change.instances}: {change.reason}")
                found[f"{kind}, {name}"] = {**row, **whole}
    return found


# --- output


def print_row(name: str, row: dict[str, Any], whole: dict[str, Any] | None = None) -> None:
    cells = [
        name, str(row["requests"]), *("-" if row[key] is None else f"{row[key]:.1%}" for key in ("in_time", "ready")),
        f"{row['ttft_p50']:.2f} s", f"{row['ttft_p99']:.2f} s",
    ]  # fmt: skip
    if whole is not None:
        changes = sum(event.get("kind", "up") in ("up", "down") for event in whole["events"])
        cells += [f"{whole['hours']:.3f}", str(changes), "yes" if whole["at_end"] == 0 else "no"]
    print_cells(cells)


def print_cells(cells: list[str]) -> None:
    print("".join(f"{cell:<24}" if at == 0 else f"{cell:>10}" for at, cell in enumerate(cells)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--live", action="store_true", help="only real replicas")
    parser.add_argument("--simulated", action="store_true", help="only simulated instances")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    given = parser.parse_args()
    found: dict[str, Any] = {}
    print_cells(list(COLUMNS))
    if not given.live:
        found["simulated"] = all_simulated()
    if not given.simulated:
        found["live"] = asyncio.run(all_live())
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()

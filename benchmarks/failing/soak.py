"""Kills every twenty seconds under sixteen closed loops: nothing may be lost, and nothing may stay behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from failing.cluster import Plane
from failing.streams import Stream, Streams, body, differences, read

__all__ = ["soak"]

EVERY_S = 20.0
TOKENS = 48
SLACK = {"descriptors": 8, "tasks": 4, "files of the run folder": 0, "shared memory": 0, "processes": 0}
"""How much more of each may be there at the end; connections of clients that have just ended take a moment."""


def sample(plane: Plane, run: Path) -> dict[str, float]:
    """What the control plane and its replicas hold."""
    with urllib.request.urlopen(f"{plane.url}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    tasks = re.search(r"^sage_infer_event_loop_tasks (\S+)", text, re.MULTILINE)
    assert tasks is not None
    pid = plane.server.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return {
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "tasks": float(tasks[1]),
        "files of the run folder": len(list(run.iterdir())),
        "shared memory": len(os.listdir("/dev/shm")),
        "processes": len(children),
        "resident MB": resident,
    }


async def settled(plane: Plane, run: Path) -> dict[str, float]:
    """A sample while nothing runs."""
    await plane.open()
    found: list[dict[str, float]] = []
    for _ in range(8):
        await asyncio.sleep(0.5)
        found.append(await asyncio.to_thread(sample, plane, run))
    return {name: min(one[name] for one in found) for name in found[0]}


async def _soak(plane: Plane, run: Path, minutes: float) -> dict[str, Any]:
    await plane.ready()
    await Streams(plane.url, 16, TOKENS).end()
    reference = await Streams(plane.url, 16, TOKENS).end()
    before = await settled(plane, run)
    until = time.monotonic() + 60 * minutes
    seen: list[Stream] = []

    async def loop(number: int) -> None:
        while time.monotonic() < until:
            stream = Stream(number)
            seen.append(await read(plane.url, stream, body(number, TOKENS)))

    kills = 0
    clients = [asyncio.ensure_future(loop(number)) for number in range(len(reference))]
    while time.monotonic() + EVERY_S < until:
        await asyncio.sleep(EVERY_S)
        await plane.open()  # on a busy machine, a restart takes longer than that
        pids = sorted((await asyncio.to_thread(plane.pids)).items())
        if pids:
            os.kill(pids[kills % len(pids)][1], signal.SIGKILL)
            kills += 1
            print(f"kill {kills}, {len(seen)} answers", file=sys.stderr, flush=True)
    await asyncio.gather(*clients)
    problems = differences(seen, reference)
    status = await asyncio.to_thread(plane.status)
    after = await settled(plane, run)
    return {
        "minutes": minutes, "kills": kills, "answers": len(seen), "lost or different": len(problems),
        "problems": dict(Counter(problem.partition(": ")[2] for problem in problems).most_common(10)),
        "gap max, s": max(stream.gap() for stream in seen),
        "requests": status["requests"], "before": before, "after": after, "load": os.getloadavg()[0],
        "leaks": [name for name, most in SLACK.items() if after[name] > before[name] + most],
    }  # fmt: skip


def soak(minutes: float, results: Path | None) -> int:
    """Run the soak, and print what it found. Returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="sage-") as folder:
        run = Path(folder, "run")
        os.environ["SAGE_LLM_RUN_FOLDER"] = str(run)
        plane = Plane(Path(folder))
        try:
            figures = asyncio.run(_soak(plane, run, minutes))
        finally:
            plane.close()
    for name, value in figures.items():
        print(f"{name}: {value}")
    if results:
        results.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if figures["lost or different"] or figures["leaks"] else 0

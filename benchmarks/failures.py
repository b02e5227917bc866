"""Failures under sixteen streams: what clients of `sage llm serve` see, and how long it takes.

    hatch run python benchmarks/failures.py [--rounds 20] [--within 240] [--json failures.json] [--only kill,stop]
    hatch run python benchmarks/failures.py --soak 30

Real servers over HTTP with the embedded engine and SmolLM2: greedy and seeded streams in turns, each compared with an
undisturbed run in text, usage and finish reason. With --json, finished rounds are kept in the file and a later
call adds the rest. `network` needs root and network namespaces, and `router …` needs
vllm-router (--router PROGRAM, or it is installed into an environment below the user's cache folder). `vllm kill` joins
two vLLM servers on CPUs (--vllm PYTHON), with greedy streams only. All are left out where this is missing. Exits with
1 if a stream failed or differs where the control plane promises that none does.

--soak MINUTES kills a replica every 20 s under sixteen closed loops instead; no request may be lost, and descriptors,
tasks, sockets and shared memory may not grow.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from failing.cluster import Namespaces, Plane, Router, Servers, VLLMServers
from failing.faults import FAULTS, SHAPES, SHORT, Round
from failing.soak import soak
from failing.streams import Stream, Streams, differences

HERE = Path(__file__).parent
PROMISED = (*FAULTS["children"], "network", "poison", "vllm kill")


@contextlib.asynccontextmanager
async def cluster(kind: str, folder: Path, options: argparse.Namespace) -> AsyncIterator[Any]:
    """The servers that a kind of fault needs, once they are ready."""
    made: list[Any] = []
    try:
        backend = "crashing-openvino" if kind.endswith("poison") else "openvino"
        if kind == "vllm":
            made.append(VLLMServers(folder, options.vllm))
        elif kind.endswith("network"):
            made.append(Namespaces(folder))
        elif kind.startswith("router"):
            made.append(Servers(folder, backend))
        if made:
            await made[0].ready()
        if kind.startswith("router"):
            made.append(Router(folder, options.router, made[0]))
        else:
            made.append(Plane(folder, backend, made[0] if made else None))
        await made[-1].ready()
        yield made[-1]
    finally:
        for one in reversed(made):
            one.close()


def result_of(at: Round, reference: Sequence[Stream]) -> dict[str, Any]:
    problems = differences(at.streams, reference)
    problems += [f"extra: {stream.error}" for stream in at.extra if stream.error]
    gaps = [stream.gap(at.at) for stream in at.streams]
    restores = [move["restore_s"] for _, move in at.moves]
    others = [stream.gap(at.at) - move["restore_s"] for stream, move in at.moves]
    return {
        "streams": len(at.streams), "equal": len(at.streams) - sum(p.startswith("stream") for p in problems),
        "errors": sum(bool(stream.error) for stream in (*at.streams, *at.extra)),
        "ended with their server": len(at.lost),
        "gap p50, s": statistics.median(gaps) if gaps else None, "gap max, s": max(gaps, default=None),
        "moves": len(at.moves), "prefill p50, s": statistics.median(restores) if restores else None,
        "prefill max, s": max(restores, default=None), "gap of moved less prefill, s": max(others, default=None),
        **{f"{name}, s": value for name, value in at.figures.items()},
        "problems": problems[:4], "notes": at.notes, "load": os.getloadavg()[0],
    }  # fmt: skip


async def measure(options: argparse.Namespace, kept: dict[str, Any], save: Any) -> None:
    done = sum(map(len, kept["rounds"].values()))
    draw, until = random.Random(options.seed + done), time.monotonic() + options.within
    for kind, faults in FAULTS.items():
        missing = {n: options.rounds - len(kept["rounds"].get(n, ())) for n in faults if n in options.only}
        if not any(count > 0 for count in missing.values()) or time.monotonic() > until:
            continue
        with tempfile.TemporaryDirectory(prefix="sage-") as folder:
            os.environ["SAGE_LLM_RUN_FOLDER"] = folder + "/run"
            async with cluster(kind, Path(folder), options) as made:
                references: dict[tuple[int, int], list[Stream]] = {}
                for number in range(max(missing.values())):
                    for name, fault in faults.items():
                        if number >= missing.get(name, 0) or time.monotonic() > until:
                            continue
                        shape = SHAPES.get(fault, (16, SHORT))
                        if shape not in references:
                            for _ in range(1 if references else 2):  # the first time, it also warms up
                                references[shape] = await Streams(made.url, *shape, greedy=made.greedy).end()
                            kept["undisturbed"][f"{kind} {shape[0]}x{shape[1]}"] = undisturbed(
                                references[shape]
                            )
                        at = Round(made, draw)
                        try:
                            await fault(at)
                        except (TimeoutError, KeyError) as error:
                            at.notes.append(f"{type(error).__name__}: {error}")
                        result = result_of(at, references[shape])
                        kept["rounds"].setdefault(name, []).append(result)
                        save()
                        print(name, json.dumps(result), file=sys.stderr, flush=True)


def undisturbed(streams: Sequence[Stream]) -> dict[str, Any]:
    failed = [stream.error for stream in streams if stream.error]
    if failed:
        raise SystemExit(f"an undisturbed stream failed: {failed[0]}")
    gaps = [stream.gap() for stream in streams]
    return {
        "gap p50, s": statistics.median(gaps), "gap max, s": max(gaps),
        "first token max, s": max(stream.ttft for stream in streams), "load": os.getloadavg()[0],
    }  # fmt: skip


def table(kept: dict[str, Any]) -> str:
    lines = [f"undisturbed {shape}: {rounded(figures)}" for shape, figures in kept["undisturbed"].items()]
    for name, rounds in kept["rounds"].items():
        total = sum(r["streams"] for r in rounds)
        equal, errors = sum(r["equal"] for r in rounds), sum(r["errors"] for r in rounds)
        figures = {}
        for key in dict.fromkeys(k for r in rounds for k in r if k.endswith(", s")):
            values = [r[key] for r in rounds if r.get(key) is not None]
            figures[f"{key[:-3]} p50/max"] = (
                f"{statistics.median(values):.2f}/{max(values):.2f}" if values else "-"
            )
        loads = [r["load"] for r in rounds]
        lines.append(
            f"{name}: {len(rounds)} rounds, {errors} errors, {equal} of {total} equal; "
            + ", ".join(f"{k} {v} s" for k, v in figures.items())
            + f"; load {min(loads):.0f} to {max(loads):.0f}"
        )
    return "\n".join(lines)


def rounded(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in figures.items())


def router_program() -> str | None:
    """vllm-router, installed if needed; None if it cannot be."""
    with contextlib.suppress(Exception):
        from gateway import environment

        return str(environment("vllm-router", "vllm-router") / "vllm-router")
    return None


def register_plugin(folder: Path) -> None:
    """Make the backend that crashes visible to servers of this script."""
    info = folder / "failing-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: failing\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sage_infer.backends]\nfailing = failing.poison_plugin\n")
    paths = [str(folder), str(HERE), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)


def main() -> int:
    names = [name for faults in FAULTS.values() for name in faults]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--within", type=float, default=float("inf"), metavar="SECONDS", help="begin no round later"
    )
    parser.add_argument("--only", default=",".join(names), help="faults, separated by commas")
    parser.add_argument("--seed", type=int, default=1, help="of the moments and the replicas")
    parser.add_argument("--router", help="the program vllm-router")
    parser.add_argument("--vllm", help="the Python of an environment with vLLM")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="soak instead")
    parser.add_argument("--json", type=Path, help="keep the rounds here")
    options = parser.parse_args()
    if options.soak is not None:
        return soak(options.soak, options.json)
    options.only = options.only.split(",")
    if unknown := sorted(set(options.only) - set(names)):
        parser.error(f"--only names {unknown[0]!r}; faults: {', '.join(names)}")
    if os.getuid() != 0:
        options.only = [name for name in options.only if "network" not in name]
    if options.vllm is None:
        options.only = [name for name in options.only if not name.startswith("vllm")]
    if any(name.startswith("router") for name in options.only):
        options.router = options.router or router_program()
        if options.router is None:
            options.only = [name for name in options.only if not name.startswith("router")]
    kept: dict[str, Any] = {"undisturbed": {}, "rounds": {}}
    if options.json and options.json.exists():
        kept = json.loads(options.json.read_text())

    def save() -> None:
        if options.json:
            options.json.write_text(json.dumps(kept, indent=1) + "\n")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through ``finally``, so that no server is left
    with tempfile.TemporaryDirectory(prefix="sage-") as folder:
        register_plugin(Path(folder))
        try:
            asyncio.run(measure(options, kept, save))
        finally:
            print(table(kept))
    broken = [
        name
        for name in PROMISED
        if any(
            r["errors"] or r["equal"] != r["streams"] or r["problems"] for r in kept["rounds"].get(name, ())
        )
    ]
    if broken:
        print(f"streams failed or differ: {', '.join(broken)}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

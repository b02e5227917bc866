"""Cost of a placement decision of the control plane, and memory of its KV index.

    python benchmarks/scheduler.py [--policy kv-cost] [--instances 8 1000] [--rounds 3] [--json results.json]

Decisions: requests of sessions that grow turn by turn (or of a Mooncake trace, ``--trace``) are placed on instances
whose blocks fill an index of 128 k keys. Two figures, in CPU time of this process: ``place``, the policy alone, and
``path``, all that the control plane does for a request besides: snapshot, receipt, accounting of the dispatch, of the
first token and of the end. The least of the rounds counts for the mean; p99 is that of single decisions.

Memory: growth of the resident size by one million keys of an instance with keys of its own, which the index maps.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
from sage_infer.contracts.kv_events import KVEvents, KVSnapshot, KVStored
from sage_infer.schemas import CapabilityDescriptor, InstanceDescriptor, InstanceReport, KVCacheSchema
from sage_llm.index import KVIndex
from sage_llm.policies import POLICIES, placement
from sage_llm.policies.base import PlacementPolicy
from sage_llm.receipts import Receipts
from sage_llm.registry import InstanceRegistry
from sage_llm.snapshot import SnapshotBuilder
from sage_llm.types import Decision, RequestView, Snapshot

MODEL, BLOCK = "bench", 32
KEYS = 128_000
REQUESTS = 4000
IN_FLIGHT = 8  # requests per instance
GOALS_US = {8: 15.0, 1000: 25.0}
GOAL_MB = 200.0


def descriptor(slot: int) -> InstanceDescriptor:
    schema = KVCacheSchema(
        dtype="fp16",
        page_size=BLOCK,
        num_layers=2,
        num_heads=2,
        head_dim=64,
        scale_dtype="fp32",
        layout="paged",
    )
    capability = CapabilityDescriptor(
        backend_name="bench",
        instance_type="general",
        hardware_backend="cpu",
        max_batch_size=256,
        max_sequence_length=131_072,
        supported_precisions=("fp16",),
        kv_schema=schema,
    )
    return InstanceDescriptor(
        instance_id=f"{MODEL}/{slot}",
        generation=1,
        model_ids=(MODEL,),
        capability=capability,
        host=f"host{slot}",
    )


def report(slot: int, seq: int) -> InstanceReport:
    return InstanceReport(
        instance_id=f"{MODEL}/{slot}",
        generation=1,
        seq=seq,
        taken_at=float(seq),
        state="ready",
        running=0,
        waiting=0,
        kv_blocks_total=100_000,
        kv_blocks_free=100_000,
    )


def sessions(count: int) -> Iterator[tuple[str, list[int], int]]:
    """Session, token ids of a prompt and expected output: turns of many sessions, interleaved."""
    rng = random.Random(7)
    live: list[list[int]] = []
    system = [rng.randrange(50_000) for _ in range(512)]
    for number in range(count):
        if live and rng.random() < 0.5:
            index = rng.randrange(len(live))
        else:
            live.append(list(system))
            index = len(live) - 1
        added = min(int(rng.lognormvariate(7.5, 1.0)), 30_000)
        live[index] += [rng.randrange(50_000) for _ in range(added)]
        yield f"s{number if index >= len(live) else index}", live[index], int(rng.lognormvariate(5.5, 0.8))
        if len(live[index]) > 60_000:
            live[index] = list(system)


def traced(path: Path, count: int) -> Iterator[tuple[str, list[int], int]]:
    """The same from a Mooncake trace: its hashes of 512 tokens become 16 blocks each."""
    data = path.read_bytes()
    text = gzip.decompress(data) if path.suffix == ".gz" else data
    for line in text.splitlines()[:count]:
        row = json.loads(line)
        tokens = [h * 512 + part for h in row["hash_ids"] for part in range(512)]
        yield "", tokens[: row["input_length"]], row["output_length"]


class Cluster:
    """Instances, an index of what they hold, and the requests to place."""

    def __init__(self, count: int, trace: Path | None) -> None:
        self.count = count
        self.registry, self.index = InstanceRegistry(), KVIndex()
        self.builder = SnapshotBuilder(self.registry, self.index.device, kv_valid=self.index.valid)
        for slot in range(count):
            self.registry.add(descriptor(slot), 0.0, "ready")
            self.index.add(slot, 1, MODEL, BLOCK, key_space="be", events=True)
            self.index.apply(slot, KVSnapshot(generation=1, seq=0))
            self.builder.report(report(slot, 1), 1.0)
        self.seqs = [0] * count
        self.requests: list[RequestView] = []
        rng = random.Random(3)
        homes: dict[int, int] = {}
        for session, tokens, output in traced(trace, REQUESTS) if trace else sessions(REQUESTS):
            keys = self.index.keys(MODEL, tokens)
            number = len(self.requests)
            self.requests.append(
                RequestView(
                    f"r{number}",
                    MODEL,
                    prompt_tokens=len(tokens),
                    max_tokens=output,
                    out_q50=float(output),
                    keys=keys,
                    block=BLOCK,
                    session=session,
                    tenant=f"t{number % 7}",
                )
            )
            # Most sessions stay at one home; the others were moved by load.
            slot = rng.randrange(count)
            if keys and rng.random() < 0.8:
                slot = homes.setdefault(keys[min(40, len(keys) - 1)], slot)
            if len(self.index) < KEYS:
                self.store(slot, tokens)

    def store(self, slot: int, tokens: list[int]) -> None:
        """An event of an instance that has computed a prompt."""
        full = len(tokens) // BLOCK * BLOCK
        keys = tuple(k.to_bytes(16, "little") for k in self.index.keys(MODEL, tokens))
        self.seqs[slot] += 1
        stored = KVStored(parent=None, keys=keys, token_ids=tuple(tokens[:full]))
        self.index.events(slot, KVEvents(generation=1, seq=self.seqs[slot], stored=(stored,)))

    def run(self, policy: PlacementPolicy, turn: int) -> tuple[float, float, list[float]]:
        """CPU time in µs of a path, of a decision, and of each decision."""
        receipts, open_requests = Receipts(), list[RequestView]()
        pairs: list[tuple[RequestView, Snapshot]] = []
        now, clock = 100.0 * (turn + 1), time.process_time_ns
        limit = min(IN_FLIGHT * self.count, 1000)
        started = clock()
        for number, request in enumerate(self.requests):
            now += 0.001
            wanted = attrs.evolve(request, id=f"{request.id}.{turn}")
            snapshot = self.builder.snapshot(now)
            decision = receipts.place(policy, wanted, snapshot)
            if decision.kind == "dispatch":
                self.builder.dispatched(wanted, decision, now)
                self.index.touch(wanted.keys)
                open_requests.append(wanted)
            if len(open_requests) > limit:
                self.builder.first_token(open_requests[-limit // 2].id)
                self.builder.ended(open_requests.pop(0))
            if number % 4 == 0:
                pairs.append((wanted, snapshot))
        path_us = (clock() - started) / len(self.requests) / 1e3
        evolve = clock()
        for request in self.requests:
            attrs.evolve(request, id=f"{request.id}.{turn}")
        path_us -= (clock() - evolve) / len(self.requests) / 1e3
        for request in open_requests:
            self.builder.ended(request)
        started = clock()
        for wanted, snapshot in pairs:
            policy.place(wanted, snapshot)
        place_us = (clock() - started) / len(pairs) / 1e3
        each = []
        for wanted, snapshot in pairs:
            started = time.thread_time_ns()
            policy.place(wanted, snapshot)
            each.append((time.thread_time_ns() - started) / 1e3)
        return path_us, place_us, each


def check(decisions: list[Decision]) -> None:
    if not all(decision.kind == "dispatch" for decision in decisions):
        raise SystemExit("a request was not dispatched; the figures would be those of an idle policy")


def decisions(counts: list[int], policy: str, rounds: int, trace: Path | None) -> list[dict[str, Any]]:
    rows = []
    for count in counts:
        cluster = Cluster(count, trace)
        chosen = placement(policy)
        check([chosen.place(r, cluster.builder.snapshot(50.0)) for r in cluster.requests[:50]])
        runs = [cluster.run(chosen, turn) for turn in range(rounds)]
        each = sorted(value for _, _, values in runs for value in values)
        rows.append(
            {
                "policy": policy,
                "instances": count,
                "keys": len(cluster.index),
                "blocks_per_prompt": round(
                    sum(len(r.keys) for r in cluster.requests) / len(cluster.requests)
                ),
                "place_us": round(min(place for _, place, _ in runs), 1),
                "place_p99_us": round(each[int(len(each) * 0.99)], 1),
                "path_us": round(min(path for path, _, _ in runs), 1),
                "goal_us": GOALS_US.get(count),
            }
        )
    return rows


def resident() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory(keys: int) -> dict[str, Any]:
    """Resident bytes of an index of so many keys, in this process."""
    index, per_event = KVIndex(max_bytes=1 << 32), 64
    index.add(0, 1, MODEL, 1, key_space=None, events=True)
    index.apply(0, KVSnapshot(generation=1, seq=0))
    gc.collect()
    before, pause = resident(), 0.0
    for seq in range(1, keys // per_event + 1):
        tokens = tuple(range(seq * per_event, (seq + 1) * per_event))
        engine = tuple(random.getrandbits(128).to_bytes(16, "little") for _ in tokens)
        event = KVEvents(
            generation=1, seq=seq, stored=(KVStored(parent=None, keys=engine, token_ids=tokens),)
        )
        started = time.thread_time()
        index.events(0, event)
        pause = max(pause, time.thread_time() - started)
        del event, engine
    gc.collect()
    return {
        "keys": len(index),
        "resident_mb": round((resident() - before) / 1e6, 1),
        "bound_mb": round(index.used_bytes / 1e6, 1),
        "goal_mb": GOAL_MB,
        "longest_event_ms": round(pause * 1e3, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", nargs="*", choices=list(POLICIES["placement"]), default=["kv-cost"])
    parser.add_argument("--instances", type=int, nargs="*", default=[8, 1000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--trace", type=Path, help="Mooncake trace (.jsonl or .jsonl.gz) instead of made-up sessions"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of is not None:
        print(json.dumps(memory(arguments.memory_of)))
        return
    rows = [
        row
        for policy in arguments.policy
        for row in decisions(arguments.instances, policy, arguments.rounds, arguments.trace)
    ]
    print(
        f"{'policy':14} {'instances':>9} {'keys':>8} {'blocks':>6} {'place µs':>9} {'p99':>6} {'path µs':>8} "
        f"{'goal':>5}"
    )
    for row in rows:
        print(
            f"{row['policy']:14} {row['instances']:9} {row['keys']:8} {row['blocks_per_prompt']:6} {row['place_us']:9} "
            f"{row['place_p99_us']:6} {row['path_us']:8} {row['goal_us'] or '':>5}"
        )
    child = subprocess.run(
        [sys.executable, __file__, "--memory-of", "1000000"], capture_output=True, text=True, check=True
    )
    found = json.loads(child.stdout)
    print(
        f"\nindex of {found['keys']:,} keys: {found['resident_mb']} MB resident, counted as {found['bound_mb']} MB "
        f"(goal {found['goal_mb']:.0f}); longest event {found['longest_event_ms']} ms"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps({"decisions": rows, "index": found}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()

"""The KV transports beside memcpy and iperf3, alternating in one run.

    python benchmarks/transport.py [--rounds 8] [--megabytes 256] [--json FILE]

Shared memory: chunks of 4 MiB from one endpoint's segment to another's, checksums included, beside one thread's
``memcpy`` of as many bytes. TCP: the same chunks over loopback, beside ``iperf3`` with one stream (Debian's package
iperf3). Each side has moved the bytes once before the first round, so that no page is new. Ratios are taken per round.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import time
from pathlib import Path

from sage_infer.contracts import Transport
from sage_infer.schemas import (
    KVCacheSchema,
    KVChunk,
    KVLocation,
    TransportPlan,
    TransportSettings,
    TransportStep,
)
from sage_infer.sdk import checksum
from sage_infer_transport import LocalTransport, SharedMemoryEndpoint, TCPEndpoint, TCPTransport
from sage_infer_transport.endpoint import BaseEndpoint

CHUNK = 4 << 20


def chunks_of(data: bytearray) -> list[KVChunk]:
    schema = KVCacheSchema(
        dtype="int8", page_size=CHUNK, num_layers=1, num_heads=1, head_dim=1, scale_dtype="fp32"
    )
    return [
        KVChunk(
            chunk_id=f"{begin:032x}", request_id="bench", layer_start=0, layer_end=1, token_start=begin,
            token_end=begin + 1, kv_schema=schema, nbytes=CHUNK,
            checksum=checksum(memoryview(data)[begin : begin + CHUNK]),
        )
        for begin in range(0, len(data), CHUNK)
    ]  # fmt: skip


async def moved(transport: Transport, plan: TransportPlan) -> float:
    """GB/s of one plan."""
    report = await transport.execute(plan)
    assert report.ok, report.errors
    return report.moved_bytes / report.elapsed_s / 1e9


def copied(source: memoryview, target: memoryview) -> float:
    """GB/s of one thread's memcpy."""
    a, b = (ctypes.addressof(ctypes.c_char.from_buffer(view)) for view in (source, target))
    began = time.perf_counter()
    for begin in range(0, len(source), CHUNK):
        ctypes.memmove(b + begin, a + begin, CHUNK)
    return len(source) / (time.perf_counter() - began) / 1e9


def streamed(port: int, nbytes: int) -> float:
    """GB/s of iperf3 with one stream."""
    command = ["iperf3", "-c", "127.0.0.1", "-p", str(port), "-n", str(nbytes), "-J"]
    printed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return float(printed["end"]["sum_received"]["bits_per_second"]) / 8e9


async def main(arguments: argparse.Namespace) -> None:
    nbytes = arguments.megabytes << 20
    data = bytearray(os.urandom(nbytes))
    chunks = chunks_of(data)
    buffers = [memoryview(data)[begin : begin + CHUNK] for begin in range(0, nbytes, CHUNK)]
    source = SharedMemoryEndpoint(capacity_bytes=nbytes)
    ends: dict[str, BaseEndpoint] = {
        "shm": SharedMemoryEndpoint(capacity_bytes=nbytes),
        "tcp": TCPEndpoint(capacity_bytes=nbytes),
    }
    settings = TransportSettings.from_preset("high-bw")
    single = TransportSettings.from_preset("high-bw", max_in_flight=1)
    local, tcp = LocalTransport(settings=settings), TCPTransport(settings=single)
    places = source.publish(chunks, buffers)
    targets = {name: list(end.reserve(chunks)) for name, end in ends.items()}

    def plan(name: str, where: list[KVLocation]) -> TransportPlan:
        steps = zip(chunks, places, where, strict=True)
        return TransportPlan.from_steps(
            name, tuple(TransportStep(chunk=c, source=s, target=t, nbytes=c.nbytes) for c, s, t in steps)
        )

    def fresh() -> list[KVLocation]:
        ends["tcp"].withdraw(targets["tcp"])  # a room that has its bytes would receive nothing
        targets["tcp"] = list(ends["tcp"].reserve(chunks))
        return targets["tcp"]

    first, second = memoryview(bytearray(data)), memoryview(bytearray(nbytes))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(["iperf3", "-s", "-p", str(port)], stdout=subprocess.DEVNULL)  # noqa: ASYNC220
    pairs: dict[str, list[tuple[float, float]]] = {"shm / memcpy": [], "tcp / iperf3": []}
    try:
        for number in range(arguments.rounds + 1):
            ours = await moved(local, plan("shm", targets["shm"]))
            peer = copied(first, second)
            sent = await moved(tcp, plan("tcp", fresh()))
            stream = await asyncio.to_thread(streamed, port, nbytes)
            if number:  # the first one touches new pages
                pairs["shm / memcpy"].append((ours, peer))
                pairs["tcp / iperf3"].append((sent, stream))
                print(
                    f"round {number}: shm {ours:.2f}, memcpy {peer:.2f}, tcp {sent:.2f}, iperf3 {stream:.2f} GB/s"
                )
    finally:
        server.terminate()
        await local.close()
        await tcp.close()
        for end in (source, *ends.values()):
            end.close()
    found = {name: [a / b for a, b in values] for name, values in pairs.items()}
    print("\n| | ours, GB/s | ratio: median (min to max) |\n|---|---:|---|")
    for name, ratios in found.items():
        ours = statistics.median(a for a, _ in pairs[name])
        print(
            f"| {name} | {ours:.2f} | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    if arguments.json:
        result = {
            "cpu": platform.processor() or platform.machine(),
            "megabytes": arguments.megabytes,
            "pairs": pairs,
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--json", type=Path)
    if shutil.which("iperf3") is None:
        raise SystemExit("iperf3 is required: apt-get install iperf3")
    asyncio.run(main(parser.parse_args()))

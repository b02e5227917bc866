"""The KV transports beside memcpy and iperf3, alternating in one run.

    python benchmarks/transport.py [--rounds 8] [--megabytes 256] [--namespace] [--nixl] [--json FILE]

Shared memory: chunks of 4 MiB from one endpoint's segment to another's, checksums included, beside one thread's
``memcpy`` of as many bytes; also as CPU seconds, which other load on the machine changes less. TCP: the same chunks to
an endpoint of another process over loopback, beside ``iperf3`` with one stream (Debian's package iperf3): over one
connection, and as many as the preset ``high-bw`` opens. ``--namespace`` (root) repeats TCP through a network namespace,
and cuts its link for 3 seconds in the middle of a transfer. ``--nixl`` sends the chunks over NIXL, too, beside the
preset ``high-bw`` of TCP (wheel sage-infer-nixl, with a build of NIXL). Each side has moved the bytes once before the
first round, so that no page is new. Ratios are taken per round.
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
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from sage_infer.contracts import KVEndpoint, Transport
from sage_infer.plugins import open_transport
from sage_infer.schemas import (
    KVCacheSchema,
    KVChunk,
    KVLocation,
    TransportPlan,
    TransportReport,
    TransportSettings,
    TransportStep,
)
from sage_infer.sdk import checksum
from sage_infer_transport import LocalTransport, SharedMemoryEndpoint, TCPEndpoint, TCPTransport

CHUNK = 4 << 20
LINK = ("10.213.77.1", "10.213.77.2")
CUT_S = 3.0


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


def streamed(host: str, port: int, nbytes: int) -> float:
    """GB/s of iperf3 with one stream."""
    command = ["iperf3", "-c", host, "-p", str(port), "-n", str(nbytes), "-J"]
    printed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return float(printed["end"]["sum_received"]["bits_per_second"]) / 8e9


class Peer:
    """An endpoint and an iperf3 server in processes of their own, in a network namespace if it is named."""

    def __init__(self, host: str, chunks: int, namespace: str = "", *, nixl: bool = False) -> None:
        prefix = ["ip", "netns", "exec", namespace] if namespace else []
        self.host = host
        self._endpoint = subprocess.Popen(
            [*prefix, sys.executable, __file__, "--serve", host, "--chunks", str(chunks), *["--nixl"] * nixl],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._iperf = subprocess.Popen(
            [*prefix, "iperf3", "-s", "-p", str(self.port)], stdout=subprocess.DEVNULL
        )

    def reserve(self) -> list[KVLocation]:
        """New rooms: one that has its bytes would receive nothing."""
        assert self._endpoint.stdin is not None
        assert self._endpoint.stdout is not None
        self._endpoint.stdin.write("reserve\n")
        self._endpoint.stdin.flush()
        return [KVLocation(tier="remote", uri=uri) for uri in json.loads(self._endpoint.stdout.readline())]

    def close(self) -> None:
        self._iperf.terminate()
        self._endpoint.communicate("")


def serve(host: str, count: int, nixl: bool) -> None:
    """Serve rooms for a ``Peer``."""
    endpoint: KVEndpoint
    if nixl:
        from sage_infer_nixl import NIXLEndpoint

        endpoint = NIXLEndpoint(host=host, capacity_bytes=count * CHUNK)
    else:
        endpoint = TCPEndpoint(host=host, capacity_bytes=count * CHUNK)
    chunks = chunks_of(bytearray(CHUNK)) * count
    places: tuple[KVLocation, ...] = ()
    for _ in sys.stdin:
        endpoint.withdraw(places)
        places = endpoint.reserve(chunks)
        print(json.dumps([place.uri for place in places]), flush=True)
    endpoint.close()


@contextmanager
def namespace() -> Iterator[str]:
    """A network namespace behind a pair of virtual Ethernet devices."""
    name = f"sage-bench-{os.getpid()}"
    here, there = f"sb{os.getpid()}a", f"sb{os.getpid()}b"

    def ip(command: str) -> None:
        subprocess.run(["ip", *command.split()], check=True)

    ip(f"netns add {name}")
    try:
        ip(f"link add {here} type veth peer name {there} netns {name}")
        ip(f"addr add {LINK[0]}/30 dev {here}")
        ip(f"link set {here} up")
        ip(f"-n {name} addr add {LINK[1]}/30 dev {there}")
        ip(f"-n {name} link set {there} up")
        ip(f"-n {name} link set lo up")
        yield name
    finally:
        ip(f"netns del {name}")  # and both devices with it


class Link:
    """Transfers from shared memory to a peer."""

    def __init__(self, chunks: list[KVChunk], places: Sequence[KVLocation], peer: Peer) -> None:
        self.chunks, self.places, self.peer = chunks, places, peer

    def plan(self, name: str, where: Sequence[KVLocation] | None = None) -> TransportPlan:
        steps = zip(self.chunks, self.places, where or self.peer.reserve(), strict=True)
        return TransportPlan.from_steps(
            name, tuple(TransportStep(chunk=c, source=s, target=t, nbytes=c.nbytes) for c, s, t in steps)
        )

    async def interrupted(self, transport: Transport) -> TransportReport:
        """A transfer whose link is cut for ``CUT_S`` seconds after its first chunk."""
        device = f"sb{os.getpid()}a"
        arrived = asyncio.Event()
        running = asyncio.ensure_future(transport.execute(self.plan("cut"), on_step=lambda *_: arrived.set()))
        await arrived.wait()
        for state, pause in (("down", CUT_S), ("up", 0.0)):
            await asyncio.create_subprocess_exec("ip", "link", "set", device, state)
            await asyncio.sleep(pause)
        return await running


async def main(arguments: argparse.Namespace) -> None:
    nbytes = arguments.megabytes << 20
    data = bytearray(os.urandom(nbytes))
    chunks = chunks_of(data)
    buffers = [memoryview(data)[begin : begin + CHUNK] for begin in range(0, nbytes, CHUNK)]
    pairs: dict[str, list[tuple[float, float]]] = {}
    presets = {
        "one connection": TransportSettings.from_preset("high-bw", max_in_flight=1),
        "high-bw": TransportSettings.from_preset("high-bw"),
    }
    first, second = memoryview(bytearray(data)), memoryview(bytearray(nbytes))
    with ExitStack() as stack:
        source = stack.enter_context(closing(SharedMemoryEndpoint(capacity_bytes=nbytes)))
        near = stack.enter_context(closing(SharedMemoryEndpoint(capacity_bytes=nbytes)))
        places, rooms = source.publish(chunks, buffers), near.reserve(chunks)
        local = LocalTransport(settings=presets["high-bw"])
        transports = {name: TCPTransport(settings=settings) for name, settings in presets.items()}
        links = {
            "loopback": Link(chunks, places, stack.enter_context(closing(Peer("127.0.0.1", len(chunks)))))
        }
        if arguments.namespace:
            name = stack.enter_context(namespace())
            peer = stack.enter_context(closing(Peer(LINK[1], len(chunks), name)))
            links["namespace"] = Link(chunks, places, peer)
        nixl = None
        if arguments.nixl:
            peer = stack.enter_context(closing(Peer("127.0.0.1", len(chunks), nixl=True)))
            nixl = open_transport("nixl", settings=presets["high-bw"]), Link(chunks, places, peer)
        plan = links["loopback"].plan("shm", rooms)
        for number in range(arguments.rounds + 1):
            found: dict[str, tuple[float, float]] = {}
            cpu = time.process_time()
            ours = await moved(local, plan)
            cpu, between = time.process_time() - cpu, time.process_time()
            peer_gbs = copied(first, second)
            found["shm / memcpy"] = ours, peer_gbs
            between = time.process_time() - between
            found["shm / memcpy, CPU time"] = nbytes / cpu / 1e9, nbytes / between / 1e9
            for where, link in links.items():
                speeds = [await moved(t, link.plan(where)) for t in transports.values()]
                stream = await asyncio.to_thread(streamed, link.peer.host, link.peer.port, nbytes)
                for name, speed in zip(transports, speeds, strict=True):
                    found[f"tcp / iperf3, {where}, {name}"] = speed, stream
            if nixl is not None:
                tcp = found["tcp / iperf3, loopback, high-bw"][0]
                found["nixl / tcp, loopback, high-bw"] = await moved(nixl[0], nixl[1].plan("nixl")), tcp
            if number:  # the first one touches new pages
                for name, pair in found.items():
                    pairs.setdefault(name, []).append(pair)
                print(f"round {number}: " + "; ".join(f"{n} {a:.2f}/{b:.2f}" for n, (a, b) in found.items()))
        if arguments.namespace:
            report = await links["namespace"].interrupted(transports["high-bw"])
            assert report.ok, report.errors
            assert report.moved_bytes == nbytes, report
            print(f"link cut for {CUT_S:g} s: done after {report.elapsed_s:.1f} s, {report.retries} retries")
        for transport in (local, *transports.values()):
            await transport.close()
        if nixl is not None:
            await nixl[0].close()
    print("\n| | ours, GB/s | ratio: median (min to max) |\n|---|---:|---|")
    for name, values in pairs.items():
        ratios = [a / b for a, b in values]
        ours = statistics.median(a for a, _ in values)
        print(
            f"| {name} | {ours:.2f} | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    if arguments.json:
        result = {
            "cpu": platform.processor() or platform.machine(),
            "load": os.getloadavg()[0],
            "megabytes": arguments.megabytes,
            "pairs": pairs,
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--namespace", action="store_true")
    parser.add_argument("--nixl", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--chunks", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.chunks, options.nixl)
        raise SystemExit
    if shutil.which("iperf3") is None:
        raise SystemExit("iperf3 is required: apt-get install iperf3")
    asyncio.run(main(options))

"""Measure links with the transports themselves, one transport preset at a time."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from attrs import frozen
from sage_infer.contracts import Transport
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import (
    TRANSPORT_PRESETS,
    KVCacheSchema,
    KVChunk,
    KVLocation,
    TransportPlan,
    TransportSettings,
    TransportStep,
)
from sage_infer.sdk import checksum

from sage_infer_transport.addresses import TCPAddress, parse
from sage_infer_transport.local import LocalTransport
from sage_infer_transport.shared_memory import SharedMemoryEndpoint
from sage_infer_transport.tcp.endpoint import TCPEndpoint
from sage_infer_transport.tcp.transport import TCPTransport

__all__ = ["LINKS", "Measurement", "Offer", "measure", "recommend"]

LINKS = ("shm", "file", "tcp")
E = TypeVar("E", SharedMemoryEndpoint, TCPEndpoint)
Progress = Callable[[str, float | None], None]


@frozen
class Measurement:
    """One preset on one link, over several rounds.

    Attributes:
        link: shm, file, tcp or an address.
        preset: name of the transport preset.
        message_bytes: size of a chunk in bytes.
        in_flight: chunks that travel at the same time.
        gbs: bandwidth of each round in GB/s, checksums included.
        first_s: seconds until the first chunk had arrived, in each round.
    """

    link: str
    preset: str
    message_bytes: int
    in_flight: int
    gbs: tuple[float, ...]
    first_s: tuple[float, ...]

    @property
    def median_gbs(self) -> float:
        return statistics.median(self.gbs)

    @property
    def median_first_s(self) -> float:
        return statistics.median(self.first_s)


class Offer:
    """Rooms of an endpoint for a probe from another host, and a directory of them.

    Args:
        endpoint: endpoint with room for ``nbytes`` per preset.
        nbytes: bytes that a round moves.
    """

    def __init__(self, endpoint: TCPEndpoint, nbytes: int) -> None:
        rooms = {
            preset: [place.uri for place in endpoint.reserve(_chunks(bytes(nbytes), _message(preset)))]
            for preset in TRANSPORT_PRESETS
        }
        directory = json.dumps({"nbytes": nbytes, "rooms": rooms}).encode()
        (place,) = endpoint.publish(_chunks(directory, len(directory)), [memoryview(directory)])
        self.uri = f"{place.uri}#{len(directory)}-{checksum(directory).rpartition(':')[2]}"


async def measure(
    links: Sequence[str], *, nbytes: int, rounds: int, folder: Path | None, progress: Progress
) -> list[Measurement]:
    """Measure every preset on each link.

    Args:
        links: names of ``LINKS``, or the address that ``sage infer transport listen`` prints.
        nbytes: bytes that a round moves.
        rounds: rounds of each preset; the presets of a link take turns.
        folder: folder for the link ``file``; a temporary one if omitted.
        progress: called with the link and the share that is done.

    Raises:
        InvalidRequest: an unknown link, or a transfer failed.
    """
    found: list[Measurement] = []
    for link in links:
        found += await _measure(link, nbytes, rounds, folder, progress)
    return found


def recommend(measured: Sequence[Measurement]) -> Mapping[str, str]:
    """The preset for each link: of those within a tenth of the best bandwidth, the one whose first chunk arrives
    earliest, since a decode can begin with it.
    """
    chosen = {}
    for link in dict.fromkeys(m.link for m in measured):
        of_link = [m for m in measured if m.link == link]
        best = max(m.median_gbs for m in of_link)
        chosen[link] = min(
            (m for m in of_link if m.median_gbs >= 0.9 * best), key=lambda m: m.median_first_s
        ).preset
    return chosen


async def _measure(
    link: str, nbytes: int, rounds: int, folder: Path | None, progress: Progress
) -> list[Measurement]:
    with ExitStack() as stack:
        if link not in LINKS:
            nbytes, rooms = await _directory(link)
        data = bytearray(os.urandom(nbytes))
        sources = stack.enter_context(_endpoint(SharedMemoryEndpoint(capacity_bytes=2 * nbytes + (1 << 20))))
        targets: dict[str, Sequence[KVLocation]] = {}
        transports: dict[str, Transport] = {}
        for preset in TRANSPORT_PRESETS:
            settings = TransportSettings.from_preset(preset)
            chunks = _chunks(data, _message(preset))
            if link == "shm":
                endpoint = stack.enter_context(_endpoint(SharedMemoryEndpoint(capacity_bytes=nbytes)))
                targets[preset] = endpoint.reserve(chunks)
            elif link == "tcp":
                served = stack.enter_context(_endpoint(TCPEndpoint(capacity_bytes=nbytes)))
                targets[preset] = served.reserve(chunks)
            elif link == "file":
                where = Path(stack.enter_context(_folder(folder)))
                paths = [where / f"{number}.kv" for number in range(len(chunks))]
                targets[preset] = [KVLocation(tier="ssd", uri=path.as_uri()) for path in paths]
            else:
                targets[preset] = [KVLocation(tier="remote", uri=uri) for uri in rooms[preset]]
            local = link in ("shm", "file")
            transports[preset] = (
                LocalTransport(settings=settings) if local else TCPTransport(settings=settings)
            )
        speeds: dict[str, list[float]] = {preset: [] for preset in TRANSPORT_PRESETS}
        firsts: dict[str, list[float]] = {preset: [] for preset in TRANSPORT_PRESETS}
        try:
            for number in range(rounds):
                for turn, preset in enumerate(TRANSPORT_PRESETS):
                    progress(link, (number + turn / len(TRANSPORT_PRESETS)) / rounds)
                    message = _message(preset)
                    for begin in range(0, nbytes, message):
                        data[begin] = (
                            data[begin] + 1
                        ) % 256  # other bytes in each round: nothing is there already
                    chunks = _chunks(data, message)
                    buffers = [memoryview(data)[i : i + message] for i in range(0, nbytes, message)]
                    places = sources.publish(chunks, buffers)
                    speed, first = await _round(link, transports[preset], chunks, places, targets[preset])
                    sources.withdraw(places)
                    speeds[preset].append(speed)
                    firsts[preset].append(first)
        finally:
            for transport in transports.values():
                await transport.close()
        progress(link, 1.0)
    return [
        Measurement(
            link,
            preset,
            _message(preset),
            TransportSettings.from_preset(preset).max_in_flight,
            tuple(speeds[preset]),
            tuple(firsts[preset]),
        )
        for preset in TRANSPORT_PRESETS
    ]


async def _round(
    link: str,
    transport: Transport,
    chunks: Sequence[KVChunk],
    sources: Sequence[KVLocation],
    targets: Sequence[KVLocation],
) -> tuple[float, float]:
    """``(GB/s, seconds to the first chunk)``."""
    steps = tuple(
        TransportStep(chunk=chunk, source=source, target=target, nbytes=chunk.nbytes)
        for chunk, source, target in zip(chunks, sources, targets, strict=True)
    )
    arrivals: list[float] = []
    began = time.perf_counter()
    report = await transport.execute(
        TransportPlan.from_steps("probe", steps),
        on_step=lambda index, status: arrivals.append(time.perf_counter() - began),
    )
    seconds = time.perf_counter() - began
    if not report.ok:
        raise InvalidRequest(f"the link {link} failed: {report.errors[0]}")
    return report.moved_bytes / seconds / 1e9, min(arrivals)


async def _directory(uri: str) -> tuple[int, Mapping[str, Sequence[str]]]:
    """What a listening host offers.

    Raises:
        InvalidRequest: not an address that ``listen`` printed, or nobody listens there.
    """
    place, _, fragment = uri.partition("#")
    length, _, digest = fragment.partition("-")
    expected = f"{uri!r} is neither one of {', '.join(LINKS)} nor an address that `sage infer transport listen` printed"
    if not (length.isascii() and length.isdigit() and len(length) < 8 and _is_tcp(place)):
        raise InvalidRequest(expected)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "directory"
        (chunk,) = _chunks(bytes(int(length)), int(length), digest=f"xxh3-64:{digest or '0'}")
        step = TransportStep(
            chunk=chunk,
            source=KVLocation(tier="remote", uri=place),
            target=KVLocation(tier="ssd", uri=target.as_uri()),
            nbytes=chunk.nbytes,
        )
        transport = TCPTransport(settings=TransportSettings(), retry_s=5)
        try:
            report = await transport.execute(TransportPlan.from_steps("directory", (step,)))
        finally:
            await transport.close()
        if not report.ok:
            raise InvalidRequest(f"{expected}: {report.errors[0]}")
        found = json.loads(target.read_bytes())
    return int(found["nbytes"]), found["rooms"]


def _is_tcp(uri: str) -> bool:
    try:
        return isinstance(parse(uri), TCPAddress)
    except InvalidRequest:
        return False


def _message(preset: str) -> int:
    return TransportSettings.from_preset(preset).chunk_bytes


def _chunks(data: bytes | bytearray, message: int, *, digest: str | None = None) -> list[KVChunk]:
    """Chunks of bytes, none longer than a message."""
    made = []
    for begin in range(0, max(len(data), 1), max(message, 1)):
        block = memoryview(data)[begin : begin + message]
        schema = KVCacheSchema(
            dtype="int8",
            page_size=max(len(block), 1),
            num_layers=1,
            num_heads=1,
            head_dim=1,
            scale_dtype="fp32",
        )
        made.append(
            KVChunk(
                chunk_id=f"{begin:032x}", request_id="probe", layer_start=0, layer_end=1, token_start=begin,
                token_end=begin + max(len(block), 1), kv_schema=schema, nbytes=len(block),
                checksum=digest or checksum(block),
            )
        )  # fmt: skip
    return made


@contextmanager
def _endpoint(endpoint: E) -> Iterator[E]:
    try:
        yield endpoint
    finally:
        endpoint.close()


def _folder(parent: Path | None) -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="sage-probe-", dir=parent)
    except OSError as error:
        raise InvalidRequest(f"cannot write to {parent}: {error.strerror or error}") from None

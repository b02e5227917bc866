"""Steps of plans, carried out in threads of the process that runs NIXL."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import xxhash
from attrs import define, field
from sage_infer.errors import SageInferError
from sage_infer_transport.addresses import FileAddress
from sage_infer_transport.copying import new_file, write_all
from sage_infer_transport.execution import Failed
from sage_infer_transport.rooms import read_header, write_header

from sage_infer_nixl.addresses import NIXLAddress, parse
from sage_infer_nixl.agent.memory import Mapped, Memory
from sage_infer_nixl.agent.peers import Agent
from sage_infer_nixl.control import Client, Place

__all__ = ["Mover", "Order"]


@define(eq=False)
class Order:
    """One step. It fails after ``end``, and when ``stop`` is set.

    Attributes:
        digest: xxh3-64 of the bytes.
        end: on the clock of ``time.monotonic``.
    """

    number: int
    source: str
    target: str
    nbytes: int
    digest: int
    end: float
    stop: threading.Event = field(factory=threading.Event)

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> Order:
        return cls(
            number=message["number"], source=message["source"], target=message["target"],
            nbytes=message["nbytes"], digest=message["digest"], end=time.monotonic() + message["timeout_s"],
        )  # fmt: skip

    def check(self) -> None:
        """
        Raises:
            Failed: it was stopped, or its time is over.
        """
        if self.stop.is_set():
            raise Failed("stopped")
        if time.monotonic() > self.end:
            raise Failed(f"{self.source} to {self.target}: the transfer did not end in time")

    def verify(self, data: memoryview) -> None:
        """
        Raises:
            Failed: other bytes.
        """
        found = xxhash.xxh3_64_intdigest(data)
        if found != self.digest:
            raise Failed(
                f"{self.source} holds other bytes: checksum {found:016x}, expected {self.digest:016x}"
            )


class Mover:
    """Moves chunks between rooms of other endpoints, and shared memory and files of this host."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._memory = Memory(agent)
        self._client = Client()

    def move(self, order: Order) -> str | None:
        """Carry out a step; returns why it failed. Then the target is as if never written."""
        try:
            order.check()
            source, target = parse(order.source), parse(order.target)
            if isinstance(source, FileAddress):
                assert isinstance(target, NIXLAddress)
                with self._local(source, order) as (mapped, offset):
                    self._write(mapped.address + offset, target, order)
            elif isinstance(target, FileAddress) and target.shared:
                self._read_into_room(source, target, order)
            else:
                with self._memory.buffer(order.nbytes) as mapped:
                    self._read(source, mapped.address, order)
                    data = mapped.view(0, order.nbytes)
                    order.verify(data)
                    if isinstance(target, FileAddress):
                        with new_file(target.path) as descriptor:
                            write_all(descriptor, data, 0)
                    else:
                        self._write(mapped.address, target, order)
        except (OSError, SageInferError) as error:
            return str(error)
        except Exception as error:  # of native code: the step has failed, and the process serves on
            return f"{type(error).__name__}: {error}"
        return None

    def _read_into_room(self, source: NIXLAddress, target: FileAddress, order: Order) -> None:
        with self._memory.segment(target.path) as mapped:
            header = read_header(mapped.memory, target.offset)
            if header is None or header[1] != order.nbytes:
                raise Failed(
                    f"{order.target}: no {order.nbytes} bytes are reserved there; reserve room at an endpoint"
                )
            write_header(mapped.memory, target.offset, arrived=False, nbytes=order.nbytes, digest=0)
            self._read(source, mapped.address + target.offset, order)
            order.verify(mapped.view(target.offset, order.nbytes))
            write_header(mapped.memory, target.offset, arrived=True, nbytes=order.nbytes, digest=order.digest)

    def _read(self, source: NIXLAddress, address: int, order: Order) -> None:
        with self._client.connection(source.host, source.port) as endpoint:
            place = Place.of(endpoint.ask(do="read", room=source.room))
            if place.nbytes != order.nbytes:
                raise Failed(f"{order.source} has {place.nbytes} bytes, the chunk {order.nbytes}")
            self._agent.transfer(
                "READ", address, place, endpoint=f"{source.host}:{source.port}", check=order.check
            )

    def _write(self, address: int, target: NIXLAddress, order: Order) -> None:
        """The connection is closed if this fails, after nothing is written any more: the room is then free again."""
        with self._client.connection(target.host, target.port) as endpoint:
            place = Place.of(endpoint.ask(do="write", room=target.room, nbytes=order.nbytes))
            self._agent.transfer(
                "WRITE", address, place, endpoint=f"{target.host}:{target.port}", check=order.check
            )
            endpoint.ask(do="written", room=target.room, digest=order.digest)

    @contextmanager
    def _local(self, source: FileAddress, order: Order) -> Iterator[tuple[Mapped, int]]:
        """The memory with the bytes of a chunk of this host, and where they begin in it."""
        if source.shared:
            with self._memory.segment(source.path) as mapped:
                if source.offset + order.nbytes > len(mapped.memory):
                    raise Failed(f"{order.source}: the segment has {len(mapped.memory)} bytes")
                yield mapped, source.offset
            return
        with self._memory.buffer(order.nbytes) as mapped:
            _read_file(source, mapped.view(0, order.nbytes))
            yield mapped, 0


def _read_file(source: FileAddress, out: memoryview) -> None:
    with source.path.open("rb", buffering=0) as file:
        file.seek(source.offset)
        while out:
            count = file.readinto(out)
            if not count:
                raise Failed(f"{source.path} is {len(out)} bytes too short")
            out = out[count:]

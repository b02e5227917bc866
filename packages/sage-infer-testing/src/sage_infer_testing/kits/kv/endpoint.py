"""The kit for endpoints, which make exported KV addressable."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest
from sage_infer.contracts import KVEndpoint, Transport
from sage_infer.errors import InvalidRequest, Overloaded
from sage_infer.schemas import KVCacheSchema, KVChunk, KVLocation, TransportPlan, TransportStep
from sage_infer.sdk import checksum

from sage_infer_testing.shape import shape_problems
from sage_infer_testing.suite import ContractSuite

__all__ = ["KVEndpointContract"]

_SIZES = (64, 100_000, 1)


class KVEndpointContract(ContractSuite, kit=True):
    """Guarantees of a ``KVEndpoint``. Override ``make_endpoint``.

    Attributes:
        capacity_bytes: capacity of an endpoint of ``make_endpoint`` in bytes; None if it has no limit.
    """

    capacity_bytes: ClassVar[int | None] = None

    def make_endpoint(self) -> KVEndpoint:
        """Return an empty endpoint. Called several times; several endpoints can exist simultaneously."""
        pytest.fail(f"{type(self).__name__} must override make_endpoint()")

    def make_transport(self) -> Transport | None:
        """Return a transport that reaches the endpoint's locations; None skips the tests that move chunks."""
        return None

    # --- helpers of the tests

    @pytest.fixture
    def endpoint(self) -> Iterator[Any]:
        """An endpoint, closed after the test."""
        made = self.make_endpoint()
        yield made
        made.close()

    def data(self, size: int, name: str) -> bytes:
        """Bytes that belong to a name."""
        return hashlib.shake_128(name.encode()).digest(size)

    def chunk(self, size: int, name: str) -> KVChunk:
        """A chunk of the bytes of ``name``."""
        schema = KVCacheSchema(
            dtype="int8", page_size=size, num_layers=1, num_heads=1, head_dim=1, scale_dtype="fp32"
        )
        return KVChunk(
            chunk_id=hashlib.blake2b(name.encode(), digest_size=16).hexdigest(), request_id="kit", layer_start=0,
            layer_end=1, token_start=0, token_end=size, kv_schema=schema, nbytes=size,
            checksum=checksum(self.data(size, name)),
        )  # fmt: skip

    def chunks(self, sizes: Sequence[int] = _SIZES) -> tuple[list[KVChunk], list[memoryview]]:
        """Chunks of different sizes, and their bytes."""
        names = [f"c{i}" for i in range(len(sizes))]
        made = [self.chunk(size, name) for size, name in zip(sizes, names, strict=True)]
        return made, [memoryview(self.data(size, name)) for size, name in zip(sizes, names, strict=True)]

    def is_gone(self, endpoint: KVEndpoint, location: KVLocation) -> None:
        """Fail unless the endpoint refuses to open the location."""
        __tracebackhide__ = True
        with pytest.raises(InvalidRequest):
            endpoint.open(location)

    # --- tests

    def test_has_the_shape_of_its_protocol(self, endpoint: Any) -> None:
        """Every method of ``KVEndpoint`` exists with its parameters.

        How to fix: the message names each problem; copy the signature from ``sage_infer.contracts.KVEndpoint``.
        """
        problems = shape_problems(endpoint, KVEndpoint)
        assert not problems, f"not a KVEndpoint: {'; '.join(problems)}"

    def test_published_chunks_can_be_opened(self, endpoint: Any) -> None:
        """``publish`` returns a unique location per chunk, in order, and the chunk's bytes can be read there.

        How to fix: derive the URI from the chunk and a unique number.
        """
        chunks, buffers = self.chunks()
        locations = endpoint.publish(chunks, buffers)
        assert len(locations) == len(chunks), f"{len(chunks)} chunks have {len(locations)} locations"
        assert len({location.uri for location in locations}) == len(chunks), f"one URI twice: {locations}"
        for location, buffer in zip(locations, buffers, strict=True):
            assert bytes(endpoint.open(location)) == bytes(buffer), f"other bytes at {location.uri}"

    def test_a_chunk_can_be_published_twice(self, endpoint: Any) -> None:
        """A chunk that is published twice has two locations, which are withdrawn separately.

        How to fix: do not derive URIs from ``chunk_id`` alone, because two requests can share a prefix.
        """
        chunks, buffers = self.chunks()
        first, second = endpoint.publish(chunks, buffers), endpoint.publish(chunks, buffers)
        endpoint.withdraw(first)
        for location, buffer in zip(second, buffers, strict=True):
            assert bytes(endpoint.open(location)) == bytes(buffer), (
                f"{location.uri} was withdrawn with the other one"
            )

    def test_wrong_buffers_are_refused(self, endpoint: Any) -> None:
        """Buffers whose number or sizes differ from the chunks are ``InvalidRequest``.

        How to fix: compare the numbers, and each buffer with ``chunk.nbytes``, before anything is published.
        """
        chunks, buffers = self.chunks()
        for wrong in (buffers[:-1], [*buffers[:-1], memoryview(b"")], [buffers[0][:-1], *buffers[1:]]):
            with pytest.raises(InvalidRequest):
                endpoint.publish(chunks, wrong)

    def test_withdrawn_locations_are_gone(self, endpoint: Any) -> None:
        """``withdraw`` frees only the given locations; unknown ones are ignored.

        How to fix: remove the location and free its memory; the same call may be repeated.
        """
        chunks, buffers = self.chunks()
        first, *others = endpoint.publish(chunks, buffers)
        for _ in range(2):
            endpoint.withdraw([first])
        self.is_gone(endpoint, first)
        for location, buffer in zip(others, buffers[1:], strict=True):
            assert bytes(endpoint.open(location)) == bytes(buffer)

    def test_unknown_locations_are_refused(self, endpoint: Any) -> None:
        """Opening an unknown location is ``InvalidRequest``.

        How to fix: look up the URI in the endpoint's own table; do not open arbitrary URIs.
        """
        self.is_gone(endpoint, KVLocation(tier="dram", uri="nowhere-kit://host/chunk"))
        other = self.make_endpoint()
        try:
            (location,) = other.publish(*self.chunks((64,)))
            self.is_gone(endpoint, location)
        finally:
            other.close()

    def test_reserved_room_can_be_opened(self, endpoint: Any) -> None:
        """``reserve`` returns one location per chunk with room for its bytes, and ``withdraw`` frees it.

        How to fix: allocate ``chunk.nbytes`` bytes per chunk under a unique URI.
        """
        chunks, _ = self.chunks()
        locations = endpoint.reserve(chunks)
        assert len({location.uri for location in locations}) == len(chunks), f"{chunks} have {locations}"
        endpoint.withdraw(locations)
        for location in locations:
            self.is_gone(endpoint, location)

    def test_too_much_is_overloaded(self, endpoint: Any) -> None:
        """Above ``capacity_bytes``, ``publish`` and ``reserve`` raise ``Overloaded`` and allocate nothing.

        How to fix: add up all sizes before allocating the first chunk; free withdrawn chunks.
        """
        if self.capacity_bytes is None:
            pytest.skip("capacity_bytes is not set")
        half = self.capacity_bytes // 2
        (kept,) = endpoint.publish(*self.chunks((half,)))
        chunks, buffers = self.chunks((1, self.capacity_bytes))
        with pytest.raises(Overloaded):
            endpoint.publish(chunks, buffers)
        with pytest.raises(Overloaded):
            endpoint.reserve(chunks)
        endpoint.withdraw([kept])
        locations = endpoint.publish(*self.chunks((half, half)))
        assert len(locations) == 2, "the memory of a refused call, or of a withdrawn chunk, was not freed"

    async def test_a_transport_joins_two_endpoints(self, endpoint: Any) -> None:
        """A transport moves published chunks to locations that another endpoint reserved, where they can be opened.

        How to fix: use URIs that the transport of ``make_transport`` can read and write.
        """
        transport = self.make_transport()
        if transport is None:
            pytest.skip("make_transport() returns None")
        target = self.make_endpoint()
        chunks, buffers = self.chunks()
        try:
            moves = zip(chunks, endpoint.publish(chunks, buffers), target.reserve(chunks), strict=True)
            steps = tuple(TransportStep(chunk=c, source=s, target=t, nbytes=c.nbytes) for c, s, t in moves)
            report = await transport.execute(TransportPlan.from_steps("kit-join", steps))
            assert report.ok, f"{report.statuses}, {report.errors}"
            for step, buffer in zip(steps, buffers, strict=True):
                assert bytes(target.open(step.target)) == bytes(buffer), f"other bytes at {step.target.uri}"
        finally:
            await transport.close()
            target.close()

    def test_close_withdraws_everything(self, endpoint: Any) -> None:
        """After ``close`` no location can be opened, and a second ``close`` does nothing.

        How to fix: withdraw all locations in ``close``.
        """
        (location,) = endpoint.publish(*self.chunks((64,)))
        endpoint.close()
        endpoint.close()
        self.is_gone(endpoint, location)

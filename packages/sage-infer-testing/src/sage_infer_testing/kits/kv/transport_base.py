"""Base of the tests of transports: chunks, locations, and steps between them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sage_infer.contracts import Transport
from sage_infer.schemas import KVCacheSchema, KVChunk, KVLocation, TransportStep
from sage_infer.sdk import checksum

from sage_infer_testing.suite import ContractSuite

__all__ = ["SIZES", "TransportSuite"]

SIZES = (64, 100_000, 1, 9_000)  # bytes of the steps of a plan


class TransportSuite(ContractSuite, kit=True):
    """Base of the kit for transports. Override the four methods below.

    ``make_transport`` returns the transport, ``place`` stores bytes at a source location, ``target`` returns a target
    location, and ``contents`` reads the bytes at a location. ``folder`` is empty at the start of each test.
    """

    unreachable: ClassVar[KVLocation] = KVLocation(tier="remote", uri="nowhere-kit://host/chunk")

    def make_transport(self) -> Transport:
        """The transport."""
        pytest.fail(f"{type(self).__name__} must override make_transport()")

    def place(self, data: bytes, name: str, folder: Path) -> KVLocation:
        """Store ``data`` at a location that the transport can read, and return the location."""
        pytest.fail(f"{type(self).__name__} must override place(data, name, folder)")

    def target(self, nbytes: int, name: str, folder: Path) -> KVLocation:
        """Return an unused location for ``nbytes`` bytes."""
        pytest.fail(f"{type(self).__name__} must override target(nbytes, name, folder)")

    def contents(self, location: KVLocation) -> bytes | None:
        """Return the bytes at a location; None if nothing was written there."""
        pytest.fail(f"{type(self).__name__} must override contents(location)")

    def checksum(self, data: bytes) -> str:
        """Return ``KVChunk.checksum`` of some bytes: xxh3-64, which every transport supports."""
        return checksum(data)

    # --- helpers of the tests

    @pytest.fixture
    def transport(self) -> Iterator[Any]:
        """A transport, closed after the test."""
        made = self.make_transport()
        yield made
        self.run(made.close())

    def data(self, size: int, name: str) -> bytes:
        """Bytes that belong to a name."""
        return hashlib.shake_128(name.encode()).digest(size)

    def step(self, size: int, name: str, folder: Path, **changes: Any) -> TransportStep:
        """Return a step that moves the bytes of ``name``; ``changes`` replace its fields."""
        data = self.data(size, name)
        schema = KVCacheSchema(dtype="int8", page_size=size, num_layers=1, num_heads=1, head_dim=1,
                               scale_dtype="fp32", scale_granularity="tensor")  # fmt: skip
        chunk = KVChunk(
            chunk_id=hashlib.blake2b(name.encode(), digest_size=16).hexdigest(), request_id="kit", layer_start=0,
            layer_end=1, token_start=0, token_end=size, kv_schema=schema, nbytes=size, checksum=self.checksum(data),
        )  # fmt: skip
        fields: Mapping[str, Any] = {
            "chunk": chunk, "nbytes": size, "source": None, "target": None, **changes,
        }  # fmt: skip
        source = fields["source"] or self.place(data, f"{name}.source", folder)
        target = fields["target"] or self.target(size, f"{name}.target", folder)
        return TransportStep(**{**fields, "source": source, "target": target})

    def steps(self, folder: Path, sizes: tuple[int, ...] = SIZES) -> tuple[TransportStep, ...]:
        """Return steps of different sizes; later steps are more urgent."""
        return tuple(self.step(size, f"c{i}", folder, priority=-i) for i, size in enumerate(sizes))

    def arrived(self, step: TransportStep, index: int) -> bool:
        """Return whether a step's bytes are at its target; fail if there are other bytes."""
        __tracebackhide__ = True
        found = self.contents(step.target)
        expected = self.data(step.chunk.nbytes, f"c{index}")
        assert found is None or found == expected, (
            f"step {index} left {len(found or b'')} other bytes at {step.target}"
        )
        return found is not None

"""The transport and its endpoint over NIXL, between two processes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

import pytest
from nixl_other import HAS_NIXL, NO_NIXL, OtherProcess, chunk_of
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import KVLocation, TransportPlan, TransportSettings, TransportStep
from sage_infer_nixl import NIXLEndpoint, NIXLTransport
from sage_infer_testing import KVEndpointContract, TransportContract
from sage_infer_transport import SharedMemoryEndpoint

if not HAS_NIXL:
    pytest.skip(NO_NIXL, allow_module_level=True)

SETTINGS = TransportSettings.from_preset("low-latency")


async def moved(transport: NIXLTransport, source: KVLocation, target: KVLocation) -> None:
    step = TransportStep(chunk=chunk_of(b"1"), source=source, target=target, nbytes=1)
    assert (await transport.execute(TransportPlan.from_steps("first", (step,)))).ok


class _Between(TransportContract):
    """Chunks travel between the endpoint of another process and one of this process."""

    fetches: ClassVar[bool] = True
    other: ClassVar[OtherProcess]
    endpoint: ClassVar[SharedMemoryEndpoint]
    kept: ClassVar[NIXLTransport]

    @classmethod
    def setup_class(cls) -> None:
        cls.other, cls.endpoint = OtherProcess(), SharedMemoryEndpoint()
        cls.kept = NIXLTransport(
            settings=SETTINGS
        )  # keeps the process, which transports share, between tests
        asyncio.run(moved(cls.kept, cls.other.publish(b"1"), cls.endpoint.reserve([chunk_of(b"1")])[0]))

    @classmethod
    def teardown_class(cls) -> None:
        asyncio.run(cls.kept.close())
        cls.other.close()
        cls.endpoint.close()

    def make_transport(self):
        return NIXLTransport(settings=SETTINGS)

    def place(self, data: bytes, name: str, folder: Path):
        if self.fetches:
            return self.other.publish(data)
        return self.endpoint.publish([chunk_of(data)], [memoryview(data)])[0]

    def target(self, nbytes: int, name: str, folder: Path):
        if self.fetches:
            return self.endpoint.reserve([chunk_of(bytes(nbytes))])[0]
        return self.other.reserve(nbytes)

    def contents(self, location):
        if location.uri.startswith("shm:"):
            try:
                return bytes(self.endpoint.open(location))
            except InvalidRequest:
                return None
        return self.other.contents(location)


class TestFetched(_Between):
    pass


class TestSent(_Between):
    fetches = False


class TestEndpoint(KVEndpointContract):
    capacity_bytes = 1 << 20

    def make_endpoint(self):
        return NIXLEndpoint(capacity_bytes=self.capacity_bytes)

    def make_transport(self):
        return NIXLTransport(settings=SETTINGS)

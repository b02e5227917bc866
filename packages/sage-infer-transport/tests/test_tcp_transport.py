"""The TCP transport and its endpoint, over real sockets."""

from __future__ import annotations

from typing import Any, ClassVar

from sage_infer.errors import InvalidRequest
from sage_infer.schemas import KVCacheSchema, KVChunk, TransportSettings
from sage_infer.sdk import checksum
from sage_infer_testing import KVEndpointContract, TransportContract
from sage_infer_transport import SharedMemoryEndpoint, TCPEndpoint, TCPTransport

SETTINGS = TransportSettings.from_preset("low-latency")


def chunk_of(data: bytes) -> KVChunk:
    schema = KVCacheSchema(
        dtype="int8", page_size=len(data) or 1, num_layers=1, num_heads=1, head_dim=1, scale_dtype="fp32"
    )
    return KVChunk(
        chunk_id="0" * 32, request_id="test", layer_start=0, layer_end=1, token_start=0, token_end=1,
        kv_schema=schema, nbytes=len(data), checksum=checksum(data),
    )  # fmt: skip


class _Endpoints(TransportContract):
    """Sources published at one endpoint, targets reserved at another."""

    source_endpoint: ClassVar[type] = TCPEndpoint
    target_endpoint: ClassVar[type] = TCPEndpoint
    opened: ClassVar[list[Any]] = []

    def make_transport(self):
        self.sources, self.targets = self.source_endpoint(), self.target_endpoint()
        type(self).opened.extend((self.sources, self.targets))
        return TCPTransport(settings=SETTINGS, retry_s=2)

    def place(self, data, name, folder):
        (location,) = self.sources.publish([chunk_of(data)], [memoryview(data)])
        return location

    def target(self, nbytes, name, folder):
        (location,) = self.targets.reserve([chunk_of(bytes(nbytes))])
        return location

    def contents(self, location):
        for endpoint in (self.sources, self.targets):
            try:
                return bytes(endpoint.open(location))
            except InvalidRequest:
                continue
        return None

    @classmethod
    def teardown_class(cls):
        for endpoint in cls.opened:
            endpoint.close()
        cls.opened.clear()


class TestBetweenEndpoints(_Endpoints):
    pass


class TestFetched(_Endpoints):
    target_endpoint = SharedMemoryEndpoint


class TestSent(_Endpoints):
    source_endpoint = SharedMemoryEndpoint


class TestEndpoint(KVEndpointContract):
    capacity_bytes = 1 << 20

    def make_endpoint(self):
        return TCPEndpoint(capacity_bytes=self.capacity_bytes)

    def make_transport(self):
        return TCPTransport(settings=SETTINGS)

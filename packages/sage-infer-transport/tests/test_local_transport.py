"""The local transport and the shared memory endpoint, on real files and segments."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from sage_infer.schemas import KVLocation, TransportSettings
from sage_infer_testing import KVEndpointContract, TransportContract
from sage_infer_transport import LocalTransport, SharedMemoryEndpoint


class TestFiles(TransportContract):
    def make_transport(self):
        return LocalTransport(settings=TransportSettings.from_preset("high-bw"))

    def place(self, data, name, folder):
        (folder / name).write_bytes(b"before" + data)
        return KVLocation(tier="ssd", uri=f"{(folder / name).as_uri()}#6")

    def target(self, nbytes, name, folder):
        return KVLocation(tier="ssd", uri=(folder / name).as_uri())

    def contents(self, location):
        parts = urlsplit(location.uri)
        path = Path(unquote(parts.path))
        return path.read_bytes()[int(parts.fragment or 0) :] if path.exists() else None


class TestSharedMemory(KVEndpointContract):
    capacity_bytes = 1 << 20

    def make_endpoint(self):
        return SharedMemoryEndpoint(capacity_bytes=self.capacity_bytes)

    def make_transport(self):
        return LocalTransport(settings=TransportSettings.from_preset("low-latency"))

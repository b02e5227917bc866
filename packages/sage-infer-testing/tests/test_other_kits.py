"""The other kits pass on their reference implementations."""

from pathlib import Path

from kit_reference_parts import (
    ReferenceDetector,
    ReferenceEmbedder,
    ReferenceHybrid,
    ReferenceMeter,
    ReferenceStore,
    ReferenceTransport,
)
from sage_infer.schemas import KVLocation, ModelDescriptor
from sage_infer_testing import (
    EmbeddingBackendContract,
    HardwareDetectorContract,
    HybridBackendContract,
    KVStoreContract,
    PluginContract,
    TransportContract,
)


class TestEmbedding(EmbeddingBackendContract):
    normalized = True

    def make_backend(self) -> ReferenceEmbedder:
        return ReferenceEmbedder()


class TestEmbeddingOnly(EmbeddingBackendContract):
    def make_backend(self) -> ReferenceEmbedder:
        return ReferenceEmbedder(features=("embed",))


class TestHybrid(HybridBackendContract):
    llm = "talker"
    embedder = "embedder"
    spare = ModelDescriptor(model_id="spare", model_type="llm", model_path="/")
    too_large = ModelDescriptor(model_id="giant", model_type="llm", model_path="/", memory_gb=100.0)

    def make_backend(self) -> ReferenceHybrid:
        return ReferenceHybrid()


class TestHybridWithASpareEmbedder(TestHybrid):
    spare = ModelDescriptor(model_id="spare", model_type="embedding", model_path="/")


class TestHybridWithNothingSet(HybridBackendContract):
    def make_backend(self) -> ReferenceHybrid:
        return ReferenceHybrid()


class TestStore(KVStoreContract):
    def open_store(self, capacity_blocks: int) -> ReferenceStore:
        return ReferenceStore(self.model_id, self.kv_schema, capacity_blocks)


class FileTransport(TransportContract):
    def make_transport(self) -> ReferenceTransport:
        return ReferenceTransport()

    def place(self, data: bytes, name: str, folder: Path) -> KVLocation:
        (folder / name).write_bytes(data)
        return KVLocation(tier="ssd", uri=f"file://{folder / name}")

    def target(self, nbytes: int, name: str, folder: Path) -> KVLocation:
        return KVLocation(tier="ssd", uri=f"file://{folder / name}")

    def contents(self, location: KVLocation) -> bytes | None:
        path = Path(location.uri.removeprefix("file://"))
        return path.read_bytes() if path.exists() else None


class TestTransport(FileTransport):
    pass


class TestDetector(HardwareDetectorContract):
    def make_detector(self) -> ReferenceDetector:
        return ReferenceDetector()


class TestMeter(HardwareDetectorContract):
    def make_detector(self) -> ReferenceMeter:
        return ReferenceMeter()


class TestOwnPlugin(PluginContract):
    module = "sage_infer_testing.plugin"

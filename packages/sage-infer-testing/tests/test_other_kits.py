"""The other kits pass on their reference implementations."""

from kit_reference.detector import ReferenceDetector, ReferenceMeter
from kit_reference.embedding import ReferenceEmbedder
from kit_reference.hybrid import ReferenceHybrid
from kit_reference.store import ReferenceStore
from kit_reference.transport import FileTransport
from sage_infer.schemas import ModelDescriptor
from sage_infer_testing import (
    EmbeddingBackendContract,
    HardwareDetectorContract,
    HybridBackendContract,
    KVStoreContract,
    PluginContract,
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

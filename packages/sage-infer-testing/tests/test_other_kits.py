"""The other kits pass on their reference implementations."""

from collections.abc import Mapping
from typing import Any, ClassVar

from kit_reference.codec import PRIVATE, LayerwiseReferenceCodec, ReferenceCodec
from kit_reference.detector import ReferenceDetector, ReferenceMeter
from kit_reference.embedding import ReferenceEmbedder
from kit_reference.endpoint import CAPACITY, ReferenceEndpoint
from kit_reference.executor import ReferenceExecutor, toy_spec
from kit_reference.hybrid import ReferenceHybrid
from kit_reference.hybrid_tokenizing import ReferenceHybridTokenizer
from kit_reference.mapped_store import ReferenceMappedStore
from kit_reference.observable_store import ReferenceObservableStore
from kit_reference.store import ReferenceStore
from kit_reference.tiered_store import ReferenceTieredStore
from kit_reference.transport import FileTransport, ReferenceTransport
from sage_infer.schemas import ModelDescriptor, ReplicaSpec
from sage_infer_testing import (
    EmbeddingBackendContract,
    ExecutorContract,
    HardwareDetectorContract,
    HybridBackendContract,
    HybridTokenizingContract,
    KVEndpointContract,
    KVFormatCodecContract,
    KVStoreContract,
    MappedKVStoreContract,
    ObservableKVStoreContract,
    PluginContract,
    TieredKVStoreContract,
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


class TestHybridTokenizing(HybridTokenizingContract):
    llm = "talker"
    embedder = "embedder"

    def make_backend(self) -> ReferenceHybridTokenizer:
        return ReferenceHybridTokenizer()


class TestStore(KVStoreContract):
    def open_store(self, capacity_blocks: int) -> ReferenceStore:
        return ReferenceStore(self.model_id, self.kv_schema, capacity_blocks)


class TestStoreThatRoundsUp(KVStoreContract):
    exact_capacity = False
    policy = "unknown"
    examples = 5

    def open_store(self, capacity_blocks: int) -> ReferenceStore:
        return ReferenceStore(self.model_id, self.kv_schema, -(-capacity_blocks // 4) * 4)


class TestMappedStore(MappedKVStoreContract):
    def open_store(self, capacity_blocks: int) -> ReferenceMappedStore:
        return ReferenceMappedStore(self.model_id, self.kv_schema, capacity_blocks)


class TestObservableStore(ObservableKVStoreContract):
    def open_store(self, capacity_blocks: int) -> ReferenceObservableStore:
        return ReferenceObservableStore(self.model_id, self.kv_schema, capacity_blocks)


class TestTieredStore(TieredKVStoreContract):
    def open_store(self, capacity_blocks: int) -> ReferenceTieredStore:
        return ReferenceTieredStore(self.model_id, self.kv_schema, capacity_blocks)


class TestEndpoint(KVEndpointContract):
    capacity_bytes = CAPACITY

    def make_endpoint(self) -> ReferenceEndpoint:
        return ReferenceEndpoint()

    def make_transport(self) -> ReferenceTransport:
        return ReferenceTransport()


class TestCodec(KVFormatCodecContract):
    kv_schema = PRIVATE

    def make_codec(self) -> ReferenceCodec:
        return ReferenceCodec()


class TestLayerwiseCodec(TestCodec):
    def make_codec(self) -> LayerwiseReferenceCodec:
        return LayerwiseReferenceCodec()


class TestExecutor(ExecutorContract):
    unsupported: ClassVar[Mapping[str, Any]] = {"server": "some.module:serve", "gpus": 1.0}

    def make_executor(self) -> ReferenceExecutor:
        return ReferenceExecutor()

    def make_spec(self, replica_id: str) -> ReplicaSpec:
        return toy_spec(replica_id)


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

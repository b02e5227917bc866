"""The contract kits on everything that the wheel brings."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

from quokka_sage import codec, detector, executor, model, store, transport
from sage_infer.schemas import KVCacheSchema, KVLocation, ModelDescriptor, ReplicaSpec, TransportSettings
from sage_infer_testing import (
    EmbeddingBackendContract,
    ExecutorContract,
    HardwareDetectorContract,
    InferenceBackendContract,
    KVFormatCodecContract,
    KVStoreContract,
    PluginContract,
    RecordingContract,
    TransportContract,
)

HERE = Path(__file__).parent
_folder = tempfile.TemporaryDirectory()
CHAT = Path(_folder.name) / "chat.qk"
CHAT.write_text(model.train((HERE.parent / "corpus.txt").read_text("utf-8")))


class TestPlugin(PluginContract):
    module = "quokka_sage.plugin"


class TestBackend(InferenceBackendContract):
    backend_name = "quokka"
    model = str(CHAT)
    max_queue = 64


class TestEmbedding(EmbeddingBackendContract):
    backend_name = "quokka-embedding"
    model = str(CHAT)
    normalized = True


class TestStore(KVStoreContract):
    def open_store(self, capacity_blocks):
        return store.QuokkaStore(
            schema=self.kv_schema, model_id=self.model_id, capacity_blocks=capacity_blocks
        )


class TestCodec(KVFormatCodecContract):
    kv_schema = KVCacheSchema.from_preset(
        "fp16", num_layers=2, num_heads=3, head_dim=8, page_size=4, format_id="quokka/heads-first-1"
    )

    def make_codec(self):
        return codec.HeadsFirst()


class TestTransport(TransportContract):
    def make_transport(self):
        return transport.QuokkaTransport(settings=TransportSettings.from_preset("low-latency"))

    def place(self, data, label, folder):
        (folder / label).write_bytes(data)
        return self.target(len(data), label, folder)

    def target(self, nbytes, label, folder):
        return KVLocation(tier="ssd", uri=(folder / label).as_uri())

    def contents(self, location):
        path = Path(unquote(urlsplit(location.uri).path))
        return path.read_bytes() if path.exists() else None


class TestExecutor(ExecutorContract):
    unsupported: ClassVar[dict[str, Any]] = {"server": "some.module:serve", "gpus": 1.0, "device_ids": [0]}

    def make_executor(self):
        return executor.QuokkaExecutor()

    def make_spec(self, replica_id):
        described = ModelDescriptor(model_id="chat", model_type="llm", model_path=str(CHAT))
        return ReplicaSpec(replica_id=replica_id, backend="quokka", model=described)


class TestDetector(HardwareDetectorContract):
    hardware = ("quokka",)

    def make_detector(self):
        return detector.QuokkaDetector()


class TestRecordings(RecordingContract):
    folder = HERE / "recordings"

    def read(self, text, *, name):
        return detector.read_recording(text, name=name)

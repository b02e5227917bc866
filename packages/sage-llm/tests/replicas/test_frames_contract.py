"""The contract kits pass on the reference backends behind frames."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from kit_reference.embedding import ReferenceEmbedder
from kit_reference.llm import ReferenceLLM
from sage_infer.schemas import ModelDescriptor, ReplicaSpec
from sage_infer_testing import EmbeddingBackendContract, InferenceBackendContract
from sage_llm.replicas.backends import EmbeddingReplica, InferenceReplica
from sage_llm.replicas.server import ReplicaServer, describe

MODEL = ModelDescriptor(model_id="reference", model_type="llm", model_path="/")
SPEC = ReplicaSpec(replica_id="reference/0", backend="reference", model=MODEL)


class Served:
    """Mixed into a client: a server in this process that starts and ends with it."""

    address: str

    def __init__(self, backend: Any) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="sage-")
        self._path = Path(self._folder.name) / "r.sock"
        super().__init__(f"unix:{self._path}")  # type: ignore[call-arg]
        self._behind = backend
        self._server: ReplicaServer | None = None

    async def start(self) -> None:
        await self._behind.start()
        descriptor = describe(self._behind, SPEC, self.address)
        self._server = ReplicaServer(self._behind, descriptor, report_s=0.01)
        await self._server.start(self._path)
        await super().start()  # type: ignore[misc]

    async def close(self) -> None:
        await super().close()  # type: ignore[misc]
        if self._server is not None:
            await self._server.close()
        await self._behind.close()
        self._folder.cleanup()


class ServedLLM(Served, InferenceReplica):
    pass


class ServedEmbedder(Served, EmbeddingReplica):
    pass


class TestEverythingClaimed(InferenceBackendContract):
    max_queue = 24
    template_variables = {"tone": "dry"}  # noqa: RUF012 - as the kit declares it
    tool_answer = ('<call>{"name": "clock", "arguments": {"zone": "UTC"}}</call>', "clock", {"zone": "UTC"})

    def make_backend(self) -> ServedLLM:
        return ServedLLM(ReferenceLLM())


class TestLittleClaimed(InferenceBackendContract):
    prompt_token_ids = (97, 52, 72, 69)
    prompts = ("The", "Once", "Two words", "1, 2")

    def make_backend(self) -> ServedLLM:
        return ServedLLM(ReferenceLLM(features=("streaming",)))


class TestEmbedding(EmbeddingBackendContract):
    normalized = True

    def make_backend(self) -> ServedEmbedder:
        return ServedEmbedder(ReferenceEmbedder())


class TestEmbeddingOnly(EmbeddingBackendContract):
    def make_backend(self) -> ServedEmbedder:
        return ServedEmbedder(ReferenceEmbedder(features=("embed",)))

"""Engines that do what a test tells them, in the place of discovered ones: what real ones do only by accident."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from sage_infer.contracts import BufferedTokenStream, EngineStats, Health
from sage_infer.errors import EngineDead, InvalidRequest
from sage_infer.schemas import (
    AcceleratorDescriptor,
    CapabilityDescriptor,
    EmbeddingResult,
    HardwareProfile,
    MemoryTierSpec,
    ModelDescriptor,
    Prompt,
    RequestOptions,
    RerankHit,
    RerankResult,
    Timing,
    TokenDelta,
    Usage,
)
from sage_infer.sdk import check_claims
from sage_infer.specs import BackendSpec
from sage_infer_hybrid import HybridBackend, engines

__all__ = ["GIB", "Engines", "FakeEngine", "cards", "described", "hybrid"]

GIB = 2**30
LONGEST = 40  # characters that a fake encoder takes


class FakeEngine:
    """An LLM, an encoder and a reranker in one; ``failure`` is raised by ``start``, ``gate`` holds it up."""

    def __init__(self, model: ModelDescriptor, **options: Any) -> None:
        self.model, self.options = model, options
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: Exception | None = None
        self.dead = ""
        self.closed = False
        self.streams: list[BufferedTokenStream] = []
        self.batches: list[int] = []
        self.aborted: list[str] = []
        self.features: tuple[str, ...] = ()
        self.extensions: dict[str, float] = {}
        self.asked: list[RequestOptions | None] = []

    async def start(self) -> None:
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure

    async def close(self) -> None:
        self.closed = True

    async def health(self) -> Health:
        return Health(status="dead", reason=self.dead) if self.dead else Health(status="ok")

    def stats(self) -> EngineStats:
        live = sum(stream.finish_reason is None for stream in self.streams)
        return EngineStats(
            running=live,
            waiting=0,
            finished=len(self.streams) - live,
            output_tokens=7,
            extensions=self.extensions,
        )

    def get_capability(self) -> CapabilityDescriptor:
        return CapabilityDescriptor(
            backend_name="fake", instance_type="general", hardware_backend="cpu", max_batch_size=8,
            max_sequence_length=LONGEST, supported_precisions=("fp32",), features=self.features,
        )  # fmt: skip

    async def render_chat(self, messages: Any, **_: Any) -> Prompt:
        return Prompt(text=str(messages))

    async def generate(
        self,
        prompts: Any,
        params: Any,
        *,
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> Any:
        if self.dead:
            raise EngineDead(self.dead)
        check_claims(self.features, backend="fake", options=options)
        self.asked.append(options)
        stream = BufferedTokenStream(request_id or "r", lambda: None)
        stream.push(TokenDelta(text="a", token_ids=(1,)))
        self.streams.append(stream)
        return [stream]

    def finish(self) -> None:
        """End every stream normally."""
        for stream in self.streams:
            stream.finish(
                "stop", Usage(prompt_tokens=1, completion_tokens=1), Timing(queue_s=0, ttft_s=0, total_s=0)
            )

    async def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    async def embed_batch(
        self,
        texts: Sequence[str],
        *,
        truncate: str = "error",
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> EmbeddingResult:
        check_claims(self.features, backend="fake", options=options)
        self.asked.append(options)
        for index, text in enumerate(texts):
            if len(text) > LONGEST:
                raise InvalidRequest(f"input {index} is too long")
        self.batches.append(len(texts))
        await self.gate.wait()
        data = memoryview(b"".join(memoryview(_floats(len(text))) for text in texts))
        return EmbeddingResult(
            model_id=self.model.model_id, dim=1, data=data, usage=Usage(prompt_tokens=len(texts))
        )

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> RerankResult:
        check_claims(self.features, backend="fake", options=options)
        if isinstance(documents, str):
            raise InvalidRequest("documents must be a list of texts, got one string")
        if top_n is not None and top_n < 1:
            raise InvalidRequest("top_n must be at least 1")
        self.batches.append(len(documents))
        await self.gate.wait()
        hits = [RerankHit(index=i, score=float(len(d))) for i, d in enumerate(documents)]
        hits.sort(key=lambda hit: hit.score, reverse=True)
        usage = Usage(prompt_tokens=len(documents))
        return RerankResult(model_id=self.model.model_id, hits=tuple(hits[:top_n]), usage=usage)


def _floats(value: float) -> Any:
    import array

    return array.array("f", [value])


@attrs.define
class Engines:
    """The engines that were made, by model; ``plan`` changes one before it is started."""

    made: dict[str, list[FakeEngine]] = attrs.field(factory=dict)
    changes: dict[str, dict[str, Any]] = attrs.field(factory=dict)

    def __getitem__(self, model_id: str) -> FakeEngine:
        return self.made[model_id][-1]

    def create(self, name: str, *, model: ModelDescriptor, serves: str, **options: Any) -> FakeEngine:
        engine = FakeEngine(model, **options)
        for key, value in self.changes.get(model.model_id, {}).items():
            setattr(engine, key, value)
        self.made.setdefault(model.model_id, []).append(engine)
        return engine

    def install(self, patch: pytest.MonkeyPatch) -> None:
        spec = BackendSpec(
            name="fake",
            factory="hybrid_fakes:FakeEngine",
            serves={"llm", "embedding", "reranker"},
            hardware={"cpu", "cuda"},
            options={
                "kv_cache_gb": "size of the KV cache",
                "memory_fraction": "share of the device",
                "tensor_parallel": "devices that share the model",
            },
        )
        found = SimpleNamespace(spec=spec, title="backend 'fake'")
        patch.setattr(engines, "create_backend", self.create)
        patch.setattr(engines, "find_backend", lambda name: found)


def described(name: str, kind: Any = "llm", memory_gb: float = 1.0) -> ModelDescriptor:
    return ModelDescriptor(model_id=name, model_type=kind, model_path=f"/{name}", memory_gb=memory_gb)


def cards(*gibibytes: int) -> HardwareProfile:
    """A machine with an NVIDIA card of each size."""
    return HardwareProfile(
        accelerators=tuple(
            AcceleratorDescriptor(
                hardware_backend="cuda", vendor="NVIDIA", model="A", index=i, memory_bytes=size * GIB
            )
            for i, size in enumerate(gibibytes)
        )
    )


def hybrid(*models: ModelDescriptor, gigabytes: int = 16, **options: Any) -> HybridBackend:
    """An instance on a machine with so much memory."""
    tier = MemoryTierSpec(tier="dram", name="host", capacity_bytes=gigabytes * GIB)
    profile = HardwareProfile(memory_tiers=(tier,))
    return HybridBackend(**{"models": models, "profile": profile, **options})

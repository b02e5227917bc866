"""Small correct implementations of the other contracts: embedding, hybrid, KV store, transport, detector."""

from __future__ import annotations

import array
import asyncio
import hashlib
import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve
from kit_reference_llm import ReferenceLLM
from sage_infer.contracts import EngineStats, Health, KVStoreStats, ModelStatus, block_keys
from sage_infer.errors import (
    EngineDead,
    InvalidRequest,
    ModelNotFound,
    OutOfMemory,
    RequestCancelled,
    UnsupportedFeature,
)
from sage_infer.schemas import (
    CapabilityDescriptor,
    EmbeddingResult,
    Figure,
    HardwareProfile,
    HybridCapabilityDescriptor,
    KVCacheSchema,
    KVLocation,
    MemoryTierSpec,
    ModelDescriptor,
    RerankHit,
    RerankResult,
    TransportPlan,
    TransportReport,
    TransportStep,
    Usage,
)

DIM = 512


class ReferenceEmbedder:
    """A vector counts a text's words, each at a place that its hash gives."""

    limit = 64

    def __init__(self, features: Sequence[str] = ("embed", "rerank")) -> None:
        self.features = tuple(features)
        self.state = "new"
        self.finished = 0

    async def start(self) -> None:
        self.state = "ok"

    async def close(self) -> None:
        self.state = "dead"

    async def health(self) -> Health:
        return Health(status="ok") if self.state == "ok" else Health(status="dead", reason="closed")

    def stats(self) -> EngineStats:
        return EngineStats(running=0, waiting=0, finished=self.finished)

    def get_capability(self) -> CapabilityDescriptor:
        return CapabilityDescriptor(
            backend_name="reference-embedder", instance_type="embedding", hardware_backend="cpu", max_batch_size=8,
            max_sequence_length=self.limit, supported_precisions=("fp32",), features=self.features,
        )  # fmt: skip

    def get_embedding_dim(self) -> int:
        return DIM

    def get_max_length(self) -> int:
        return self.limit

    def words(self, index: int, text: Any, truncate: str) -> list[str]:
        if self.state != "ok":
            raise EngineDead("closed; open a new one")
        if not text:
            raise InvalidRequest(f"text {index} is empty")
        words = text.lower().strip(".").split() if isinstance(text, str) else [f"#{token}" for token in text]
        if len(words) > self.limit and truncate == "error":
            raise InvalidRequest(f"text {index} has {len(words)} tokens, the limit is {self.limit}")
        return words[: self.limit]

    def vector(self, words: list[str]) -> list[float]:
        values = [0.0] * DIM
        for word in words:
            stem = word.rstrip("s").removesuffix("ing")
            values[int(hashlib.blake2b(stem.encode()).hexdigest(), 16) % DIM] += (
                1.0 if len(stem) > 3 else 0.05
            )
        norm = math.hypot(*values)
        return [value / norm for value in values]

    async def embed(self, text: Any, *, truncate: str = "error") -> EmbeddingResult:
        return await self.embed_batch([text], truncate=truncate)

    async def embed_batch(self, texts: Sequence[Any], *, truncate: str = "error") -> EmbeddingResult:
        several = [self.words(i, text, truncate) for i, text in enumerate(texts)]
        await asyncio.sleep(0)
        self.finished += 1
        data = array.array("f", [value for words in several for value in self.vector(words)])
        buffer = memoryview(data) if data else memoryview(b"")
        return EmbeddingResult(
            model_id="words", dim=DIM, data=buffer, usage=Usage(prompt_tokens=sum(map(len, several)))
        )

    async def rerank(self, query: str, documents: Sequence[str], *, top_n: int | None = None) -> RerankResult:
        if "rerank" not in self.features:
            raise UnsupportedFeature("this model does not rerank")
        vectors = [self.vector(self.words(i, text, "end")) for i, text in enumerate([query, *documents])]
        scores = [sum(a * b for a, b in zip(vectors[0], vector, strict=True)) for vector in vectors[1:]]
        order = sorted(range(len(documents)), key=lambda i: -scores[i])[:top_n]
        hits = tuple(RerankHit(index=i, score=scores[i]) for i in order)
        return RerankResult(model_id="words", hits=hits, usage=Usage(prompt_tokens=1))


class ReferenceHybrid:
    """Two models side by side, and a third that can be loaded."""

    def __init__(self) -> None:
        self.models: dict[str, ModelDescriptor] = {}
        self.backends: dict[str, Any] = {}
        self.state = "new"
        for name, kind in (("talker", "llm"), ("embedder", "embedding")):
            self.models[name] = ModelDescriptor(model_id=name, model_type=kind, model_path="/")  # type: ignore[arg-type]

    async def start(self) -> None:
        self.state = "ok"
        for model in list(self.models.values()):
            await self.load_model(model)

    async def close(self) -> None:
        self.state = "dead"
        for backend in self.backends.values():
            await backend.close()
        self.backends.clear()

    async def health(self) -> Health:
        return Health(status="ok") if self.state == "ok" else Health(status="dead", reason="closed")

    def stats(self) -> EngineStats:
        every = [backend.stats() for backend in self.backends.values()]
        names = ("running", "waiting", "kv_blocks_total", "kv_blocks_free", "finished")
        return EngineStats(**{name: sum(getattr(stats, name) for stats in every) for name in names})

    def find(self, model: str | None, kind: str) -> Any:
        if self.state != "ok":
            raise EngineDead("closed; open a new one")
        if model is None:
            model = next(name for name in self.backends if self.models[name].model_type == kind)
        if model not in self.backends:
            raise ModelNotFound(f"no model {model!r}; loaded: {', '.join(self.backends)}")
        return self.backends[model]

    async def generate(self, prompts: Any, params: Any, *, model: str | None = None, request_id: str | None = None,
                       priority: int = 0, deadline: float | None = None) -> Any:  # fmt: skip
        return await self.find(model, "llm").generate(prompts, params, request_id=request_id)

    async def chat(self, messages: Any, params: Any, *, model: str | None = None, tools: Any = None,
                   request_id: str | None = None, priority: int = 0, deadline: float | None = None) -> Any:  # fmt: skip
        prompt = self.find(model, "llm").render_chat(messages, tools=tools)
        return (await self.generate(prompt, params, model=model, request_id=request_id))[0]

    async def embed(
        self, texts: Any, *, model: str | None = None, truncate: str = "error", deadline: float | None = None
    ) -> EmbeddingResult:
        if deadline is not None and deadline < 1e-3:
            raise RequestCancelled(f"missed its deadline of {deadline} s")  # a toy is never late by itself
        result: EmbeddingResult = await self.find(model, "embedding").embed_batch(texts, truncate=truncate)
        return result

    async def rerank(self, query: str, documents: Any, *, model: str | None = None, top_n: int | None = None,
                     deadline: float | None = None) -> Any:  # fmt: skip
        return await self.find(model, "embedding").rerank(query, documents, top_n=top_n)

    def list_models(self) -> list[ModelDescriptor]:
        return list(self.models.values())

    async def load_model(self, model: ModelDescriptor) -> None:
        if (model.memory_gb or 0) > 8:
            raise OutOfMemory(f"{model.model_id} needs {model.memory_gb} GiB, 8 are there")
        self.models[model.model_id] = model
        backend: Any = ReferenceLLM() if model.model_type == "llm" else ReferenceEmbedder()
        await backend.start()
        self.backends[model.model_id] = backend

    async def unload_model(self, model_id: str) -> None:
        backend = self.find(model_id, "")
        del self.backends[model_id]
        while backend.stats().running + backend.stats().waiting:  # noqa: ASYNC110 - a toy
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        await backend.close()

    def get_model_status(self, model_id: str) -> ModelStatus:
        if model_id not in self.models:
            raise ModelNotFound(f"no model {model_id!r}; there are: {', '.join(self.models)}")
        state: Any = "ready" if model_id in self.backends else "registered"
        return ModelStatus(model_id=model_id, state=state, since=0.0)

    def get_hybrid_capability(self) -> HybridCapabilityDescriptor:
        loaded = tuple(self.models[name] for name in self.backends)
        return HybridCapabilityDescriptor(
            backend_name="hybrid", hardware_backend="cpu", loaded_models=loaded, total_memory_gb=8.0,
            available_memory_gb=4.0,
        )  # fmt: skip

    async def abort(self, request_id: str) -> None:
        for backend in self.backends.values():
            if hasattr(backend, "abort"):
                await backend.abort(request_id)


class ReferenceStore:
    """Blocks in a dictionary, oldest use first."""

    def __init__(self, model_id: str, schema: KVCacheSchema, capacity: int) -> None:
        self.model_id, self._schema, self.capacity = model_id, schema, capacity
        self.blocks: OrderedDict[bytes, bytes] = OrderedDict()
        self.pins: Counter[bytes] = Counter()
        self.hits = self.misses = self.evictions = 0
        self.lock = threading.RLock()

    @property
    def schema(self) -> KVCacheSchema:
        return self._schema

    def check(self, keys: Sequence[bytes], buffers: Sequence[memoryview]) -> None:
        size = self.schema.bytes_per_page
        if len(keys) != len(buffers) or any(buffer.nbytes != size for buffer in buffers):
            raise InvalidRequest(f"{len(keys)} keys need as many buffers of {size} bytes")

    def match(self, tokens: Sequence[int]) -> int:
        with self.lock:
            length = 0
            for key in block_keys(self.model_id, self.schema, tokens):
                if key not in self.blocks:
                    break
                length += self.schema.page_size
            self.hits, self.misses = self.hits + bool(length), self.misses + (not length)
            return length

    def get(self, keys: Sequence[bytes], out: Sequence[memoryview]) -> list[bool]:
        self.check(keys, out)
        with self.lock:
            for key, buffer in zip(keys, out, strict=True):
                if key in self.blocks:
                    buffer[:] = self.blocks[key]
                    self.blocks.move_to_end(key)
            return [key in self.blocks for key in keys]

    def put(self, keys: Sequence[bytes], blocks: Sequence[memoryview]) -> int:
        self.check(keys, blocks)
        with self.lock:
            fresh = set(keys)
            for key, block in zip(keys, blocks, strict=True):
                if key in self.blocks or len(self.blocks) < self.capacity or self.evict(1, keep=fresh):
                    self.blocks[key] = bytes(block)
                    self.blocks.move_to_end(key)
            return sum(key in self.blocks for key in keys)

    def pin(self, keys: Sequence[bytes]) -> list[bool]:
        with self.lock:
            held = [key in self.blocks for key in keys]
            self.pins.update(key for key, hit in zip(keys, held, strict=True) if hit)
            return held

    def unpin(self, keys: Sequence[bytes]) -> None:
        with self.lock:
            self.pins.subtract(key for key in keys if self.pins[key] > 0)

    def evict(self, count: int, keep: frozenset[bytes] | set[bytes] = frozenset()) -> int:
        with self.lock:
            loose = [key for key in self.blocks if self.pins[key] <= 0 and key not in keep][:count]
            for key in loose:
                del self.blocks[key]
            self.evictions += len(loose)
            return len(loose)

    def stats(self) -> KVStoreStats:
        with self.lock:
            return KVStoreStats(
                blocks=len(self.blocks), capacity_blocks=self.capacity,
                bytes_used=sum(map(len, self.blocks.values())), pinned_blocks=sum(n > 0 for n in self.pins.values()),
                hits=self.hits, misses=self.misses, evictions=self.evictions,
            )  # fmt: skip

    def close(self) -> None:
        self.blocks.clear()


class ReferenceTransport:
    """Copies files: written aside, verified, renamed."""

    def can_reach(self, source: KVLocation, target: KVLocation) -> bool:
        return source.uri.startswith("file://") and target.uri.startswith("file://")

    async def execute(self, plan: TransportPlan) -> TransportReport:
        begun = time.monotonic()
        for step in plan.steps:
            if not self.can_reach(step.source, step.target):
                raise InvalidRequest(f"{step.source.uri} to {step.target.uri} is out of reach")
        errors: dict[int, str] = {}
        moved = 0
        for i in sorted(range(len(plan.steps)), key=lambda i: plan.steps[i].priority):
            await asyncio.sleep(0)
            try:
                moved += self.move(plan.steps[i])
            except (OSError, ValueError) as error:
                errors[i] = str(error)
        return TransportReport(
            plan_id=plan.plan_id, statuses=tuple("failed" if i in errors else "done" for i in range(len(plan.steps))),
            errors=tuple(errors[i] for i in sorted(errors)), moved_bytes=moved, elapsed_s=time.monotonic() - begun,
        )  # fmt: skip

    def move(self, step: TransportStep) -> int:
        data = Path(step.source.uri.removeprefix("file://")).read_bytes()
        self.verify(step, data)
        target = Path(step.target.uri.removeprefix("file://"))
        aside = target.with_suffix(".part")
        aside.write_bytes(data)
        aside.rename(target)
        return len(data)

    def verify(self, step: TransportStep, data: bytes) -> None:
        if step.chunk.checksum != f"blake2b:{hashlib.blake2b(data, digest_size=16).hexdigest()}":
            raise ValueError(f"{step.source.uri} does not fit its checksum")

    async def close(self) -> None:
        """Holds nothing."""


class ReferenceDetector:
    """Sees a machine with one memory."""

    def detect(self) -> HardwareProfile:
        return HardwareProfile(memory_tiers=self.memory(), sources=("reference 1.0",))

    def memory(self) -> tuple[MemoryTierSpec, ...]:
        speed = Figure(value=20.0, source="data sheet", confidence="low")
        return (MemoryTierSpec(tier="dram", name="numa:0", capacity_bytes=2**30, nominal_gbs=speed),)


class ReferenceMeter(ReferenceDetector):
    """Measures it, too."""

    def measure(self, profile: HardwareProfile, progress: Callable[[str, float], None]) -> HardwareProfile:
        progress("measuring", 1.0)
        figure = Figure(value=18.0, source="measured by the reference")
        tiers = [evolve(tier, measured_read_gbs=figure) for tier in profile.memory_tiers]
        return evolve(profile, memory_tiers=tiers, notes=(*profile.notes, "a quiet machine"))

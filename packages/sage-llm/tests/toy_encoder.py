"""An encoder of a few lines, which records its calls and fails where a test says, and control planes over it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

import plane
from plane import running_plane
from sage_infer.contracts import TextLike, as_texts
from sage_infer.errors import EngineDead
from sage_infer.schemas import EmbeddingResult, ModelDescriptor, ReplicaSpec, RerankHit, RerankResult, Usage
from sage_infer.sdk import BackendReplica, BaseEmbeddingBackend, BaseExecutor
from sage_llm.manager.calls.batch import BatchLimits
from sage_llm.manager.health import HealthLimits
from sage_llm.manager.manager import ControlPlaneManager
from sage_llm.manager.models import ServedModel
from sage_llm.manager.restarts import RestartLimits
from sage_llm.manager.settings import ControlPlaneSettings
from toy_engine import MODEL, ToyEngine

EMBED = ModelDescriptor(model_id="vectors", model_type="embedding", model_path="/toy")
RERANK = ModelDescriptor(model_id="ranks", model_type="reranker", model_path="/toy")


class ToyEncoder(BaseEmbeddingBackend):
    """Attributes set by tests:

    gate: calls wait until it is set.
    refuses: an error that calls raise.
    counts: whether results have token counts per text.
    calls: the texts of each call so far, and ``cancelled`` the number of those that were cancelled.
    """

    name = "toy-encoder"
    features = ("embed", "rerank", "deadline")
    max_sequence_length = 64
    dim = 2

    def __init__(self, model: ModelDescriptor) -> None:
        super().__init__(model)
        self.gate = asyncio.Event()
        self.gate.set()
        self.refuses: Exception | None = None
        self.counts = True
        self.calls: list[tuple[str, ...]] = []
        self.cancelled = 0

    def encode(self, text: TextLike) -> Sequence[int]:
        return [ord(letter) % 90 for letter in text] if isinstance(text, str) else list(text)

    def vectors(self, batch: Sequence[Sequence[int]]) -> Iterable[Iterable[float]]:
        return [(float(sum(tokens)), float(len(tokens))) for tokens in batch]

    async def embed(self, texts: Any, **keywords: Any) -> EmbeddingResult:
        await self._turn(as_texts(texts))
        result = await super().embed(texts, **keywords)
        if self.counts:
            return result
        return EmbeddingResult(model_id="vectors", dim=2, data=result.data, usage=result.usage)

    async def rerank(self, query: str, documents: Sequence[str], **keywords: Any) -> RerankResult:
        await self._turn(documents)
        hits = [RerankHit(index=index, score=float(len(text))) for index, text in enumerate(documents)]
        hits.sort(key=lambda hit: -hit.score)
        return RerankResult(model_id="ranks", hits=tuple(hits), usage=Usage(prompt_tokens=len(documents)))

    async def _turn(self, texts: Sequence[Any]) -> None:
        self.calls.append(tuple(texts))
        if self.refuses is not None:
            raise self.refuses
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.check_running()
        if any("crash" in text for text in texts if isinstance(text, str)):
            self.crash()
            raise EngineDead("crashed by a text, as the test wants")

    def crash(self) -> None:
        self._state = "dead"


class MixedExecutor(BaseExecutor):
    """Starts toy engines and toy encoders. ``failing`` is the number of starts that will fail."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders: list[ToyEncoder] = []
        self.engines: list[ToyEngine] = []

    async def launch(self, spec: ReplicaSpec) -> BackendReplica:
        made: ToyEncoder | ToyEngine
        if spec.model.model_type == "llm":
            made = ToyEngine()
            self.engines.append(made)
        else:
            made = ToyEncoder(spec.model)
            self.encoders.append(made)
        await made.start()
        return BackendReplica(spec, made)


def toy_models(embedding: int = 1, reranker: int = 0, llm: int = 0) -> list[ServedModel]:
    numbers = ((EMBED, embedding), (RERANK, reranker), (MODEL, llm))
    return [ServedModel(descriptor=model, backend="toy", replicas=n) for model, n in numbers if n]


PATIENT_S = 3600.0


def quick(**changes: Any) -> ControlPlaneSettings:
    return ControlPlaneSettings(
        restarts=RestartLimits(first_s=0.01, most=50),
        health=HealthLimits(suspect_s=plane.GUARD_S, lost_s=plane.GUARD_S, revive_s=plane.GUARD_S),
        **{"batches": BatchLimits(window_s=PATIENT_S), **changes},
    )


Test = Callable[[ControlPlaneManager, MixedExecutor], Coroutine[Any, Any, None]]


def on_encoders(test: Test, *, settings: ControlPlaneSettings | None = None, **replicas: int) -> None:
    async def main() -> None:
        executor = MixedExecutor()
        async with running_plane(toy_models(**replicas), executor, settings or quick()) as manager:
            await test(manager, executor)
        calls = manager.dispatcher.calls
        assert not calls.open

    asyncio.run(asyncio.wait_for(main(), plane.GUARD_S))

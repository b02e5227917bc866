"""An engine of a few lines whose next token depends on the whole context, and which fails where a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import attrs
from sage_infer.contracts import Health, TokenStream
from sage_infer.errors import EngineDead, Overloaded
from sage_infer.schemas import (
    DecodeState,
    ModelDescriptor,
    Prompt,
    ReplicaSpec,
    RequestOptions,
    SamplingParams,
    TokenDelta,
)
from sage_infer.sdk import BackendReplica, BaseExecutor, BaseInferenceBackend, Completion
from sage_llm.manager.models import ServedModel

MODEL = ModelDescriptor(model_id="toy", model_type="llm", model_path="/toy")
POISON = 99


class ToyEngine(BaseInferenceBackend):
    """Attributes set by tests:

    gate: steps wait until it is set.
    silent: while set, the engine does not answer questions about its health, so that no report is made.
    refuses: an error that ``generate`` and ``resume`` raise.
    """

    name = "toy"
    features = ("tokenize", "resume", "seed", "penalties", "parallel_sampling", "prefix_caching", "priority")
    vocabulary = 100
    max_sequence_length = 512

    def __init__(self, *, claims_resume: bool = True) -> None:
        super().__init__(MODEL, max_queue=1024)
        if not claims_resume:
            self.features = tuple(f for f in ToyEngine.features if f != "resume")
        self.gate, self.answering = asyncio.Event(), asyncio.Event()
        self.gate.set()
        self.answering.set()
        self.refuses: Exception | None = None
        self.seen: list[str] = []
        self.priorities: list[int] = []
        self.crashes = 0

    def encode(self, prompt: Prompt) -> Sequence[int]:
        return [ord(letter) % 90 for letter in prompt.text or ""]

    def decode_tokens(self, token_ids: Sequence[int]) -> str:
        return "".join(chr(0x4E00 + token) for token in token_ids)

    async def complete(
        self, token_ids: Sequence[int], params: SamplingParams, *, max_tokens: int
    ) -> AsyncIterator[TokenDelta]:
        context = list(token_ids)
        output = Completion(params, max_tokens=max_tokens, decode=lambda token: self.decode_tokens([token]))
        while output.finish_reason is None:
            await self.gate.wait()
            if POISON in context:
                self.crash()
                await asyncio.sleep(3600)  # until the crash ends this request
            token = (sum(context) * 31 + len(context) * 7 + (params.seed or 0)) % 90
            context.append(token)
            yield output.push(token)

    async def generate(self, *args: Any, **keywords: Any) -> list[TokenStream]:
        if self.refuses is not None:
            raise self.refuses
        self.seen.append(str(keywords.get("request_id")))
        self.priorities.append((keywords.get("options") or RequestOptions()).priority)
        return await super().generate(*args, **keywords)

    async def resume(
        self, states: Sequence[DecodeState], *, request_id: str, options: RequestOptions | None = None
    ) -> TokenStream:
        if self.refuses is not None:
            raise self.refuses
        (state,) = states
        self.check_running()
        self.seen.append(request_id)
        params = state.params
        if params.max_tokens is not None:
            params = attrs.evolve(params, max_tokens=params.max_tokens - len(state.output_token_ids))
        (request,) = self.requests.accept(request_id, options=options)
        return self._begin(request, (*state.prompt_token_ids, *state.output_token_ids), params)

    async def health(self) -> Health:
        await self.answering.wait()
        return await super().health()

    def crash(self) -> None:
        """End as a process that was killed."""
        self.crashes += 1
        self._state = "dead"
        self.requests.cancel_all("close")


class ToyExecutor(BaseExecutor):
    """Starts toy engines. ``failing`` is the number of starts that will fail."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options, self.failing = options, 0
        self.engines: list[ToyEngine] = []

    async def launch(self, spec: ReplicaSpec) -> BackendReplica:
        if self.failing:
            self.failing -= 1
            raise EngineDead(f"replica {spec.replica_id!r} did not start, as the test wants")
        engine = ToyEngine(**self.options)
        await engine.start()
        self.engines.append(engine)
        return BackendReplica(spec, engine)


def toy_model(replicas: int = 2) -> ServedModel:
    return ServedModel(descriptor=MODEL, backend="toy", replicas=replicas)


def busy(retry_after: float = 0.05) -> Overloaded:
    return Overloaded("as the test wants", retry_after=retry_after)

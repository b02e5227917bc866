"""An engine of a few lines for actors on a Ray cluster: each token depends on all before it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any

import attrs
from sage_infer import BackendSpec, hookimpl
from sage_infer.contracts import TokenStream
from sage_infer.errors import OutOfMemory, Overloaded
from sage_infer.schemas import (
    DecodeState,
    ModelDescriptor,
    Prompt,
    ReplicaSpec,
    RequestOptions,
    SamplingParams,
    TokenDelta,
)
from sage_infer.sdk import BaseInferenceBackend, Completion

SAGE_INFER_CONTRACT = "1.0"
MODEL = ModelDescriptor(model_id="toy", model_type="llm", model_path="/")
TOKEN = "the token of the tests"


@hookimpl
def sage_infer_backends() -> list[BackendSpec]:
    return [BackendSpec(name="ray-toy", factory="ray_toys:ToyEngine", serves={"llm"}, summary="toy")]


def spec(replica_id: str = "toy/0", **changes: Any) -> ReplicaSpec:
    values = {
        "backend": "ray-toy",
        "model": MODEL,
        "server": "sage_llm.replicas.net.server:serve",
        "environment": {"SAGE_REPLICA_TOKEN": TOKEN},
    }
    return ReplicaSpec(replica_id=replica_id, **{**values, **changes})


class ToyEngine(BaseInferenceBackend):
    """``fails`` names the way in which it does not start: memory, busy, crash or stuck."""

    name = "ray-toy"
    features = ("tokenize", "resume", "seed", "parallel_sampling")
    vocabulary = 100
    max_sequence_length = 4096

    def __init__(self, model: ModelDescriptor, *, pause_s: float = 0.0, fails: str = "") -> None:
        super().__init__(model, max_queue=1024)
        self._pause_s, self._fails = pause_s, fails

    async def start(self) -> None:
        if self._fails == "memory":
            raise OutOfMemory("the model needs 80 GiB; use a smaller one")
        if self._fails == "busy":
            raise Overloaded("the engine is in use", retry_after=1.0)
        if self._fails == "crash":
            os._exit(3)
        if self._fails == "stuck":
            await asyncio.Event().wait()
        await super().start()

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
            await asyncio.sleep(self._pause_s)
            token = (sum(context) * 31 + len(context) * 7 + (params.seed or 0)) % 90
            context.append(token)
            yield output.push(token)

    async def resume(
        self, states: Sequence[DecodeState], *, request_id: str, options: RequestOptions | None = None
    ) -> TokenStream:
        (state,) = states
        self.check_running()
        params = state.params
        if params.max_tokens is not None:
            params = attrs.evolve(params, max_tokens=params.max_tokens - len(state.output_token_ids))
        (request,) = self.requests.accept(request_id, options=options)
        return self._begin(request, (*state.prompt_token_ids, *state.output_token_ids), params)

"""Prefill, decode, export and import of the reference engine."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Sequence
from typing import Any

import attrs
from sage_infer.contracts import DecodeResult, PrefillResult
from sage_infer.errors import CapabilityMismatch, InvalidRequest, KVCorrupt
from sage_infer.schemas import (
    DecodeState,
    KVChunk,
    Prompt,
    RequestOptions,
    SamplingParams,
    TokenDelta,
    Usage,
)
from sage_infer.sdk import checksum, verify

from kit_reference.request import PAGES_PER_SEQUENCE, SCHEMA, TOKEN_BYTES, Request
from kit_reference.sampling import Sequence_

__all__ = ["HandsOver"]


class HandsOver:
    """What a backend with ``prefill_decode`` and ``KVTransfer`` has; the engine mixes it in."""

    engine: Any  # the engine itself, to which all of this belongs
    held: dict[str, tuple[Request, DecodeState]]

    async def prefill(
        self, prompts: Any, *, request_id: str, params: SamplingParams | None = None,
        options: RequestOptions | None = None, hold_s: float | None = None,
    ) -> PrefillResult:  # fmt: skip
        self.engine.needs("prefill_decode", True)
        requests = self.engine.accept(prompts, params or SamplingParams(), request_id, options)
        states = []
        for request in requests:
            self.engine.compute_prompt(request)
            (sequence,) = request.sequences
            self.engine.advance(request, sequence)
            state = self.state_of(request, sequence)
            self.held[request.request_id] = (request, state)
            if hold_s is not None:
                asyncio.get_running_loop().call_later(hold_s, self.let_go, request)
            states.append(state)
        total = Usage(prompt_tokens=sum(len(r.prompt) for r in requests), completion_tokens=len(requests))
        return PrefillResult(states=tuple(states), usage=total, timing=requests[0].timing())

    def let_go(self, request: Request) -> None:
        """Free what is still held for a request."""
        if self.held.get(request.request_id, (None,))[0] is request:
            del self.held[request.request_id]
            self.engine.release(request)

    def state_of(self, request: Request, sequence: Sequence_) -> DecodeState:
        chunk = KVChunk(
            chunk_id=zlib.crc32(bytes(request.prompt)).to_bytes(8, "big").hex(), request_id=request.request_id,
            layer_start=0, layer_end=1, token_start=0, token_end=len(request.prompt), kv_schema=SCHEMA,
            nbytes=TOKEN_BYTES * len(request.prompt),
        )  # fmt: skip
        return DecodeState(
            request_id=request.request_id, model_id=self.engine.name, instance_id=str(id(self)), params=request.params,
            prompt_token_ids=request.prompt, output_token_ids=tuple(sequence.output), seed=request.seed,
            kv_schema=SCHEMA, chunks=(chunk,), finish_reason=sequence.finish_reason,
        )  # fmt: skip

    async def decode(
        self, state: DecodeState, *, request_id: str, options: RequestOptions | None = None
    ) -> DecodeResult:
        self.engine.check(state.params, (), options)
        if state.request_id not in self.held:
            raise InvalidRequest(f"the KV of {state.request_id!r} is not here")
        request, _ = self.held.pop(state.request_id)
        self.engine.running.append(request)
        if all(s.finish_reason for s in request.sequences):
            self.engine.settle(request)
        else:
            self.engine.work.set()
        return DecodeResult(stream=request.stream)

    async def export_kv(self, state: DecodeState) -> tuple[DecodeState, list[memoryview]]:
        if state.request_id not in self.held:
            raise InvalidRequest(f"the KV of {state.request_id!r} is not here")
        (sequence,) = self.held[state.request_id][0].sequences
        data = b"".join(bytes(self.engine.slot(sequence, i)) for i in range(len(state.prompt_token_ids)))
        chunk = attrs.evolve(state.chunks[0], checksum=checksum(data))
        return attrs.evolve(state, chunks=(chunk,)), [memoryview(data)]

    async def import_kv(self, state: DecodeState, buffers: Sequence[memoryview]) -> DecodeState:
        name = self.engine.name
        if state.model_id != name or state.kv_schema != SCHEMA:
            raise CapabilityMismatch(
                f"KV of {state.model_id}, {state.kv_schema} does not fit {name}, {SCHEMA}"
            )
        self.verify(state, buffers)
        prompt = Prompt(token_ids=state.prompt_token_ids)
        (request,) = self.engine.accept(prompt, state.params, state.request_id)
        (sequence,) = request.sequences
        sequence.seed = request.seed = state.seed
        sequence.pages = [self.engine.free.pop() for _ in range(PAGES_PER_SEQUENCE)]
        for i in range(len(request.prompt)):
            self.engine.slot(sequence, i)[:] = buffers[0][i * TOKEN_BYTES : (i + 1) * TOKEN_BYTES]
        sequence.computed = len(request.prompt)
        request.started = request.first = time.monotonic()
        for token in state.output_token_ids:
            sequence.output.append(token)
            text = sequence.take(token, full=False)
            self.engine.compute(sequence, token)
            request.stream.push(TokenDelta(text, (token,), finish_reason=sequence.finish_reason))
        self.held[request.request_id] = (request, state)
        return attrs.evolve(state, instance_id=str(id(self)))

    def verify(self, state: DecodeState, buffers: Sequence[memoryview]) -> None:
        for chunk, buffer in zip(state.chunks, buffers, strict=True):
            if chunk.nbytes != buffer.nbytes or not verify(buffer, chunk.checksum or ""):
                raise KVCorrupt(f"chunk {chunk.chunk_id}: size or checksum is wrong; export it again")

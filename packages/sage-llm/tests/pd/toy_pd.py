"""A toy engine that can hand its prefilled requests over, and that stops at any point of the hand-over."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Literal

import attrs
from sage_infer.contracts import DecodeResult, PrefillResult, as_prompts
from sage_infer.errors import EngineDead, InvalidRequest
from sage_infer.schemas import (
    CapabilityDescriptor,
    DecodeState,
    KVCacheSchema,
    ReplicaSpec,
    RequestOptions,
    SamplingParams,
    Timing,
    Usage,
)
from sage_infer.sdk import BackendReplica
from sage_llm.manager.models import ServedModel
from toy_engine import MODEL, ToyEngine, ToyExecutor

Stage = Literal["prefill", "export_kv", "import_kv", "decode"]
STAGES: tuple[Stage, ...] = ("prefill", "export_kv", "import_kv", "decode")
_SCHEMA = KVCacheSchema(
    dtype="fp16", page_size=16, num_layers=1, num_heads=1, head_dim=2, scale_dtype="fp32", layout="paged"
)


class ToyPD(ToyEngine):
    """Attributes set by tests:

    stops_at: the call that waits; ``stopped`` is set while it does.
    raises: error of that call, instead.
    held: requests whose KV it holds.
    """

    features = (*ToyEngine.features, "prefill_decode", "kv_export", "kv_import")

    def __init__(self) -> None:
        super().__init__()
        self.stops_at: Stage | None = None
        self.stopped = asyncio.Event()
        self.raises: Exception | None = None
        self.held: set[str] = set()

    def get_capability(self) -> CapabilityDescriptor:
        return attrs.evolve(super().get_capability(), kv_schema=_SCHEMA)

    async def _stage(self, stage: Stage) -> None:
        self.check_running()
        if self.stops_at == stage:
            if self.raises is not None:
                raise self.raises
            self.stopped.set()
            while self.stops_at and not self.crashes:  # noqa: ASYNC110 - a test ends it, or a cancelled caller
                await asyncio.sleep(0.001)
            if self.crashes:
                raise EngineDead("crashed, as the test wants")

    async def prefill(
        self,
        prompts: Any,
        *,
        request_id: str,
        params: SamplingParams | None = None,
        options: RequestOptions | None = None,
        hold_s: float | None = None,
    ) -> PrefillResult:
        self.held.add(request_id)
        try:
            await self._stage("prefill")
        except BaseException:
            self.held.discard(request_id)
            raise
        (prompt,) = as_prompts(prompts)
        tokens = tuple(prompt.token_ids or self.encode(prompt))
        assert params is not None
        state = DecodeState(
            request_id=request_id, model_id="toy", instance_id="toy", prompt_token_ids=tokens,
            output_token_ids=(1,), params=params, seed=0,
        )  # fmt: skip
        usage = Usage(prompt_tokens=len(tokens), completion_tokens=1)
        return PrefillResult(
            states=(state,), usage=usage, timing=Timing(queue_s=0.0, ttft_s=0.0, total_s=0.0)
        )

    async def export_kv(self, state: DecodeState) -> tuple[DecodeState, list[memoryview]]:
        await self._stage("export_kv")
        return state, [memoryview(b"KV")]

    async def import_kv(self, state: DecodeState, buffers: Sequence[memoryview]) -> DecodeState:
        assert [bytes(buffer) for buffer in buffers] == [b"KV"]
        self.held.add(state.request_id)
        await self._stage("import_kv")
        return state

    async def decode(
        self, state: DecodeState, *, request_id: str, options: RequestOptions | None = None
    ) -> DecodeResult:
        if state.request_id not in self.held:
            raise InvalidRequest(f"{state.request_id} is not held")
        await self._stage("decode")
        self.held.remove(state.request_id)
        self.seen.append(f"decode {request_id}")
        (request,) = self.requests.accept(request_id, options=options)
        return DecodeResult(stream=self._begin(request, state.prompt_token_ids, state.params))

    async def abort(self, request_id: str) -> None:
        self.held.discard(request_id)
        await super().abort(request_id)

    def crash(self) -> None:
        self.held.clear()
        super().crash()


class Steps:
    """A gate that lets a number of steps pass."""

    def __init__(self, count: int) -> None:
        self._left = asyncio.Semaphore(count)

    async def wait(self) -> None:
        await self._left.acquire()


class ToyPDExecutor(ToyExecutor):
    """Starts toy engines for prefill and decode; ``by_id`` has the latest of each replica."""

    def __init__(self) -> None:
        super().__init__()
        self.by_id: dict[str, ToyPD] = {}

    async def launch(self, spec: ReplicaSpec) -> BackendReplica:
        engine = self.by_id[spec.replica_id] = ToyPD()
        await engine.start()
        self.engines.append(engine)
        return BackendReplica(spec, engine)


def pd_model(prefill: int = 1, decode: int = 1) -> ServedModel:
    return ServedModel(descriptor=MODEL, backend="toy", replicas=decode, prefill_replicas=prefill)

"""A small deterministic engine: its "KV" is a running hash of the context, and the next token depends on it alone.

It schedules continuously, pages its KV, prefills, exports and imports. The broken engines of ``kit_broken_llm``
override one method each.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import time
import uuid
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from kit_reference_sampling import EOS, VOCABULARY, Sequence_, detokenize, pick, tokenize
from sage_infer.contracts import (
    BufferedTokenStream,
    ChatAnswer,
    DecodeResult,
    EngineStats,
    Health,
    PrefillResult,
    ToolCall,
    as_prompts,
    request_ids,
)
from sage_infer.contracts.kv_store import block_keys
from sage_infer.errors import (
    CapabilityMismatch,
    EngineDead,
    InvalidRequest,
    KVCorrupt,
    ModelNotFound,
    Overloaded,
    RequestCancelled,
    SageInferError,
    UnsupportedFeature,
)
from sage_infer.schemas import (
    CapabilityDescriptor,
    DecodeState,
    KVCacheSchema,
    KVChunk,
    Prompt,
    SamplingParams,
    Timing,
    TokenDelta,
    Usage,
)

ALL_FEATURES = (
    "streaming", "chat", "tool_calls", "tokenize", "logprobs", "seed", "parallel_sampling", "penalties", "min_p",
    "guided_json", "guided_regex", "guided_grammar", "guided_choice", "lora", "priority", "deadline", "prefix_caching",
    "prefill_decode", "kv_export", "kv_import", "quant_profile",
)  # fmt: skip
SCHEMA = KVCacheSchema(dtype="fp32", page_size=8, num_layers=1, num_heads=1, head_dim=1)  # 8 bytes a token
TOKEN_BYTES = 8
LIMIT = 160
BATCH = 4
PAGES_PER_SEQUENCE = LIMIT // SCHEMA.page_size
ORDER = itertools.count()


@attrs.define(eq=False)
class Request:
    """One prompt's sequences and its stream."""

    request_id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    priority: int
    deadline: float | None
    stream: BufferedTokenStream
    sequences: list[Sequence_]
    cached: int = 0
    accepted: float = attrs.field(factory=time.monotonic)
    started: float = 0.0
    first: float = 0.0
    order: int = attrs.field(factory=lambda: next(ORDER))

    def usage(self) -> Usage:
        made = sum(len(s.output) for s in self.sequences)
        return Usage(prompt_tokens=len(self.prompt), completion_tokens=made, cached_tokens=self.cached)

    def timing(self) -> Timing:
        now = time.monotonic()
        steps = max(len(s.output) for s in self.sequences) - 1
        gap = (now - self.first) / steps if steps > 0 else None
        first = self.first or now
        return Timing(
            queue_s=(self.started or now) - self.accepted, ttft_s=first - self.accepted,
            total_s=now - self.accepted, inter_token_s=gap,
        )  # fmt: skip


class ReferenceLLM:
    """The engine. ``features`` is what it claims; ``queue`` how many requests it accepts."""

    name = "reference"
    batch = BATCH

    def __init__(self, features: Sequence[str] = ALL_FEATURES, queue: int = 24) -> None:
        self.features = tuple(features)
        self.queue = queue
        self.pages = bytearray(SCHEMA.bytes_per_page * PAGES_PER_SEQUENCE * self.batch * 2)
        self.free = list(range(len(self.pages) // SCHEMA.bytes_per_page))
        self.total = len(self.free)
        self.running: list[Request] = []
        self.waiting: list[Request] = []
        self.held: dict[str, tuple[Request, DecodeState]] = {}
        self.seen: set[bytes] = set()
        self.counts = {"finished": 0, "prompt_tokens": 0, "output_tokens": 0, "prefix_hit_tokens": 0}
        self.quant_profile_id: str | None = None
        self.state = "new"
        self.task: asyncio.Task[None] | None = None
        self.work = asyncio.Event()

    # --- life

    async def start(self) -> None:
        self.state = "ok"
        self.task = asyncio.get_running_loop().create_task(self.run())

    async def close(self) -> None:
        if self.state != "dead":
            self.state = "dead"
            for request in [*self.running, *self.waiting]:
                self.end(request, RequestCancelled(f"request {request.request_id} ended by close()"))
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task
            self.task = None

    async def health(self) -> Health:
        return Health(status="ok") if self.state == "ok" else Health(status="dead", reason="closed")

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self.running), waiting=len(self.waiting), kv_blocks_total=self.total,
            kv_blocks_free=len(self.free), **self.counts,
        )  # fmt: skip

    def get_capability(self) -> CapabilityDescriptor:
        return CapabilityDescriptor(
            backend_name=self.name, instance_type="general", hardware_backend="cpu", max_batch_size=self.batch,
            max_sequence_length=LIMIT, supported_precisions=("fp32",), kv_schema=SCHEMA, features=self.features,
            quant_profile_id=self.quant_profile_id,
        )  # fmt: skip

    def get_kv_schema(self) -> KVCacheSchema:
        return SCHEMA

    def load_quant_profile(self, profile: Any) -> None:
        if "quant_profile" not in self.features:
            raise UnsupportedFeature("this engine has no quantization")
        if profile.weight_bits != 32:
            raise CapabilityMismatch(f"weight_bits is {profile.weight_bits}, and this engine does 32")
        self.quant_profile_id = profile.profile_id

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Any = None, add_generation_prompt: bool = True
    ) -> Prompt:
        self.needs("chat", True)
        if not messages or any("role" not in m or "content" not in m for m in messages):
            raise InvalidRequest("messages must not be empty, and each needs role and content")
        text = "".join(f"{m['role']}: {m['content']}\n" for m in messages)
        return Prompt(text=text + "assistant: " * add_generation_prompt, add_special_tokens=False)

    def tokenize(self, prompt: Any) -> list[int]:
        return list(tokenize(as_prompts(prompt)[0]))

    def detokenize(self, token_ids: Sequence[int]) -> str:
        if any(not 0 <= token < VOCABULARY for token in token_ids):
            raise InvalidRequest(f"a token id is outside 0 to {VOCABULARY - 1}")
        return "".join(map(detokenize, token_ids))

    def parse_tool_calls(self, text: str, *, tools: Any = None) -> ChatAnswer:
        """Calls look like ``<call>{"name": …, "arguments": …}</call>``."""
        self.needs("tool_calls", True)
        content, mark, rest = text.partition("<call>")
        if not mark:
            return ChatAnswer(content=text)
        call = json.loads(rest.removesuffix("</call>"))
        found = ToolCall(name=call["name"], arguments=json.dumps(call["arguments"]))
        return ChatAnswer(content=content, tool_calls=(found,))

    # --- acceptance

    def needs(self, feature: str, asked: bool) -> None:
        if asked and feature not in self.features:
            raise UnsupportedFeature(f"this instance does not do {feature}; ask one that claims it")

    def check(self, params: SamplingParams, prompts: Sequence[Prompt], priority: int, deadline: Any) -> None:
        self.needs("logprobs", params.logprobs is not None)
        self.needs("seed", params.seed is not None)
        self.needs("parallel_sampling", params.n > 1)
        penalties = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
        self.needs("penalties", penalties != (1, 0, 0))
        self.needs("min_p", params.min_p > 0)
        if params.guided is not None:
            for feature, value in zip(
                ("json", "regex", "grammar", "choice"),
                attrs.astuple(params.guided, recurse=False),
                strict=True,
            ):
                self.needs(f"guided_{feature}", value is not None)
        self.needs("lora", params.adapter is not None)
        self.needs("priority", priority != 0)
        self.needs("deadline", deadline is not None)
        self.needs("multimodal", any(p.media for p in prompts))
        if params.adapter is not None:
            raise ModelNotFound(f"no adapter {params.adapter!r}; there are none")

    def check_tokens(self, tokens: tuple[int, ...]) -> None:
        if len(tokens) + 1 > LIMIT:
            raise InvalidRequest(f"prompt has {len(tokens)} tokens, the limit is {LIMIT} with the output")
        if max(tokens) >= VOCABULARY:
            raise InvalidRequest(f"token {max(tokens)} is not in the vocabulary of {VOCABULARY}")

    def check_id(self, request_id: str) -> None:
        if any(request_id == r.request_id for r in [*self.running, *self.waiting]):
            raise InvalidRequest(f"request id {request_id!r} is in use")

    def check_queue(self, count: int) -> None:
        if len(self.running) + len(self.waiting) + count > self.queue:
            raise Overloaded("the queue is full", retry_after=0.1)

    def accept(
        self,
        prompts: Any,
        params: SamplingParams,
        request_id: str | None,
        priority: int = 0,
        deadline: Any = None,
    ) -> list[Request]:
        if self.state != "ok":
            raise EngineDead("the engine has stopped; open a new one")
        several = as_prompts(prompts)
        if not several:
            raise InvalidRequest("no prompts were given")
        self.check(params, several, priority, deadline)
        tokens = [tokenize(p) for p in several]
        for one in tokens:
            self.check_tokens(one)
        ids = request_ids(request_id or uuid.uuid4().hex, len(several))
        for one_id in ids:
            self.check_id(one_id)
        self.check_queue(len(several))
        made = []
        for one_id, one in zip(ids, tokens, strict=True):
            seed = self.seed_of(params)
            stream = BufferedTokenStream(one_id, lambda one_id=one_id: self.drop(one_id))
            sequences = [Sequence_(index=i, prompt=one, params=params, seed=seed) for i in range(params.n)]
            until = None if deadline is None else time.monotonic() + deadline
            made.append(Request(one_id, one, params, seed, priority, until, stream, sequences))
        return made

    def seed_of(self, params: SamplingParams) -> int:
        return params.seed if params.seed is not None else uuid.uuid4().int >> 66

    async def generate(
        self, prompts: Any, params: SamplingParams, *, request_id: str | None = None, priority: int = 0,
        deadline: float | None = None,
    ) -> list[BufferedTokenStream]:  # fmt: skip
        requests = self.accept(prompts, params, request_id, priority, deadline)
        self.waiting += requests
        self.work.set()
        return [request.stream for request in requests]

    async def abort(self, request_id: str) -> None:
        for request in [*self.running, *self.waiting]:
            if self.belongs(request.request_id, request_id):
                self.end(request, RequestCancelled(f"request {request.request_id} was aborted"))
        for held in [h for h in self.held if self.belongs(h, request_id)]:
            self.release(self.held.pop(held)[0])

    def belongs(self, part: str, request_id: str) -> bool:
        return part == request_id or part.startswith(f"{request_id}/")

    def drop(self, request_id: str) -> None:
        """The consumer gave up."""
        for request in [*self.running, *self.waiting]:
            if request.request_id == request_id:
                self.forget(request)

    # --- the engine

    async def run(self) -> None:
        while True:
            if not self.running and not self.waiting:
                self.work.clear()
                await self.work.wait()
            self.expire()
            self.admit()
            for request in list(self.running):
                self.step(request)
            await asyncio.sleep(0)

    def expire(self) -> None:
        for request in [*self.running, *self.waiting]:
            if request.deadline is not None and time.monotonic() > request.deadline:
                self.end(request, RequestCancelled(f"request {request.request_id} is past its deadline"))

    def admit(self) -> None:
        self.waiting.sort(key=lambda r: (r.priority, r.order))
        while self.waiting and len(self.running) < self.batch:
            needed = PAGES_PER_SEQUENCE * self.waiting[0].params.n
            if needed > len(self.free):
                return
            self.running.append(request := self.waiting.pop(0))
            self.compute_prompt(request)

    def compute_prompt(self, request: Request) -> None:
        request.started = time.monotonic()
        keys = list(block_keys(self.name, SCHEMA, request.prompt[:-1]))
        request.cached = SCHEMA.page_size * sum(key in self.seen for key in keys)
        self.seen.update(keys)
        self.counts["prompt_tokens"] += len(request.prompt)
        self.counts["prefix_hit_tokens"] += request.cached
        for sequence in request.sequences:
            sequence.pages = [self.free.pop() for _ in range(PAGES_PER_SEQUENCE)]
            for token in request.prompt:
                self.compute(sequence, token)

    def slot(self, sequence: Sequence_, position: int) -> memoryview:
        page = sequence.pages[position // SCHEMA.page_size]
        start = page * SCHEMA.bytes_per_page + position % SCHEMA.page_size * TOKEN_BYTES
        return memoryview(self.pages)[start : start + TOKEN_BYTES]

    def compute(self, sequence: Sequence_, token: int) -> None:
        """Write one token's KV, which depends on the one before it."""
        position = sequence.computed
        before = bytes(self.slot(sequence, position - 1)) if position else b""
        entry = hashlib.blake2b(before + bytes([token]), digest_size=TOKEN_BYTES).digest()
        self.slot(sequence, position)[:] = entry
        sequence.computed += 1

    def step(self, request: Request) -> None:
        for sequence in request.sequences:
            if sequence.finish_reason is None:
                self.advance(request, sequence)
        self.settle(request)

    def settle(self, request: Request) -> None:
        if request in self.running and all(s.finish_reason for s in request.sequences):
            self.forget(request)
            request.stream.finish(request.sequences[0].finish_reason, request.usage(), request.timing())  # type: ignore[arg-type]

    def advance(self, request: Request, sequence: Sequence_) -> None:
        """One token more for one sequence."""
        token, logprob = self.choose(sequence)
        request.first = request.first or time.monotonic()
        self.counts["output_tokens"] += 1
        sequence.output.append(token)
        full = len(sequence.prompt) + len(sequence.output) >= LIMIT
        text = sequence.take(token, full)
        if sequence.finish_reason is None:
            self.compute(sequence, token)
        request.stream.push(
            TokenDelta(
                text, (token,), sequence.index, (logprob,) if logprob else None, sequence.finish_reason
            )
        )

    def choose(self, sequence: Sequence_) -> tuple[int, Any]:
        return pick(bytes(self.slot(sequence, sequence.computed - 1)), sequence)

    def end(self, request: Request, error: SageInferError) -> None:
        self.forget(request)
        request.stream.fail(error)

    def forget(self, request: Request) -> None:
        """Take a request out, wherever it is, and free what it holds."""
        for queue in (self.running, self.waiting):
            if request in queue:
                queue.remove(request)
        self.counts["finished"] += 1
        self.release(request)

    def release(self, request: Request) -> None:
        for sequence in request.sequences:
            self.free += sequence.pages
            sequence.pages = []

    # --- prefill, decode, transfer

    async def prefill(
        self, prompts: Any, *, request_id: str, params: SamplingParams | None = None
    ) -> PrefillResult:
        self.needs("prefill_decode", True)
        requests = self.accept(prompts, params or SamplingParams(), request_id)
        states = []
        for request in requests:
            self.compute_prompt(request)
            (sequence,) = request.sequences
            self.advance(request, sequence)
            state = self.state_of(request, sequence)
            self.held[request.request_id] = (request, state)
            states.append(state)
        total = Usage(prompt_tokens=sum(len(r.prompt) for r in requests), completion_tokens=len(requests))
        return PrefillResult(states=tuple(states), usage=total, timing=requests[0].timing())

    def state_of(self, request: Request, sequence: Sequence_) -> DecodeState:
        chunk = KVChunk(
            chunk_id=zlib.crc32(bytes(request.prompt)).to_bytes(8, "big").hex(), request_id=request.request_id,
            layer_start=0, layer_end=1, token_start=0, token_end=len(request.prompt), kv_schema=SCHEMA,
            nbytes=TOKEN_BYTES * len(request.prompt),
        )  # fmt: skip
        return DecodeState(
            request_id=request.request_id, model_id=self.name, instance_id=str(id(self)), params=request.params,
            prompt_token_ids=request.prompt, output_token_ids=tuple(sequence.output), seed=request.seed,
            kv_schema=SCHEMA, chunks=(chunk,), finish_reason=sequence.finish_reason,
        )  # fmt: skip

    async def decode(self, state: DecodeState, *, request_id: str) -> DecodeResult:
        if state.request_id not in self.held:
            raise InvalidRequest(f"the KV of {state.request_id!r} is not here")
        request, _ = self.held.pop(state.request_id)
        if all(s.finish_reason for s in request.sequences):
            self.running.append(request)
            self.settle(request)
        else:
            self.running.append(request)
            self.work.set()
        return DecodeResult(stream=request.stream)

    async def export_kv(self, state: DecodeState) -> tuple[DecodeState, list[memoryview]]:
        if state.request_id not in self.held:
            raise InvalidRequest(f"the KV of {state.request_id!r} is not here")
        (sequence,) = self.held[state.request_id][0].sequences
        data = b"".join(bytes(self.slot(sequence, i)) for i in range(len(state.prompt_token_ids)))
        chunk = attrs.evolve(state.chunks[0], checksum=f"crc32:{zlib.crc32(data):08x}")
        return attrs.evolve(state, chunks=(chunk,)), [memoryview(data)]

    async def import_kv(self, state: DecodeState, buffers: Sequence[memoryview]) -> DecodeState:
        if state.model_id != self.name or state.kv_schema != SCHEMA:
            raise CapabilityMismatch(
                f"KV of {state.model_id}, {state.kv_schema} does not fit {self.name}, {SCHEMA}"
            )
        self.verify(state, buffers)
        (request,) = self.accept(Prompt(token_ids=state.prompt_token_ids), state.params, state.request_id)
        (sequence,) = request.sequences
        sequence.seed = request.seed = state.seed
        sequence.pages = [self.free.pop() for _ in range(PAGES_PER_SEQUENCE)]
        for i in range(len(request.prompt)):
            self.slot(sequence, i)[:] = buffers[0][i * TOKEN_BYTES : (i + 1) * TOKEN_BYTES]
        sequence.computed = len(request.prompt)
        request.started = request.first = time.monotonic()
        for token in state.output_token_ids:
            sequence.output.append(token)
            text = sequence.take(token, full=False)
            self.compute(sequence, token)
            request.stream.push(TokenDelta(text, (token,), finish_reason=sequence.finish_reason))
        self.held[request.request_id] = (request, state)
        return attrs.evolve(state, instance_id=str(id(self)))

    def verify(self, state: DecodeState, buffers: Sequence[memoryview]) -> None:
        for chunk, buffer in zip(state.chunks, buffers, strict=True):
            if chunk.nbytes != buffer.nbytes or chunk.checksum != f"crc32:{zlib.crc32(buffer):08x}":
                raise KVCorrupt(f"chunk {chunk.chunk_id}: size or checksum is wrong; export it again")


__all__ = ["ALL_FEATURES", "BATCH", "EOS", "LIMIT", "ReferenceLLM", "Request", "detokenize"]

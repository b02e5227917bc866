"""A small deterministic engine: its "KV" is a running hash of the context, and the next token depends on it alone.

It schedules continuously, pages its KV, prefills, exports and imports. The broken engines of ``kit_broken``
override one method each.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
import uuid
from collections.abc import Sequence
from typing import Any

from sage_infer.contracts import BufferedTokenStream, Health, ProgressReport, as_prompts, request_ids
from sage_infer.errors import (
    CapabilityMismatch,
    EngineDead,
    InvalidRequest,
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
    Prompt,
    RequestOptions,
    SamplingParams,
    TokenDelta,
)
from sage_infer.sdk import check_claims

from kit_reference.chat import Chats
from kit_reference.handover import HandsOver
from kit_reference.reporting import PrefixCache, Reports
from kit_reference.request import LIMIT, PAGES_PER_SEQUENCE, SCHEMA, TOKEN_BYTES, Request
from kit_reference.resuming import Resumes
from kit_reference.sampling import VOCABULARY, Sequence_, pick, tokenize

__all__ = ["ALL_FEATURES", "ReferenceLLM"]

ALL_FEATURES = (
    "streaming", "chat", "tool_calls", "tokenize", "template_variables", "logprobs", "seed", "parallel_sampling",
    "penalties", "min_p", "guided_json", "guided_regex", "guided_grammar", "guided_choice", "lora", "priority",
    "deadline", "tenant", "session", "service_class", "slo", "chain", "cache_salt", "retention", "trace",
    "prefix_caching", "prefill_decode", "kv_export", "kv_import", "kv_events", "reports", "quant_profile",
    "resume",
)  # fmt: skip
BATCH = 4
CACHED = 64  # blocks of the prefix cache


class ReferenceLLM(Chats, HandsOver, Reports, Resumes):
    """The engine. ``features`` is what it claims; ``queue`` how many requests it accepts."""

    name = "reference"
    batch = BATCH

    def __init__(self, features: Sequence[str] = ALL_FEATURES, queue: int = 24) -> None:
        self.engine = self
        self.features = tuple(features)
        self.queue = queue
        self.pages = bytearray(SCHEMA.bytes_per_page * PAGES_PER_SEQUENCE * self.batch * 2)
        self.free = list(range(len(self.pages) // SCHEMA.bytes_per_page))
        self.total = len(self.free)
        self.running: list[Request] = []
        self.waiting: list[Request] = []
        self.held: dict[str, tuple[Request, DecodeState]] = {}
        self.cache = PrefixCache(CACHED)
        self.counts = {
            "finished": 0,
            "prompt_tokens": 0,
            "output_tokens": 0,
            "prefix_hit_tokens": 0,
            "steps": 0,
        }
        self.quant_profile_id: str | None = None
        self.state = "new"
        self.task: asyncio.Task[None] | None = None
        self.work = asyncio.Event()
        self.progress: ProgressReport = lambda stage, share: None

    # --- life

    def on_progress(self, report: ProgressReport) -> None:
        self.progress = report

    async def start(self) -> None:
        self.progress("reading the model", 0.5)
        self.state = "ok"
        self.cache.generation = time.time_ns()
        self.task = asyncio.get_running_loop().create_task(self.run())

    async def close(self) -> None:
        if self.state != "dead":
            self.state = "dead"
            self.cache.wake()
            for request in [*self.running, *self.waiting]:
                self.end(
                    request, RequestCancelled(f"request {request.request_id} ended by close()", by="close")
                )
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task
            self.task = None

    async def health(self) -> Health:
        if self.state == "new":
            return Health(status="starting", reason="start() has not been called")
        return Health(status="ok") if self.state == "ok" else Health(status="dead", reason="closed")

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

    # --- acceptance

    def check(
        self, params: SamplingParams, prompts: Sequence[Prompt], options: RequestOptions | None
    ) -> None:
        check_claims(self.features, backend=self.name, params=params, options=options, prompts=prompts)
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
        options: RequestOptions | None = None,
    ) -> list[Request]:
        if self.state != "ok":
            raise EngineDead("the engine has stopped; open a new one")
        several = as_prompts(prompts)
        if not several:
            raise InvalidRequest("no prompts were given")
        self.check(params, several, options)
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
            made.append(Request(one_id, one, params, seed, options or RequestOptions(), stream, sequences))
        return made

    def seed_of(self, params: SamplingParams) -> int:
        return params.seed if params.seed is not None else uuid.uuid4().int >> 66

    async def generate(
        self, prompts: Any, params: SamplingParams, *, request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> list[BufferedTokenStream]:  # fmt: skip
        requests = self.accept(prompts, params, request_id, options)
        self.waiting += requests
        self.work.set()
        return [request.stream for request in requests]

    async def abort(self, request_id: str) -> None:
        for request in [*self.running, *self.waiting]:
            if self.belongs(request.request_id, request_id):
                self.end(request, RequestCancelled(f"request {request.request_id} was aborted"))
        for held in [h for h in self.held if self.belongs(h, request_id)]:
            self.let_go(self.held[held][0])

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
            self.counts["steps"] += 1
            for request in list(self.running):
                self.step(request)
            await asyncio.sleep(0)

    def expire(self) -> None:
        for request in [*self.running, *self.waiting]:
            if request.is_late:
                error = RequestCancelled(f"request {request.request_id} is past its deadline", by="deadline")
                self.end(request, error)

    def admit(self) -> None:
        self.waiting.sort(key=lambda r: (r.options.priority, r.order))
        while self.waiting and len(self.running) < self.batch:
            needed = PAGES_PER_SEQUENCE * self.waiting[0].params.n
            if needed > len(self.free):
                return
            self.running.append(request := self.waiting.pop(0))
            self.compute_prompt(request)

    def compute_prompt(self, request: Request) -> None:
        request.started = time.monotonic()
        request.cached = self.cache.take(self.name, request.prompt, request.options.cache_salt.encode())
        self.counts["prompt_tokens"] += len(request.prompt)
        self.counts["prefix_hit_tokens"] += request.cached
        for sequence in request.sequences:
            sequence.pages = [self.free.pop() for _ in range(PAGES_PER_SEQUENCE)]
            for token in (*request.prompt, *sequence.output):
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

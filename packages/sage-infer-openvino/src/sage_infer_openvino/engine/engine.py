"""The engine thread: accepts requests, runs steps, and passes each step's output to the consumers' event loops.

All state of sequences and blocks belongs to this thread. Other threads put commands into its inbox; one
``call_soon_threadsafe`` per step and event loop returns the results.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from sage_infer.call_thread import run_into
from sage_infer.contracts import BufferedTokenStream, EngineStats
from sage_infer.errors import (
    EngineDead,
    InvalidRequest,
    OutOfMemory,
    Overloaded,
    RequestCancelled,
    SageInferError,
)
from sage_infer.schemas import RequestOptions

from sage_infer_openvino.engine.block_pool import BlockPool
from sage_infer_openvino.engine.kv_events import KVEventLog
from sage_infer_openvino.engine.load import load_of
from sage_infer_openvino.engine.outbox import Outbox
from sage_infer_openvino.engine.pacing import Pacer
from sage_infer_openvino.engine.page_store import NewKeyChain, PageStore
from sage_infer_openvino.engine.paged_runner import PagedRunner
from sage_infer_openvino.engine.request_queue import RequestQueue
from sage_infer_openvino.engine.requests import due_at
from sage_infer_openvino.engine.sampler import Sampler
from sage_infer_openvino.engine.scheduler import Scheduler
from sage_infer_openvino.engine.sequence import EngineRequest, SequenceState
from sage_infer_openvino.engine.stepper import Stepper

__all__ = ["DecoderEngine"]

T = TypeVar("T")

_KEPT_EXPIRED = 1024  # expired holds remembered for error messages
_SMALLEST_CHUNK = 16  # minimum prompt tokens per step, however slow


class DecoderEngine:
    """Runs one model. Unless noted otherwise, methods may be called from any thread."""

    def __init__(
        self,
        runner: PagedRunner,
        sampler: Sampler,
        eos_token_ids: tuple[int, ...],
        *,
        max_batch_size: int,
        step_tokens: int,
        max_queue: int,
        decode_slowdown: float = 2.5,
        key_chain: NewKeyChain | None = None,
        events: KVEventLog | None = None,
        pages: PageStore | None = None,
    ) -> None:
        self.runner = runner
        self.events = events
        self.pool = BlockPool(runner.num_blocks, None if events is None else events.removed)
        self._scheduler = Scheduler(
            self.pool,
            block_size=runner.block_size,
            max_batch_size=max_batch_size,
            step_tokens=step_tokens,
            key_chain=key_chain,
            events=events,
            pages=pages,
        )
        self._stepper = Stepper(runner, sampler, frozenset(eos_token_ids), self._scheduler.computed)
        self._pacer = Pacer(decode_slowdown, smallest=_SMALLEST_CHUNK)
        self._queue = RequestQueue(max_queue)
        self._outbox = Outbox()
        self._requests: dict[str, EngineRequest] = {}
        self._arriving: dict[int, EngineRequest] = {}  # not yet accepted by the engine thread
        self._held: dict[str, EngineRequest] = {}
        self._expired: dict[str, float] = {}  # recently expired holds, with their length in seconds
        self._finished = self._steps = 0
        self._step_s: float | None = None
        self._thread = threading.Thread(target=self._run, name="sage-openvino-engine", daemon=True)
        self._thread.start()

    def submit(self, requests: list[EngineRequest]) -> None:
        """Accept requests, all of them or none.

        Raises:
            EngineDead: the engine has stopped.
            InvalidRequest: a request with that id is open.
            Overloaded: the queue is full.
        """
        arriving = {id(request): request for request in requests}
        self._arriving.update(arriving)
        try:
            self._queue.submit([request.request_id for request in requests], lambda: self._accept(requests))
        except SageInferError:
            for key, request in arriving.items():
                request.is_over = True
                del self._arriving[key]
            raise

    def cancel(self, request_id: str, who: EngineRequest | BufferedTokenStream) -> None:
        """End the request given by itself or by its stream, unless it has ended; others with that id are unaffected."""

        def command() -> None:
            request = self._requests.get(request_id)
            if request is not None and who in (request, request.stream):
                message = f"request {request_id} was cancelled by its caller"
                self._end(request, RequestCancelled(message, by="caller"))

        self._queue.post(command)

    async def call(self, function: Callable[[], T]) -> T:
        """Run ``function`` in the engine thread between two steps; skipped if the caller is cancelled first.

        Raises:
            EngineDead: the engine has stopped.
        """
        future: Future[T] = Future()
        self._queue.call(lambda: run_into(future, function))
        return await asyncio.wrap_future(future)

    async def abort(self, request_id: str) -> None:
        """End a request and its parts ``id/0``, ``id/1``, … with ``RequestCancelled``; unknown ids are ignored."""
        with contextlib.suppress(EngineDead):  # then they have ended
            await self.call(lambda: self._abort(request_id))

    def stats(self) -> EngineStats:
        load = load_of(self._scheduler, list(self._arriving.values()))
        return EngineStats(
            running=load.running,
            waiting=load.waiting,
            kv_blocks_total=self.pool.total,
            kv_blocks_free=self.pool.free,
            finished=self._finished,
            prompt_tokens=self._stepper.prompt_tokens,
            output_tokens=self._stepper.output_tokens,
            prefix_hit_tokens=self._scheduler.prefix_hit_tokens,
            waiting_prompt_tokens=load.waiting_prompt_tokens,
            running_context_tokens=load.running_context_tokens,
            oldest_wait_s=load.oldest_wait_s,
            steps=self._steps,
            step_s=self._step_s,
            kv_blocks_cached=self.pool.cached,
            extensions={"preemptions": self._scheduler.preemptions, "held": len(self._held)},
        )

    def check_room(self, requests: list[EngineRequest]) -> None:
        """Reject prompts whose KV cannot be held simultaneously.

        Raises:
            OutOfMemory: there are too few blocks even in an idle engine.
        """
        blocks = self._scheduler.blocks_for(requests)
        if blocks > self.pool.total:
            raise OutOfMemory(
                f"the KV of these {len(requests)} prompts needs {blocks} blocks, but there are only "
                f"{self.pool.total}; prefill fewer together, or raise kv_cache_gb"
            )

    @property
    def stopped(self) -> SageInferError | None:
        """Why the engine stopped; None while it runs."""
        return self._queue.stopped

    def close(self) -> None:
        """End every request with ``RequestCancelled`` and stop the thread. Safe to call twice."""
        self._queue.post(None)
        self._thread.join()

    # --- in the engine thread

    def _run(self) -> None:
        reason: SageInferError = RequestCancelled("the backend was closed", by="close")
        try:
            busy = False
            while self._queue.run_commands(wait_s=None if busy else self._wait_time()):
                self._expire()
                step = self._scheduler.next_step(self._pacer.prompt_tokens, self._pacer)
                if step:
                    self._execute(step)
                busy = bool(step) or self._give_up_prefill()
                self._deliver()
        except BaseException as error:  # on any error, no caller may be left waiting
            reason = EngineDead(f"the engine stopped with {type(error).__name__}: {error}")
            reason.__cause__ = error
        self._stop(reason)

    def _wait_time(self) -> float:
        """Time to wait for a command when nothing runs.

        Waiting requests then need blocks that are held for a ``decode``; only their deadline, or the end
        of a hold, can occur without a command.
        """
        ends = [r.deadline for r in self._requests.values() if r.deadline is not None]
        ends += [r.held_until for r in self._held.values()]
        return min(ends, default=math.inf) - time.perf_counter() + 0.001

    def _accept(self, requests: list[EngineRequest]) -> None:
        for request in requests:
            self._requests[request.request_id] = request
            for sequence in request.sequences:
                self._scheduler.add(sequence)
            del self._arriving[id(request)]

    def _expire(self) -> None:
        now = time.perf_counter()
        late = [r for r in self._requests.values() if r.deadline is not None and r.deadline < now]
        for request in late:
            message = f"request {request.request_id} missed its deadline"
            self._end(request, RequestCancelled(message, by="deadline"))
        for request in [r for r in self._held.values() if r.held_until < now]:
            self._expired[request.request_id] = request.hold_s
            if len(self._expired) > _KEPT_EXPIRED:
                del self._expired[next(iter(self._expired))]
            message = f"request {request.request_id} was held for {request.hold_s:g} s without a decode"
            self._end(request, RequestCancelled(message, by="deadline"))

    def _execute(self, step: list[tuple[SequenceState, int]]) -> None:
        decoding = sum(count == 1 for _, count in step)
        started = time.perf_counter()
        new, failed = self._stepper.run(step)
        prompt_tokens = sum(count for _, count in step) - decoding
        self._step_s = time.perf_counter() - started
        self._steps += 1
        self._pacer.ran(decoding, prompt_tokens, self._step_s)
        for request, error in failed.items():
            self._end(request, error)
        for sequence, delta in new:
            request = sequence.request
            if request.hold:
                request.first_delta = delta
            else:
                self._outbox.delta(request, delta)
            if sequence.finish_reason is not None:
                self._scheduler.remove(sequence)
                if all(other.finish_reason is not None for other in request.sequences):
                    self._end(request, None)
            elif request.hold:
                self._scheduler.detach(sequence)
                self._hold(request)
                self._outbox.held(request)

    def _hold(self, request: EngineRequest) -> None:
        """Keep a request and its blocks for ``decode``. Its deadline was prefill's; ``hold_s`` counts from now."""
        self._held[request.request_id] = request
        self._expired.pop(request.request_id, None)
        request.deadline = None
        request.held_until = time.perf_counter() + request.hold_s

    def _end(self, request: EngineRequest, error: SageInferError | None) -> None:
        for sequence in request.sequences:
            self._scheduler.remove(sequence)
        request.is_over, request.fetched = True, None
        self._requests.pop(request.request_id, None)
        self._held.pop(request.request_id, None)
        self._finished += 1
        self._outbox.ended(request, error)
        self._queue.close(request.request_id)

    def _give_up_prefill(self) -> bool:
        """If prefills of several prompts deadlock, each holding blocks and needing more, end the latest.

        Its caller cannot, as it has no state to decode or abort yet. Returns whether one was ended.
        """
        if not self._scheduler.waiting:
            return False
        waiting = [r for r in self._requests.values() if r.hold and r.request_id not in self._held]
        stuck = [r for r in waiting if any(s.request_id in self._held for s in r.siblings)]
        if not stuck:
            return False
        latest = max(stuck, key=lambda request: request.arrived_at)
        message = f"not enough free KV blocks to hold all prompts of prefill {latest.request_id}; retry later"
        for request in latest.siblings:
            if self._requests.get(request.request_id) is request:
                self._end(request, Overloaded(message, retry_after=self._queue.retry_after))
        return True

    def _deliver(self) -> None:
        if self.events is not None:
            self.events.flush()
        for request in self._outbox.send():
            if self._requests.get(request.request_id) is request:
                self._end(request, RequestCancelled("its event loop was closed", by="caller"))

    def _stop(self, reason: SageInferError) -> None:
        for command in self._queue.stop(reason):
            command()  # requests that arrived meanwhile are ended below; calls return their own result
        for request in list(self._requests.values()):
            self._end(request, reason)
        self._deliver()
        if self.events is not None:
            self.events.close()

    # --- in the engine thread, through call()

    def _abort(self, request_id: str) -> None:
        prefix = request_id + "/"
        for other in [i for i in self._requests if i == request_id or i.startswith(prefix)]:
            self._end(self._requests[other], RequestCancelled(f"request {other} was aborted", by="caller"))

    def held(self, request_id: str) -> EngineRequest:
        """A request between prefill and decode.

        Raises:
            InvalidRequest: there is none with this id.
        """
        if request_id in self._expired:
            raise InvalidRequest(
                f"request {request_id!r} was held for {self._expired[request_id]:g} s before its KV was freed; "
                "prefill it again, with a longer hold_s if decode arrives later"
            )
        if request_id not in self._held:
            raise InvalidRequest(
                f"no prefilled request {request_id!r}; it was decoded, aborted, or prefilled in another instance"
            )
        return self._held[request_id]

    def continue_held(
        self,
        request: EngineRequest,
        request_id: str,
        stream: BufferedTokenStream,
        loop: asyncio.AbstractEventLoop,
        *,
        options: RequestOptions | None = None,
    ) -> None:
        """Continue a held request under another id; ``stream`` (of ``loop``) receives its first token first.

        Priority and deadline come from ``options``; without options, the priority is that of prefill.

        Raises:
            InvalidRequest: the new id is in use.
        """
        if options is not None:
            salt = options.cache_salt.encode()
            if salt and salt != request.salt and not request.is_private:
                raise InvalidRequest(
                    f"request {request.request_id!r} was prefilled with another cache_salt; decode it with the same "
                    "one, or without any"
                )
        self._queue.rename(request.request_id, request_id)
        del self._held[request.request_id], self._requests[request.request_id]
        request.request_id, request.stream, request.loop = request_id, stream, loop
        request.hold, request.on_held, request.siblings = False, None, []
        request.call = object()
        if options is not None:
            request.priority, request.deadline = options.priority, due_at(options)
            request.tenant = options.tenant
        request.clock.restart()
        self._requests[request_id] = request
        if request.first_delta is not None:
            self._outbox.delta(request, request.first_delta)
        for sequence in request.sequences:
            self._scheduler.add(sequence)

    def adopt(self, request: EngineRequest, blocks: list[memoryview], kv_tokens: int) -> None:
        """Hold a request with imported KV; ``blocks`` are the bytes of its blocks.

        Raises:
            InvalidRequest: its id is in use.
            Overloaded: there are not enough free blocks now, or too many open requests.
        """
        if len(blocks) > self.pool.free:
            message = f"{len(blocks)} KV blocks are needed, but only {self.pool.free} are free; retry later"
            raise Overloaded(message, retry_after=self._queue.retry_after)
        self._queue.open(request.request_id)
        (sequence,) = request.sequences
        sequence.blocks = self.pool.allocate(len(blocks))
        self._requests[request.request_id] = request
        self._hold(request)
        for block, data in zip(sequence.blocks, blocks, strict=True):
            self.runner.write_block(block, data)
        self._scheduler.computed(sequence, kv_tokens)

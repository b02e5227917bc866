"""Dispatch of generating requests: placement, attempts, retries, migration, and the isolation of poison requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from sage_infer.compat import wait_for
from sage_infer.contracts import BufferedTokenStream
from sage_infer.errors import EngineDead, Overloaded, RequestCancelled, SageInferError
from sage_infer.schemas import TokenDelta

from sage_llm.manager.calls.batch import BatchLimits
from sage_llm.manager.calls.call import ManagedCall
from sage_llm.manager.calls.dispatcher import CallDispatcher
from sage_llm.manager.classify import as_sage_error, meaning
from sage_llm.manager.live_instance import Attempt, LiveInstance
from sage_llm.manager.migration import (
    MigrationBudget,
    NotMigratable,
    PoisonRequest,
    RecoveryLimits,
    open_stream,
)
from sage_llm.manager.pd import HandOvers, HandOverSettings
from sage_llm.manager.placing import Placement
from sage_llm.manager.poison import Quarantine, Trials
from sage_llm.manager.preemption import to_pause
from sage_llm.manager.request import ManagedRequest
from sage_llm.manager.telemetry.attempts import AttemptSpans
from sage_llm.manager.telemetry.counts import RequestCounts
from sage_llm.replicas.spans import Spans
from sage_llm.tasks import Tasks

__all__ = ["Dispatcher"]


class Dispatcher:
    """Runs every generating request to exactly one end; ``calls`` does so for embedding and reranking requests.

    Args:
        placement: chooses instances.
        on_lost: called with an instance and the reason when one of its calls shows that it has ended.
        stranded: returns the error of a request that has waited so long without an instance of a model; None if it may
            continue to wait.
        spans: traces each attempt.
    """

    def __init__(
        self,
        placement: Placement,
        *,
        on_lost: Callable[[LiveInstance, str], object],
        stranded: Callable[[str, float], SageInferError | None],
        limits: RecoveryLimits | None = None,
        batches: BatchLimits | None = None,
        hand_over: HandOverSettings | None = None,
        spans: Spans | None = None,
    ) -> None:
        self.placement, self.limits = placement, limits or RecoveryLimits()
        self.calls = CallDispatcher(placement, pump=self.pump, on_lost=on_lost, limits=batches, spans=spans)
        self.budget, self.quarantine = MigrationBudget(), Quarantine()
        self.open: dict[str, ManagedRequest] = {}
        self.ends = {"finished": 0, "cancelled": 0, "refused": 0, "failed": 0}
        self.migrations = self.retries = self.pauses = 0
        self._on_lost, self._stranded = on_lost, stranded
        self.hand_overs = HandOvers(placement, hand_over or HandOverSettings(), self._note_failure)
        self.trials = Trials(placement)
        self._settled_at = 0.0
        self._is_due = False  # ``pump`` will be called soon
        self.counts, self._spans = RequestCounts(), AttemptSpans(spans)
        self._tasks = Tasks()

    # --- arrival and end

    async def run(self, request: ManagedRequest) -> BufferedTokenStream:
        """Dispatch a request, and return its stream once an instance has accepted it.

        Raises:
            SageInferError: it was refused.
        """
        if request.outcome is not None:  # cancelled while other prompts of its call were tokenized
            await request.accepted
        self.open[request.request_id] = request
        self.budget.accepted()
        now = time.monotonic()
        try:
            self.quarantine.check(request)
            may_send = now >= self._settled_at and not self.trials.waiting
            found = self.placement.arrive(request, now, may_send=may_send)
            if found is None:
                self.pump()
            else:
                self._send(request, found[1], found[2], now)
            await request.accepted
        except SageInferError as error:
            request.fail(error)
            raise
        except BaseException:  # cancelled, or a fault, after which it must not stay open
            self.cancel(request)
            raise
        return request.stream

    def ended(self, request: ManagedRequest) -> None:
        """Called by the request when it ends: free what it holds."""
        assert request.outcome is not None
        self.ends[request.outcome] += 1
        self.counts.ended(request)
        self.open.pop(request.request_id, None)  # it may end before it runs
        self.placement.ended(request)
        self.trials.ended(request)
        self._drop_attempt(request)
        self._pump_soon()

    def cancel(self, request: ManagedRequest, error: RequestCancelled | None = None) -> None:
        """End a request early."""
        told = f"request {request.request_id} was cancelled by its caller"
        request.fail(error or RequestCancelled(told, by="caller"))

    def _drop_attempt(self, request: ManagedRequest) -> None:
        """Fence the current attempt: whatever it still says is dropped."""
        attempt, request.attempt = request.attempt, None
        if attempt is not None:
            self._spans.end(request, attempt)
            self.placement.left(request)
            attempt.instance.attempts.pop(attempt.request_id, None)
            attempt.instance.left()
            self.trials.passed(request, attempt.instance)
            attempt.cancel()

    # --- placement

    def _wait_for_instance(self, request: ManagedRequest) -> None:
        if request.is_suspect:
            self.trials.add(request)
        else:
            self.placement.enqueue(request, time.monotonic())

    def _pump_soon(self) -> None:
        """Dispatch waiting requests after this turn of the event loop, in which several may end."""
        if not self._is_due and (self.trials.waiting or self.placement.has_waiting):
            self._is_due = True
            asyncio.get_running_loop().call_soon(self.pump)

    def pump(self) -> None:
        """Dispatch the waiting requests for which there is room."""
        self._is_due = False
        now = time.monotonic()
        if now < self._settled_at:
            return
        for suspect, instance in self.trials.start():
            self.placement.isolated(suspect, instance, now)
            self._send(suspect, instance, None, now)
        while (found := self.placement.next(now)) is not None:
            request, instance, prefill = found
            if isinstance(request, ManagedCall):
                self.calls.send(request, instance, now)
            else:
                self._send(request, instance, prefill, now)

    def refuse_stranded(self, now: float) -> None:
        """End requests that no instance can ever serve, or that waited too long for one to come back."""
        for request in (*self.placement.waiting(), *self.trials.waiting):
            if any(
                i.word in ("ready", "probation", "suspect")
                for i in self.placement.instances(request.model_id)
            ):
                continue
            waited = now - max(request.arrived, self.placement.last_open(request.model_id))
            if (error := self._stranded(request.model_id, waited)) is not None:
                request.fail(error)

    def preempt(self, now: float) -> None:
        """Pause running requests for more urgent ones that would not begin in time."""
        for request in to_pause(self.placement, self.open.values(), now):
            request.pauses, request.is_paused, self.pauses = request.pauses + 1, True, self.pauses + 1
            self.move_planned(request)

    # --- one attempt

    def _send(
        self, request: ManagedRequest, instance: LiveInstance, prefill: LiveInstance | None, now: float
    ) -> None:
        number = request.sent(now)
        own = request.request_id if number == 1 else f"{request.request_id}~{number}"
        attempt = Attempt(number, instance, own, request.prompt_tokens + request.ledger.tokens)
        request.attempt = attempt
        instance.add(attempt)
        instance.breaker.sent(now)
        if request.ledger.has_started:
            instance.migrated_in += 1
        attempt.span = self._spans.begin(request, attempt)
        attempt.cancel = self._tasks.spawn(self._attempt(request, attempt, prefill)).cancel

    async def _attempt(self, request: ManagedRequest, attempt: Attempt, prefill: LiveInstance | None) -> None:
        try:
            stream = None
            if prefill is not None:
                stream = await self.hand_overs.open(request, attempt, prefill)
            if stream is None:
                stream = await open_stream(request, attempt)
            if request.attempt is not attempt:
                stream.cancel()
                return
            request.accept()

            commit, push = request.ledger.commit, request.stream.push

            def take(delta: TokenDelta) -> bool:
                if request.attempt is attempt:
                    if attempt.has_output and not request.crashes:  # as ``_deliver``, for most deltas
                        attempt.output_tokens += len(delta.token_ids)
                        commit(delta)
                        push(delta)
                    else:
                        self._deliver(request, attempt, delta)
                return True

            async with stream:
                if isinstance(stream, BufferedTokenStream):
                    stream.on_delta(take)
                async for delta in stream:
                    take(delta)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                await self._abort(attempt)
                raise
            if request.attempt is attempt:
                self._failed(request, attempt, as_sage_error(error, attempt.instance.instance_id))
            return
        if request.attempt is attempt:
            # First: a fault in what follows must not keep it open.
            request.finish(stream.usage, stream.timing)
            attempt.instance.produced()
            self.placement.finished(request, stream.usage)

    @staticmethod
    async def _abort(attempt: Attempt) -> None:
        """Tell the instance that an attempt has ended, as far as it still listens."""
        with suppress(SageInferError, TimeoutError, OSError):  # a lost instance ends them by itself
            await wait_for(attempt.instance.backend.abort(attempt.request_id), 1.0)

    def _deliver(self, request: ManagedRequest, attempt: Attempt, delta: TokenDelta) -> None:
        """Record and deliver a delta, both or neither."""
        if not attempt.has_output and (delta.token_ids or delta.text):
            attempt.has_output = True
            attempt.instance.produced()
            if request.first_at is None:
                request.first_at = time.monotonic()
            self.placement.started(request)
            self._pump_soon()  # its prompt no longer fills the instance
        attempt.output_tokens += len(delta.token_ids)
        request.ledger.commit(delta)
        if request.crashes and request.is_cleared:
            request.crashes = 0
            self.trials.passed(request, attempt.instance)
            self._pump_soon()
        request.stream.push(delta)

    # --- recovery

    def _failed(self, request: ManagedRequest, attempt: Attempt, error: SageInferError) -> None:
        instance, found = attempt.instance, meaning(error)
        if found == "lost":
            self._on_lost(instance, error.message)  # moves all of its requests, this one too
            if request.attempt is attempt:
                self.move(request, error, is_crash=True)
            return
        self._drop_attempt(request)
        if found == "final":
            request.fail(error)
        else:
            self._note_failure(instance, error)
            if found == "fault":
                request.excluded.add(instance)
            self._again(request, error)

    def _note_failure(self, instance: LiveInstance, error: SageInferError) -> None:
        """Learn about an instance from an error of one of its calls."""
        found, now = meaning(error), time.monotonic()
        if found == "lost":
            self._on_lost(instance, error.message)
        elif found == "busy":
            assert isinstance(error, Overloaded)
            instance.refused(error, now)
        elif found == "fault":
            instance.failed(now)

    def _again(self, request: ManagedRequest, error: SageInferError) -> None:
        """Send a request that an instance refused or failed to another one, or end it with that error."""
        now = time.monotonic()
        others = [i for i in self.placement.instances(request.model_id) if i not in request.excluded]
        if isinstance(error, Overloaded) and not request.ledger.has_started:
            others = [i for i in others if i.has_room(now)]
        if not others:
            request.fail(error)
            return
        self.move(request, error, is_crash=False)

    def move(
        self, request: ManagedRequest, error: SageInferError, *, is_crash: bool, is_planned: bool = False
    ) -> None:
        """Continue a request on another instance, or end it with an error that says why not.

        Args:
            error: why it leaves its instance.
            is_crash: the instance ended while the request ran there.
            is_planned: the instance is drained; this does not count as a fault.
        """
        attempt, left = request.attempt, ""
        if attempt is not None:
            left = attempt.instance.instance_id
            if is_crash:
                request.crashes += 1
                request.crash_tokens = max(request.crash_tokens, attempt.output_tokens)
                request.excluded.add(attempt.instance)
            if request.ledger.has_started:
                attempt.instance.migrated_out += 1
        was_alone = request.crashes > _CRASHES
        self._drop_attempt(request)
        try:
            if was_alone:
                self.quarantine.add(request)
                for other in self.trials.acquit(request):
                    self._wait_for_instance(other)
                raise PoisonRequest(
                    f"request {request.request_id} was ended, because {request.crashes} instances of model "
                    f"{request.model_id!r} crashed while they ran it, the last one alone"
                )
            if request.ledger.has_started and not request.ledger.open_indices:
                request.finish(None, None)
                return
            request.planned += is_planned
            if not is_planned:
                self._spend(request, error)
            if request.ledger.has_started:
                if request.ledger.obstacle:
                    raise NotMigratable(
                        f"request {request.request_id} lost its instance and cannot be continued: "
                        f"{request.ledger.obstacle}; send it again"
                    )
                request.migrations += 1
                self.migrations += 1
                self.placement.interruptions.begin(request, left, error.message)
            else:
                request.retries += 1
                self.retries += 1
            self._wait_for_instance(request)
        except SageInferError as final:
            request.fail(final)
        self._pump_soon()

    def _spend(self, request: ManagedRequest, error: SageInferError) -> None:
        moves = request.migrations + request.retries - request.planned
        if moves >= self.limits.migrations:
            raise EngineDead(f"request {request.request_id} was moved {moves} times; last: {error.message}")
        if not self.budget.spend(len(self.open)):
            raise EngineDead(
                f"request {request.request_id} was not moved, because too many requests move; last: {error.message}"
            )

    def move_planned(self, request: ManagedRequest) -> None:
        """Move a request from an instance that is drained."""
        self.move(request, EngineDead("its instance was drained"), is_crash=False, is_planned=True)

    def evacuate(self, instance: LiveInstance, reason: str, *, is_crash: bool) -> None:
        """Move all requests of a lost instance.

        After a crash, nothing is dispatched for a moment: other instances may have ended simultaneously, and a request
        that is sent to one of them would seem to have crashed it.
        """
        if is_crash:
            self._settled_at = time.monotonic() + self.limits.settle_s
            asyncio.get_running_loop().call_later(self.limits.settle_s, self.pump)
        for call in list(instance.calls):
            call.cancel()
        for attempt in list(instance.attempts.values()):
            if attempt.is_prefill:
                attempt.cancel()
        for request in self.on(instance):
            error = EngineDead(f"instance {instance.instance_id} was lost: {reason}")
            self.move(request, error, is_crash=is_crash)

    def on(self, instance: LiveInstance) -> list[ManagedRequest]:
        """Requests whose current attempt runs on an instance."""
        attempts = set(map(id, instance.attempts.values()))
        return [r for r in self.open.values() if r.attempt is not None and id(r.attempt) in attempts]

    async def close(self) -> None:
        for request in list(self.open.values()):
            told = f"request {request.request_id} ended with the control plane's close"
            self.cancel(request, RequestCancelled(told, by="close"))
        await self._tasks.wait()
        await self.hand_overs.close()


_CRASHES = 2  # after so many crashes, the next attempt runs alone

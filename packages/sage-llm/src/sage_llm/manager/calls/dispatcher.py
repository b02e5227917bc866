"""Embedding and reranking requests: placed by the policies, sent in batches, and repeated if their instance fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import attrs
from sage_infer.errors import EngineDead, Overloaded, RequestCancelled, SageInferError
from sage_infer.sdk.claims import accepted_options

from sage_llm.manager.calls.batch import Batch, BatchLimits
from sage_llm.manager.calls.call import ManagedCall, split
from sage_llm.manager.classify import as_sage_error, meaning
from sage_llm.manager.live_instance import LiveInstance
from sage_llm.manager.placing import Placement
from sage_llm.manager.telemetry.calls import CallSpans
from sage_llm.replicas.spans import Spans

__all__ = ["CallDispatcher"]

_MOST = 3  # attempts that may crash or fail
_MOST_ATTEMPTS = 10  # refusals included
_MEASURED = 64  # tokens of a batch from which its duration shows the speed of the instance


class CallDispatcher:
    """Runs every embedding and reranking request to exactly one end.

    Args:
        placement: chooses instances.
        pump: dispatches waiting requests.
        on_lost: called with an instance and the reason when a batch shows that it has ended.
        spans: traces each attempt.
    """

    def __init__(
        self,
        placement: Placement,
        *,
        pump: Callable[[], object],
        on_lost: Callable[[LiveInstance, str], object],
        limits: BatchLimits | None = None,
        spans: Spans | None = None,
    ) -> None:
        self.limits = limits or BatchLimits()
        self.open: dict[str, ManagedCall] = {}
        self.ends = {
            kind: {"finished": 0, "cancelled": 0, "refused": 0, "failed": 0} for kind in ("embed", "rerank")
        }
        self.batches = self.retries = 0
        self._placement, self._pump, self._on_lost = placement, pump, on_lost
        self._spans = CallSpans(spans)

    async def run(self, call: ManagedCall) -> Any:
        """Dispatch a request and return its result.

        Raises:
            SageInferError: it was refused, cancelled, or failed.
        """
        try:
            if call.is_open:  # its deadline may have passed
                self.open[call.request_id] = call
                self._placement.admit(call)
                self._placement.enqueue(call, time.monotonic())
        except SageInferError as error:
            call.fail(error)
        self._pump()
        try:
            return await asyncio.shield(call.done)
        except asyncio.CancelledError:
            call.fail(RequestCancelled(f"request {call.request_id} was cancelled by its caller", by="caller"))
            raise

    def ended(self, call: ManagedCall) -> None:
        """Called by the request when it ends: free what it holds."""
        assert call.outcome is not None
        self._spans.end(call)
        self.ends[call.kind][call.outcome] += 1
        self.open.pop(call.request_id, None)
        self._placement.ended(call)
        asyncio.get_running_loop().call_soon(self._pump)

    # --- batches

    def send(self, call: ManagedCall, instance: LiveInstance, now: float) -> None:
        """Put a placed request into a batch of its instance.

        The batch is computed at the end of this turn of the event loop if the instance is idle, otherwise when it
        has become idle, the batch is full, or the window is over.
        """
        call.number += 1
        if call.dispatched_at is None:
            call.dispatched_at = now
        self._spans.begin(call, instance)
        key = call.key(accepted_options(instance.features, call.options))
        batch = instance.forming.get(key)
        if batch is not None and batch.tokens + call.prompt_tokens > self.limits.tokens:
            batch.close()
            batch = None
        if batch is None:
            is_idle = _is_idle(instance)
            batch = instance.forming[key] = Batch(instance, key)
            instance.breaker.sent(now)
            batch.task = asyncio.get_running_loop().create_task(self._run(batch))
            instance.add_call(batch.task)
            self.batches += 1
            if is_idle:
                asyncio.get_running_loop().call_soon(batch.close)
            else:
                asyncio.get_running_loop().call_later(self._window(call, now), batch.close)
        batch.add(call)
        if batch.tokens >= self.limits.tokens:
            batch.close()

    def _window(self, call: ManagedCall, now: float) -> float:
        """The window of a batch: never more than a tenth of the time that its first request has left."""
        if call.options.deadline is None:
            return self.limits.window_s
        left = call.arrived + call.options.deadline - now
        return max(min(self.limits.window_s, left / 10), 0.0)

    async def _run(self, batch: Batch) -> None:
        instance, task = batch.instance, batch.task
        failed: list[tuple[ManagedCall, SageInferError]] = []
        try:
            await batch.closed.wait()
            failed = await self._compute(batch)
        except asyncio.CancelledError:  # by ``evacuate``, or because all of them were cancelled
            lost = EngineDead(f"instance {instance.instance_id} was lost: {instance.reason}")
            for call in batch.open:
                self._again(call, instance, lost, is_known=True)
        finally:
            batch.close()
            if task is not None:
                instance.calls.discard(task)
                instance.left()
        for call, error in failed:
            self._again(call, instance, error)
        if _is_idle(instance):
            for other in list(instance.forming.values()):
                other.close()
        self._pump()

    async def _compute(self, batch: Batch) -> list[tuple[ManagedCall, SageInferError]]:
        """Compute the open requests of a batch; return those that another instance must compute."""
        calls, instance = batch.open, batch.instance
        was_alone, begun = len(instance.calls) == 1, time.monotonic()
        if len(calls) > 1 and calls[0].kind == "embed":
            try:
                await self._joined(calls, instance)
            except SageInferError as error:
                if meaning(error) != "final":
                    return [(call, error) for call in batch.open]
                calls = batch.open  # one of them is invalid: each gets its own result
            except Exception as error:  # an engine with a fault
                found = as_sage_error(error, instance.instance_id)
                return [(call, found) for call in batch.open]
        failed: list[tuple[ManagedCall, SageInferError]] = []
        if batch.open:
            batch.tasks = {
                call: asyncio.ensure_future(self._alone(call, instance, failed)) for call in batch.open
            }
            try:
                await asyncio.gather(*batch.tasks.values(), return_exceptions=True)
            except asyncio.CancelledError:
                for task in batch.tasks.values():
                    task.cancel()
                raise
        took = time.monotonic() - begun
        if was_alone and batch.tokens >= _MEASURED and not failed:
            self._placement.builder.measured(instance.slot, batch.tokens, took)
        return failed

    async def _joined(self, calls: list[ManagedCall], instance: LiveInstance) -> None:
        """Compute the texts of several requests in one call of the engine."""
        first = calls[0]
        self._spans.join(calls)
        result = await instance.backend.embed(
            [text for call in calls for text in call.texts],
            truncate=first.truncate,
            request_id=f"{first.request_id}~{first.number}+{len(calls) - 1}",
            options=_joined_options(first, instance),
        )
        instance.produced()
        for call, part in zip(calls, split(result, calls), strict=True):
            self._finished(call, part)

    async def _alone(
        self, call: ManagedCall, instance: LiveInstance, failed: list[tuple[ManagedCall, SageInferError]]
    ) -> None:
        own = call.request_id if call.number == 1 else f"{call.request_id}~{call.number}"
        try:
            result = await call.on(
                instance.backend, own, accepted_options(instance.features, call.options_now())
            )
        except asyncio.CancelledError:
            raise
        except BaseException as found:
            error = as_sage_error(found, instance.instance_id)
            if meaning(error) == "final":
                call.fail(error)
            else:
                failed.append((call, error))
            return
        instance.produced()
        self._finished(call, result)

    def _finished(self, call: ManagedCall, result: Any) -> None:
        self._placement.computed(call)
        self._spans.end(call, result.usage)
        call.finish(result)

    # --- recovery

    def _again(
        self, call: ManagedCall, instance: LiveInstance, error: SageInferError, *, is_known: bool = False
    ) -> None:
        """Send a request that an instance lost, refused or failed to another one, or end it with that error.

        Args:
            is_known: the fleet knows that the instance was lost.
        """
        if not call.is_open:
            return
        now = time.monotonic()
        self._spans.end(call)
        self._placement.left(call)
        call.leave = lambda: None
        others = [
            i
            for i in self._placement.instances(call.model_id)
            if i is not instance and i not in call.excluded
        ]
        found = meaning(error)
        if found == "lost":
            if not is_known:
                self._on_lost(instance, error.message)
            call.crashes += instance.word == "dead"
        elif found == "busy":
            assert isinstance(error, Overloaded)
            instance.refused(error, now)
            others = [i for i in others if i.has_room(now)]
        else:
            call.faults += 1
            call.excluded.add(instance)
            instance.failed(now)
        if (
            call.number >= _MOST_ATTEMPTS
            or call.crashes + call.faults >= _MOST
            or (found != "lost" and not others)
        ):
            call.fail(error)
            return
        self.retries += 1
        try:
            self._placement.enqueue(call, now)
        except SageInferError as final:
            call.fail(final)


def _is_idle(instance: LiveInstance) -> bool:
    """Whether an instance computes nothing: all of its batches still collect requests."""
    return len(instance.calls) == len(instance.forming)


def _joined_options(call: ManagedCall, instance: LiveInstance) -> Any:
    """Options that the requests of a batch have in common; deadlines are observed here."""
    common = attrs.evolve(call.options, deadline=None, trace=call.span.carrier or {})
    return accepted_options(instance.features, common)

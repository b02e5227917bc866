"""Execution of plans: checks before anything moves, priorities, deadlines, cancellation and the report."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from attrs import define, field
from sage_infer.contracts.transport import StepCallback
from sage_infer.errors import InvalidRequest, SageInferError
from sage_infer.schemas import KVLocation, TransportPlan, TransportReport, TransportStep
from sage_infer.schemas.transport import StepStatus
from sage_infer.sdk import verify

__all__ = ["Cancelled", "Failed", "Move", "PlanRunner", "check_plan"]


class Failed(Exception):
    """A step failed; the text is its message in the report."""


class Cancelled(Exception):
    """The plan was cancelled, or the step's deadline has passed."""


@define
class Move:
    """One step while it runs. ``check`` is called between blocks."""

    step: TransportStep
    stop: threading.Event
    deadline: float | None
    retries: int = 0

    def check(self) -> None:
        """Raises:
        Cancelled: the plan was cancelled.
        Failed: the step's deadline has passed.
        """
        if self.stop.is_set():
            raise Cancelled
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise Failed(
                f"{self.step.source.uri} → {self.step.target.uri}: deadline of {self.step.deadline_s} s passed"
            )


@define
class _Outcome:
    status: StepStatus = "skipped"
    error: str = ""
    seconds: float = 0.0
    retries: int = 0


def check_plan(plan: TransportPlan, can_reach: Callable[[KVLocation, KVLocation], bool]) -> None:
    """Reject a plan before anything has moved.

    Raises:
        InvalidRequest: a step out of reach, or a chunk without a checksum.
        UnsupportedFeature: a checksum of an unknown algorithm.
    """
    for step in plan.steps:
        if not can_reach(step.source, step.target):
            raise InvalidRequest(
                f"cannot move {step.source.uri} → {step.target.uri}; choose a transport that reaches both "
                "(`sage infer plugin list` shows the schemes of each)"
            )
        if step.chunk.checksum is None:
            raise InvalidRequest(f"chunk {step.chunk.chunk_id} has no checksum; export it with one")
        if step.nbytes != step.chunk.nbytes:
            raise InvalidRequest(
                f"chunk {step.chunk.chunk_id} has {step.chunk.nbytes} bytes and its step {step.nbytes}: "
                "compressed transfers are not supported"
            )
        verify(b"", step.chunk.checksum)


@define(eq=False)
class PlanRunner:
    """Runs ``move`` for each step in up to ``max_in_flight`` threads, more urgent steps first."""

    move: Callable[[Move], None]
    max_in_flight: int
    _pool: ThreadPoolExecutor | None = field(default=None, init=False)

    async def run(self, plan: TransportPlan, on_step: StepCallback | None) -> TransportReport:
        """Run a checked plan. Cancelling the task stops the steps that run, and waits until they have stopped."""
        loop = asyncio.get_running_loop()
        began = time.monotonic()
        outcomes = [_Outcome() for _ in plan.steps]
        stop = threading.Event()
        order = iter(sorted(range(len(plan.steps)), key=lambda index: plan.steps[index].priority))
        lock = threading.Lock()

        def work() -> None:
            while not stop.is_set():
                with lock:
                    index = next(order, None)
                if index is None:
                    return
                step = plan.steps[index]
                deadline = None if step.deadline_s is None else began + step.deadline_s
                outcomes[index] = self._step(Move(step, stop, deadline))
                if on_step is not None and not stop.is_set():
                    loop.call_soon_threadsafe(on_step, index, outcomes[index].status)

        workers = [
            loop.run_in_executor(self._threads(), work)
            for _ in range(min(self.max_in_flight, len(plan.steps)))
        ]
        try:
            await asyncio.gather(*workers)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait(workers)
            raise
        await asyncio.sleep(0)  # callbacks that the threads scheduled run before the report is returned
        return TransportReport(
            plan_id=plan.plan_id,
            statuses=tuple(outcome.status for outcome in outcomes),
            errors=tuple(outcome.error for outcome in outcomes if outcome.status == "failed"),
            moved_bytes=sum(
                step.nbytes
                for step, outcome in zip(plan.steps, outcomes, strict=True)
                if outcome.status == "done"
            ),
            elapsed_s=time.monotonic() - began,
            step_seconds=tuple(outcome.seconds for outcome in outcomes),
            retries=sum(outcome.retries for outcome in outcomes),
        )

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.max_in_flight, thread_name_prefix="sage-kv-transport")
        return self._pool

    def _step(self, move: Move) -> _Outcome:
        began = time.monotonic()
        if move.deadline is not None and began > move.deadline:
            return _Outcome("skipped")
        outcome = _Outcome("failed")
        try:
            self.move(move)
            outcome.status = "done"
        except Cancelled:
            outcome.status = "skipped"
        except (Failed, SageInferError) as error:
            outcome.error = str(error) or type(error).__name__
        except OSError as error:
            outcome.error = f"{move.step.source.uri} → {move.step.target.uri}: {error.strerror or error}"
        outcome.seconds = time.monotonic() - began
        outcome.retries = move.retries
        return outcome

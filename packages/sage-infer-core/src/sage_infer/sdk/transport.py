"""Base of transports: order by priority, checks, retries and reports; and copying of files with verification."""

from __future__ import annotations

import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlsplit

from attrs import define, field

from sage_infer.compat import TaskGroup
from sage_infer.contracts import StepCallback
from sage_infer.errors import InvalidRequest, KVCorrupt, SageInferError, UnsupportedFeature
from sage_infer.schemas import (
    KVChunk,
    KVLocation,
    TransportPlan,
    TransportReport,
    TransportSettings,
    TransportStep,
)
from sage_infer.schemas.kv_chunk import CHECKSUM
from sage_infer.schemas.transport import StepStatus

__all__ = ["BaseTransport", "PlanRun", "copy_chunk", "file_path"]


@define
class _Outcome:
    error: str = ""
    seconds: float = 0.0
    retries: int = 0
    status: StepStatus = "skipped"


@define(eq=False)
class PlanRun:
    """A plan that is being executed: hands out its steps by priority and records how they end.

    Several threads can take steps of one run.

    Attributes:
        plan: the plan.
        begun: ``time.monotonic()`` at the start of the plan.
    """

    plan: TransportPlan
    begun: float = field(init=False)
    _outcomes: list[_Outcome] = field(init=False)
    _order: deque[int] = field(init=False)

    def __attrs_post_init__(self) -> None:
        steps, self.begun = self.plan.steps, time.monotonic()
        self._outcomes = [_Outcome() for _ in steps]
        self._order = deque(sorted(range(len(steps)), key=lambda index: steps[index].priority))

    def take(self) -> int | None:
        """Take the next step and return its index; None if no step is left."""
        try:
            return self._order.popleft()
        except IndexError:
            return None

    def late(self, index: int) -> bool:
        """Return whether the deadline of a step has passed, so that it is skipped."""
        deadline = self.plan.steps[index].deadline_s
        return deadline is not None and time.monotonic() - self.begun > deadline

    def ended(self, index: int, *, seconds: float, retries: int = 0, error: Exception | None = None) -> None:
        """Record the end of a step. With an ``error`` it has failed."""
        step, outcome = self.plan.steps[index], self._outcomes[index]
        if error is not None:
            outcome.error = f"{step.source.uri} to {step.target.uri}: {error}"
        outcome.seconds, outcome.retries = seconds, retries
        outcome.status = "done" if error is None else "failed"

    def status(self, index: int) -> StepStatus:
        """Return the status of a step; ``skipped`` until its end is recorded."""
        return self._outcomes[index].status

    def report(self) -> TransportReport:
        """Return the report, after the last step has ended."""
        outcomes = self._outcomes
        return TransportReport(
            plan_id=self.plan.plan_id,
            statuses=[outcome.status for outcome in outcomes],
            errors=[outcome.error for outcome in outcomes if outcome.status == "failed"],
            moved_bytes=sum(
                step.nbytes
                for step, outcome in zip(self.plan.steps, outcomes, strict=True)
                if outcome.status == "done"
            ),
            elapsed_s=time.monotonic() - self.begun,
            step_seconds=[outcome.seconds for outcome in outcomes],
            retries=sum(outcome.retries for outcome in outcomes),
        )


class BaseTransport:
    """Base of a ``Transport``. A subclass sets ``schemes`` and overrides ``move``, which moves one chunk.

    Up to ``settings.max_in_flight`` steps run simultaneously, smaller ``priority`` first. A step that has not begun by
    its deadline is skipped. A plan is refused before any transfer if an address is not supported, if the checksum of a
    chunk is missing or unknown, or if a step is compressed.

    Attributes:
        schemes: supported URI schemes.
        attempts: maximum number of attempts per step.
        settings: settings passed by the caller.
    """

    schemes: ClassVar[Collection[str]]
    attempts: ClassVar[int] = 1

    def __init__(self, settings: TransportSettings) -> None:
        self.settings = settings

    async def move(self, step: TransportStep) -> int | None:
        """Move one chunk. Afterwards the chunk is complete and verified at its target, or the target is unchanged.

        Returns the number of retries within the move, for the report; None counts as 0.

        Raises:
            OSError, KVCorrupt: the attempt failed; the step is retried, up to ``attempts`` attempts.
            SageInferError: the step failed and is not retried.
        """
        raise NotImplementedError(f"{type(self).__name__} must override move()")

    def can_reach(self, source: KVLocation, target: KVLocation) -> bool:
        return all(urlsplit(location.uri).scheme in self.schemes for location in (source, target))

    def register(self, region: memoryview) -> None:
        """Do nothing: most transports need no registered memory."""

    async def execute(self, plan: TransportPlan, *, on_step: StepCallback | None = None) -> TransportReport:
        for step in plan.steps:
            self._check(step)
        run = PlanRun(plan)
        async with TaskGroup() as group:
            for _ in range(min(self.settings.max_in_flight, len(plan.steps))):
                group.create_task(self.work(run, on_step))
        return run.report()

    async def work(self, run: PlanRun, on_step: StepCallback | None) -> None:
        """Execute steps of a run until none is left; ``execute`` starts up to ``max_in_flight`` of these.

        A transport whose moves are blocking calls can override this to take several steps in one thread.
        """
        while (index := run.take()) is not None:
            begun = time.monotonic()
            if not run.late(index):
                retries, error = await self._moved(run.plan.steps[index])
                run.ended(index, seconds=time.monotonic() - begun, retries=retries, error=error)
            if on_step is not None:
                on_step(index, run.status(index))

    async def close(self) -> None:
        """Do nothing: this class has no connections."""

    def _check(self, step: TransportStep) -> None:
        if not self.can_reach(step.source, step.target):
            raise InvalidRequest(
                f"{step.source.uri} to {step.target.uri} is out of reach; expected {', '.join(sorted(self.schemes))}"
            )
        if step.chunk.checksum is None:
            raise InvalidRequest(f"chunk {step.chunk.chunk_id} has no checksum; export it again")
        if step.nbytes != step.chunk.nbytes:
            raise InvalidRequest(
                f"chunk {step.chunk.chunk_id} has {step.chunk.nbytes} bytes and its step {step.nbytes}; compressed "
                "transfers are not supported"
            )
        if not step.chunk.checksum.startswith(f"{CHECKSUM}:"):
            raise UnsupportedFeature(
                f"checksum {step.chunk.checksum!r} is not supported; expected {CHECKSUM}"
            )

    async def _moved(self, step: TransportStep) -> tuple[int, Exception | None]:
        """Move a chunk; returns the number of retries, and why it failed in the end."""
        error: Exception | None = None
        retries = 0
        for attempt in range(self.attempts):
            retries += attempt > 0
            try:
                return retries + (await self.move(step) or 0), None
            except (OSError, KVCorrupt) as failed:
                error = failed
            except SageInferError as failed:
                return retries, failed
        return retries, error


def file_path(location: KVLocation) -> Path:
    """Return the path of a ``file:`` location."""
    return Path(unquote(urlsplit(location.uri).path))


def copy_chunk(
    chunk: KVChunk,
    source: Path,
    target: Path,
    *,
    offset: int = 0,
    piece_bytes: int = 512 << 10,
    flush: bool = True,
    check: Callable[[], None] | None = None,
) -> None:
    """Copy a chunk from a file in pieces to a temporary file, which is verified, flushed and renamed.

    Missing folders are created.

    Args:
        chunk: chunk with its size in bytes and its checksum.
        source: file that holds the chunk from ``offset`` on; it may be longer.
        target: file that will hold the chunk alone.
        offset: position of the chunk in ``source``, in bytes.
        piece_bytes: bytes that are read, hashed and written together; a piece that fits into the CPU's second-level
            cache is fastest.
        flush: wait until the bytes are on the disk.
        check: called before each piece; an exception of it ends the copy.

    Raises:
        OSError: a file cannot be read or written.
        KVCorrupt: ``source`` is too short, or its bytes do not have the chunk's checksum.
    """
    import xxhash

    digest, left = xxhash.xxh3_64(), chunk.nbytes
    buffer = memoryview(bytearray(min(piece_bytes, max(left, 1))))
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with source.open("rb", buffering=0) as reader, aside.open("xb", buffering=0) as writer:
            reader.seek(offset)
            while left:
                if check is not None:
                    check()
                size = reader.readinto(buffer[:left])
                if not size:
                    break
                digest.update(buffer[:size])
                left -= size
                piece = buffer[:size]
                while piece:
                    piece = piece[writer.write(piece) :]
            if flush:
                os.fsync(writer.fileno())
        if left or f"{CHECKSUM}:{digest.hexdigest()}" != chunk.checksum:
            raise KVCorrupt(
                f"{source} does not hold chunk {chunk.chunk_id} at {offset}"
                + (f": {left:,} of {chunk.nbytes:,} bytes are missing" if left else "")
                + "; export it again"
            )
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)

"""Base of transports: order by priority, checks, retries and reports; and copying of files with verification."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections import deque
from collections.abc import Collection
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlsplit

from attrs import define, field

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

__all__ = ["BaseTransport", "copy_chunk", "file_path"]


@define
class _Outcome:
    error: str = ""
    seconds: float = 0.0
    status: StepStatus = "skipped"


@define
class _Run:
    """State of a plan that is being executed."""

    plan: TransportPlan
    begun: float
    outcomes: list[_Outcome] = field(factory=list)
    retries: int = 0


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
        run = _Run(plan, time.monotonic(), [_Outcome() for _ in plan.steps])
        order = deque(sorted(range(len(plan.steps)), key=lambda index: plan.steps[index].priority))
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self.settings.max_in_flight, len(order))):
                group.create_task(self._work(run, order, on_step))
        outcomes = run.outcomes
        return TransportReport(
            plan_id=plan.plan_id,
            statuses=[outcome.status for outcome in outcomes],
            errors=[outcome.error for outcome in outcomes if outcome.status == "failed"],
            moved_bytes=sum(
                step.nbytes
                for step, outcome in zip(plan.steps, outcomes, strict=True)
                if outcome.status == "done"
            ),
            elapsed_s=time.monotonic() - run.begun,
            step_seconds=[outcome.seconds for outcome in outcomes],
            retries=run.retries,
        )

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

    async def _work(self, run: _Run, order: deque[int], on_step: StepCallback | None) -> None:
        while order:
            index = order.popleft()
            step, outcome = run.plan.steps[index], run.outcomes[index]
            begun = time.monotonic()
            if step.deadline_s is None or begun - run.begun <= step.deadline_s:
                outcome.error = await self._moved(run, step)
                outcome.seconds = time.monotonic() - begun
                outcome.status = "failed" if outcome.error else "done"
            if on_step is not None:
                on_step(index, outcome.status)

    async def _moved(self, run: _Run, step: TransportStep) -> str:
        """Execute a step and return why it failed; empty if it succeeded."""
        error: Exception | None = None
        for attempt in range(self.attempts):
            run.retries += attempt > 0
            try:
                run.retries += await self.move(step) or 0
                return ""
            except (OSError, KVCorrupt) as failed:
                error = failed
            except SageInferError as failed:
                error = failed
                break
        return f"{step.source.uri} to {step.target.uri}: {error}"


def file_path(location: KVLocation) -> Path:
    """Return the path of a ``file:`` location."""
    return Path(unquote(urlsplit(location.uri).path))


def copy_chunk(chunk: KVChunk, source: Path, target: Path, *, piece_bytes: int = 8 << 20) -> None:
    """Copy the file of a chunk in pieces to a temporary file, which is verified, flushed and renamed.

    Missing folders are created.

    Raises:
        OSError: a file cannot be read or written.
        KVCorrupt: the size or checksum of the source differs from the chunk's.
    """
    import xxhash

    digest, size = xxhash.xxh3_64(), 0
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with source.open("rb") as reader, aside.open("xb") as writer:
            while piece := reader.read(piece_bytes):
                digest.update(piece)
                size += writer.write(piece)
            writer.flush()
            os.fsync(writer.fileno())
        if size != chunk.nbytes or f"{CHECKSUM}:{digest.hexdigest()}" != chunk.checksum:
            raise KVCorrupt(
                f"{source} ({size:,} bytes) does not hold chunk {chunk.chunk_id}; export it again"
            )
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)

"""A transport between files."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from sage_infer.contracts import StepCallback
from sage_infer.errors import InvalidRequest, UnsupportedFeature
from sage_infer.schemas import KVLocation, TransportPlan, TransportReport, TransportStep
from sage_infer.schemas.kv_chunk import CHECKSUM
from sage_infer.sdk import verify
from sage_infer_testing import TransportContract


class ReferenceTransport:
    """Copies files: written aside, verified, renamed."""

    def can_reach(self, source: KVLocation, target: KVLocation) -> bool:
        return source.uri.startswith("file://") and target.uri.startswith("file://")

    def register(self, region: memoryview) -> None:
        """Files need none."""

    async def execute(self, plan: TransportPlan, *, on_step: StepCallback | None = None) -> TransportReport:
        begun = time.monotonic()
        for step in plan.steps:
            self.check(step)
        errors: dict[int, str] = {}
        seconds = [0.0] * len(plan.steps)
        moved = 0
        for i in sorted(range(len(plan.steps)), key=lambda i: plan.steps[i].priority):
            await asyncio.sleep(0)
            step_begun = time.monotonic()
            try:
                moved += self.move(plan.steps[i])
            except (OSError, ValueError) as error:
                errors[i] = str(error)
            seconds[i] = time.monotonic() - step_begun
            if on_step is not None:
                on_step(i, "failed" if i in errors else "done")
        return TransportReport(
            plan_id=plan.plan_id, statuses=tuple("failed" if i in errors else "done" for i in range(len(plan.steps))),
            errors=tuple(errors[i] for i in sorted(errors)), moved_bytes=moved, elapsed_s=time.monotonic() - begun,
            step_seconds=tuple(seconds),
        )  # fmt: skip

    def check(self, step: TransportStep) -> None:
        if not self.can_reach(step.source, step.target):
            raise InvalidRequest(f"{step.source.uri} to {step.target.uri} is out of reach")
        if step.chunk.checksum is None:
            raise InvalidRequest(f"chunk {step.chunk.chunk_id} has no checksum; export it again")
        if not step.chunk.checksum.startswith(f"{CHECKSUM}:"):
            raise UnsupportedFeature(
                f"checksum {step.chunk.checksum!r} is not supported; expected {CHECKSUM}"
            )

    def move(self, step: TransportStep) -> int:
        data = Path(step.source.uri.removeprefix("file://")).read_bytes()
        self.verify(step, data)
        target = Path(step.target.uri.removeprefix("file://"))
        aside = target.with_suffix(".part")
        aside.write_bytes(data)
        aside.rename(target)
        return len(data)

    def verify(self, step: TransportStep, data: bytes) -> None:
        if len(data) != step.chunk.nbytes or not verify(data, step.chunk.checksum or ""):
            raise ValueError(f"{step.source.uri} does not fit its checksum")

    async def close(self) -> None:
        """Holds nothing."""


class FileTransport(TransportContract):
    def make_transport(self) -> ReferenceTransport:
        return ReferenceTransport()

    def place(self, data: bytes, name: str, folder: Path) -> KVLocation:
        (folder / name).write_bytes(data)
        return KVLocation(tier="ssd", uri=f"file://{folder / name}")

    def target(self, nbytes: int, name: str, folder: Path) -> KVLocation:
        return KVLocation(tier="ssd", uri=f"file://{folder / name}")

    def contents(self, location: KVLocation) -> bytes | None:
        path = Path(location.uri.removeprefix("file://"))
        return path.read_bytes() if path.exists() else None

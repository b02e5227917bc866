"""Transports with one mistake each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
from kit_reference.transport import FileTransport, ReferenceTransport
from sage_infer.errors import InvalidRequest, SageInferError, UnsupportedFeature

from kit_broken.suites import suite


def transport(*tests: str) -> Any:
    return suite(FileTransport, "make_transport", *tests)


@transport("test_knows_what_it_reaches", "test_a_plan_out_of_reach_is_refused")
class ReachesEverything(ReferenceTransport):
    def can_reach(self, source: Any, target: Any) -> bool:
        return True


@transport("test_a_damaged_chunk_fails_its_step_alone")
class Unverified(ReferenceTransport):
    def verify(self, step: Any, data: bytes) -> None:
        """Trusts."""


@transport("test_moves_every_chunk")
class ReportsByPriority(ReferenceTransport):
    async def execute(self, plan: Any, **options: Any) -> Any:
        return attrs.evolve(await super().execute(plan, **options), moved_bytes=1)


@transport("test_a_missing_source_fails_its_step_alone")
class StopsAtTheFirstError(ReferenceTransport):
    def move(self, step: Any) -> int:
        try:
            return super().move(step)
        except OSError as error:
            raise SageInferError(str(error)) from error


@transport("test_cancelling_leaves_no_partial_chunk")
class WritesInPlace(ReferenceTransport):
    async def execute(self, plan: Any, **options: Any) -> Any:
        for step in plan.steps:
            Path(step.target.uri.removeprefix("file://")).write_bytes(b"par")  # noqa: ASYNC240 - a small local file
        return await super().execute(plan, **options)


@transport("test_a_plan_can_be_carried_out_again")
class MovesOnce(ReferenceTransport):
    def move(self, step: Any) -> int:
        if Path(step.target.uri.removeprefix("file://")).exists():
            raise OSError("is there already")
        return super().move(step)


@transport("test_plans_run_side_by_side")
class OnePlanAtATime(ReferenceTransport):
    plan_id = ""

    async def execute(self, plan: Any, **options: Any) -> Any:
        self.plan_id = plan.plan_id
        return attrs.evolve(await super().execute(plan, **options), plan_id=self.plan_id)


@transport("test_close_twice_is_safe")
class ClosesTheTransportOnce(ReferenceTransport):
    closed = False

    async def close(self) -> None:
        if self.closed:
            raise RuntimeError("closed already")
        self.closed = True


@transport("test_an_empty_plan_is_done")
class WantsSteps(ReferenceTransport):
    async def execute(self, plan: Any, **options: Any) -> Any:
        if not plan.steps:
            raise InvalidRequest("no steps")
        return await super().execute(plan, **options)


@transport("test_a_chunk_without_a_checksum_is_refused", "test_an_unknown_checksum_is_refused")
class MovesUnverifiedChunks(ReferenceTransport):
    def check(self, step: Any) -> None:
        """Moves it."""

    def verify(self, step: Any, data: bytes) -> None:
        if (step.chunk.checksum or "").startswith("xxh3-64:"):
            super().verify(step, data)


@transport("test_an_unknown_checksum_is_refused")
class BlamesTheCallerForChecksums(ReferenceTransport):
    def check(self, step: Any) -> None:
        try:
            super().check(step)
        except UnsupportedFeature as error:
            raise InvalidRequest(str(error)) from None


@transport("test_each_step_is_told_as_it_ends")
class TellsDoneStepsOnly(ReferenceTransport):
    async def execute(self, plan: Any, *, on_step: Any = None) -> Any:
        def tell(index: int, status: Any) -> None:
            if on_step and status == "done":
                on_step(index, status)

        return await super().execute(plan, on_step=tell)


@transport("test_each_step_is_told_as_it_ends")
class TellsBeforehand(ReferenceTransport):
    async def execute(self, plan: Any, *, on_step: Any = None) -> Any:
        for index in range(len(plan.steps)) if on_step else ():
            on_step(index, "done")
        return await super().execute(plan)


@transport("test_reports_are_well_formed")
class TimesDoneStepsOnly(ReferenceTransport):
    async def execute(self, plan: Any, **options: Any) -> Any:
        report = await super().execute(plan, **options)
        return attrs.evolve(report, step_seconds=report.step_seconds[1:])


@transport("test_regions_can_be_registered")
class RegistersOnce(ReferenceTransport):
    regions = 0

    def register(self, region: memoryview) -> None:
        self.regions += 1
        if self.regions > 1:
            raise InvalidRequest("this region is registered already")

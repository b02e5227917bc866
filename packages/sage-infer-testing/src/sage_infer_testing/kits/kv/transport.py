"""The kit for transports."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import attrs
import pytest
from sage_infer.contracts import Transport
from sage_infer.errors import InvalidRequest, UnsupportedFeature
from sage_infer.schemas import TransportPlan, TransportReport
from sage_infer.schemas.codec import from_json, to_json

from sage_infer_testing.kits.kv.transport_base import SIZES, TransportSuite
from sage_infer_testing.shape import shape_problems

__all__ = ["TransportContract"]

_YIELDS = 6  # maximum number of event loop iterations before a plan is cancelled


class TransportContract(TransportSuite, kit=True):
    """Guarantees of a ``Transport``. Override the four methods of ``TransportSuite``."""

    def test_has_the_shape_of_its_protocol(self, transport: Any) -> None:
        """Every method of ``Transport`` exists with its parameters.

        How to fix: the message names each problem; copy the signature from ``sage_infer.contracts.Transport``.
        """
        problems = shape_problems(transport, Transport)
        assert not problems, f"not a Transport: {'; '.join(problems)}"

    def test_knows_what_it_reaches(self, transport: Any, tmp_path: Path) -> None:
        """``can_reach`` is true for the transport's own locations and false for an unknown scheme.

        How to fix: check the URI schemes of both locations.
        """
        step = self.step(8, "c0", tmp_path)
        assert transport.can_reach(step.source, step.target)
        assert not transport.can_reach(step.source, self.unreachable)
        assert not transport.can_reach(self.unreachable, step.target)

    async def test_moves_every_chunk(self, transport: Any, tmp_path: Path) -> None:
        """All chunks arrive completely; the report has one status per step, in the plan's order.

        How to fix: steps can run in any order, but ``statuses`` of the report must be in the plan's order.
        """
        steps = self.steps(tmp_path)
        report = await transport.execute(TransportPlan.from_steps("kit-plan", steps))
        assert isinstance(report, TransportReport), f"execute() returned a {type(report).__name__}"
        assert report.plan_id == "kit-plan", f"the report is of {report.plan_id!r}"
        assert report.statuses == ("done",) * len(steps), f"{report.statuses}, {report.errors}"
        assert report.moved_bytes == sum(SIZES), (
            f"{sum(SIZES)} bytes moved, the report says {report.moved_bytes}"
        )
        for i, step in enumerate(steps):
            assert self.arrived(step, i), f"step {i} is done, but there is no chunk at {step.target}"
            assert self.contents(step.source) == self.data(SIZES[i], f"c{i}"), (
                f"the source of step {i} has changed"
            )

    async def test_an_empty_plan_is_done(self, transport: Any) -> None:
        """A plan without steps returns an empty report.

        How to fix: do not treat an empty plan as an error.
        """
        report = await transport.execute(TransportPlan(plan_id="kit-empty", total_bytes=0))
        assert report.statuses == (), report
        assert report.ok

    async def test_a_damaged_chunk_fails_its_step_alone(self, transport: Any, tmp_path: Path) -> None:
        """If bytes do not match their checksum, the step fails and they never appear at the target; others arrive.

        How to fix: verify the chunk on arrival, before it is visible at its target.
        """
        steps = list(self.steps(tmp_path))
        damaged = bytearray(self.data(SIZES[1], "c1"))
        damaged[SIZES[1] // 2] ^= 1
        steps[1] = self.step(SIZES[1], "c1", tmp_path, source=self.place(bytes(damaged), "damaged", tmp_path))
        report = await transport.execute(TransportPlan.from_steps("kit-damaged", tuple(steps)))
        assert report.statuses == ("done", "failed", "done", "done"), f"{report.statuses}, {report.errors}"
        assert len(report.errors) == 1, f"expected one message per failed step, got {report.errors}"
        assert not self.arrived(steps[1], 1), "a damaged chunk is at its target"
        assert report.moved_bytes == sum(SIZES) - SIZES[1], (
            f"moved_bytes includes a chunk that did not arrive: {report}"
        )

    async def test_a_missing_source_fails_its_step_alone(self, transport: Any, tmp_path: Path) -> None:
        """A step with a missing source fails; the other chunks arrive.

        How to fix: convert the I/O error to a failed step with a message that names the source.
        """
        steps = list(self.steps(tmp_path))
        steps[0] = self.step(SIZES[0], "c0", tmp_path, source=self.target(SIZES[0], "not-there", tmp_path))
        report = await transport.execute(TransportPlan.from_steps("kit-missing", tuple(steps)))
        assert report.statuses == ("failed", "done", "done", "done"), f"{report.statuses}, {report.errors}"
        assert not self.arrived(steps[0], 0), "there is a chunk at the target of a step without a source"

    async def test_a_plan_out_of_reach_is_refused(self, transport: Any, tmp_path: Path) -> None:
        """A step to a location with an unknown scheme is ``InvalidRequest``, and nothing is moved.

        How to fix: first call ``can_reach`` for all steps.
        """
        good = self.step(64, "c0", tmp_path)
        bad = self.step(64, "c1", tmp_path, target=self.unreachable)
        with pytest.raises(InvalidRequest):
            await transport.execute(TransportPlan.from_steps("kit-far", (good, bad)))
        assert not self.arrived(good, 0), "a step of a refused plan was executed"

    async def test_a_chunk_without_a_checksum_is_refused(self, transport: Any, tmp_path: Path) -> None:
        """A step whose chunk has no checksum is ``InvalidRequest``, and nothing is moved.

        How to fix: check all chunks before moving the first one; a chunk that cannot be verified must not be moved.
        """
        good, bad = self.step(64, "c0", tmp_path), self.step(64, "c1", tmp_path)
        bad = attrs.evolve(bad, chunk=attrs.evolve(bad.chunk, checksum=None))
        with pytest.raises(InvalidRequest):
            await transport.execute(TransportPlan.from_steps("kit-bare", (good, bad)))
        assert not self.arrived(good, 0), "a step of a refused plan was executed"

    async def test_an_unknown_checksum_is_refused(self, transport: Any, tmp_path: Path) -> None:
        """A checksum with an unknown algorithm is an ``UnsupportedFeature`` that names it; nothing is moved.

        How to fix: verify ``xxh3-64`` with ``sage_infer.sdk.verify``, and refuse all other algorithms.
        """
        good, bad = self.step(64, "c0", tmp_path), self.step(64, "c1", tmp_path)
        bad = attrs.evolve(bad, chunk=attrs.evolve(bad.chunk, checksum="kit-sum:0123456789abcdef"))
        with pytest.raises(UnsupportedFeature, match="kit-sum"):
            await transport.execute(TransportPlan.from_steps("kit-unknown", (good, bad)))
        assert not self.arrived(good, 0), "a step of a refused plan was executed"

    async def test_each_step_is_told_as_it_ends(self, transport: Any, tmp_path: Path) -> None:
        """``on_step`` is called once per step, in the event loop, with the same status as in the report.

        How to fix: call it when the step has ended and its chunk can be read at the target. From a thread use
        ``loop.call_soon_threadsafe``. Return from ``execute`` after the last call.
        """
        steps = list(self.steps(tmp_path))
        steps[0] = self.step(SIZES[0], "c0", tmp_path, source=self.target(SIZES[0], "not-there", tmp_path))
        told: dict[int, str] = {}
        loop = asyncio.get_running_loop()

        def on_step(index: int, status: str) -> None:
            assert asyncio.get_running_loop() is loop, "on_step was called outside of the event loop"
            assert index not in told, f"step {index} ended twice"
            assert status != "done" or self.arrived(steps[index], index), (
                f"step {index} is done, but its chunk is not at the target"
            )
            told[index] = status

        plan = TransportPlan.from_steps("kit-steps", tuple(steps))
        report = await transport.execute(plan, on_step=on_step)
        assert [told.get(index) for index in range(len(steps))] == list(report.statuses), (
            f"on_step said {told}, the report {report.statuses}"
        )

    async def test_reports_are_well_formed(self, transport: Any, tmp_path: Path) -> None:
        """A report has one message per failed step, and the duration of each step or of none.

        How to fix: collect ``errors`` and ``step_seconds`` in the plan's order. Leave ``step_seconds`` empty if steps
        are not measured, and count each retry in ``retries``.
        """
        steps = list(self.steps(tmp_path))
        steps[2] = self.step(SIZES[2], "c2", tmp_path, source=self.target(SIZES[2], "not-there", tmp_path))
        report = await transport.execute(TransportPlan.from_steps("kit-report", tuple(steps)))
        assert len(report.errors) == report.statuses.count("failed") == 1, (
            f"{report.statuses}, {report.errors}"
        )
        assert report.errors[0], "the message of a failed step is empty"
        assert len(report.step_seconds) in (0, len(steps)), f"{len(steps)} steps, {report.step_seconds}"
        assert all(0 <= seconds <= report.elapsed_s for seconds in report.step_seconds), (
            f"a step took longer than the plan's {report.elapsed_s} s: {report.step_seconds}"
        )
        assert report.retries >= 0, f"retries is {report.retries}"
        assert from_json(to_json(report), TransportReport) == report

    def test_regions_can_be_registered(self, transport: Any) -> None:
        """``register`` accepts a memory region, also repeatedly.

        How to fix: return immediately if no registration is needed.
        """
        region = memoryview(bytearray(4096))
        for _ in range(2):
            transport.register(region)

    async def test_cancelling_leaves_no_partial_chunk(self, transport: Any, tmp_path: Path) -> None:
        """After cancellation of a plan, each target is complete or unchanged, and the transport is usable.

        How to fix: write to a temporary location and rename it, or publish the chunk after its last byte; clean up in
        ``finally``.
        """
        for turns in range(_YIELDS):
            folder = tmp_path / str(turns)
            folder.mkdir()
            steps = self.steps(folder)
            plan = TransportPlan.from_steps(f"kit-cancel-{turns}", steps)
            task = asyncio.ensure_future(transport.execute(plan))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            for i, step in enumerate(steps):
                self.arrived(step, i)
        folder = tmp_path / "after"
        folder.mkdir()
        report = await transport.execute(TransportPlan.from_steps("kit-after", self.steps(folder)))
        assert report.ok, f"after a cancelled plan: {report.errors}"

    async def test_a_plan_can_be_carried_out_again(self, transport: Any, tmp_path: Path) -> None:
        """Executing a plan again has the same result, so that a plan can be retried after a lost report.

        How to fix: replace an existing chunk at the target, or verify and keep it.
        """
        plan = TransportPlan.from_steps("kit-again", self.steps(tmp_path))
        for _ in range(2):
            report = await transport.execute(plan)
            assert report.ok, f"{report.statuses}, {report.errors}"

    async def test_plans_run_side_by_side(self, transport: Any, tmp_path: Path) -> None:
        """Concurrent plans do not mix.

        How to fix: name temporary files and buffers by plan and step.
        """
        folders = [tmp_path / str(i) for i in range(3)]
        for folder in folders:
            folder.mkdir()
        plans = [TransportPlan.from_steps(f"kit-{i}", self.steps(folder)) for i, folder in enumerate(folders)]
        for plan, report in zip(plans, await asyncio.gather(*map(transport.execute, plans)), strict=True):
            assert report.plan_id == plan.plan_id
            assert report.ok, f"{report.statuses}, {report.errors}"
            assert all(self.arrived(step, i) for i, step in enumerate(plan.steps))

    async def test_close_twice_is_safe(self, transport: Any) -> None:
        """A second ``close`` does nothing.

        How to fix: return immediately if it is already closed.
        """
        await transport.close()
        await transport.close()

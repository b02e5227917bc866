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

_YIELDS = 6  # how many turns of the event loop a plan gets before it is cancelled


class TransportContract(TransportSuite, kit=True):
    """Everything that a ``Transport`` promises. Override the four methods of ``TransportSuite``."""

    def test_has_the_shape_of_its_protocol(self, transport: Any) -> None:
        """Every method of ``Transport`` is there with its parameters.

        How to fix: the message names each; copy the signature from ``sage_infer.contracts.Transport``.
        """
        problems = shape_problems(transport, Transport)
        assert not problems, f"not a Transport: {'; '.join(problems)}"

    def test_knows_what_it_reaches(self, transport: Any, tmp_path: Path) -> None:
        """``can_reach`` is true for its own places and false for a scheme that nobody has.

        How to fix: look at the URI schemes of both ends.
        """
        step = self.step(8, "c0", tmp_path)
        assert transport.can_reach(step.source, step.target)
        assert not transport.can_reach(step.source, self.unreachable)
        assert not transport.can_reach(self.unreachable, step.target)

    async def test_moves_every_chunk(self, transport: Any, tmp_path: Path) -> None:
        """All chunks arrive whole; the report has a status for each step, in the plan's order.

        How to fix: steps may run in any order, the report's ``statuses`` are in the plan's.
        """
        steps = self.steps(tmp_path)
        report = await transport.execute(TransportPlan.from_steps("kit-plan", steps))
        assert isinstance(report, TransportReport), f"execute() gave a {type(report).__name__}"
        assert report.plan_id == "kit-plan", f"the report is of {report.plan_id!r}"
        assert report.statuses == ("done",) * len(steps), f"{report.statuses}, {report.errors}"
        assert report.moved_bytes == sum(SIZES), (
            f"{sum(SIZES)} bytes moved, the report says {report.moved_bytes}"
        )
        for i, step in enumerate(steps):
            assert self.arrived(step, i), f"step {i} is done, and nothing is at {step.target}"
            assert self.contents(step.source) == self.data(SIZES[i], f"c{i}"), (
                f"the source of step {i} has changed"
            )

    async def test_an_empty_plan_is_done(self, transport: Any) -> None:
        """A plan without steps returns an empty report.

        How to fix: nothing to do is no error.
        """
        report = await transport.execute(TransportPlan(plan_id="kit-empty", total_bytes=0))
        assert report.statuses == (), report
        assert report.ok

    async def test_a_damaged_chunk_fails_its_step_alone(self, transport: Any, tmp_path: Path) -> None:
        """Bytes that do not fit their checksum fail the step and never appear at the target; others arrive.

        How to fix: verify on arrival, before the chunk can be seen under its target's name.
        """
        steps = list(self.steps(tmp_path))
        damaged = bytearray(self.data(SIZES[1], "c1"))
        damaged[SIZES[1] // 2] ^= 1
        steps[1] = self.step(SIZES[1], "c1", tmp_path, source=self.place(bytes(damaged), "damaged", tmp_path))
        report = await transport.execute(TransportPlan.from_steps("kit-damaged", tuple(steps)))
        assert report.statuses == ("done", "failed", "done", "done"), f"{report.statuses}, {report.errors}"
        assert len(report.errors) == 1, f"one message a failed step, got {report.errors}"
        assert not self.arrived(steps[1], 1), "a damaged chunk is at its target"
        assert report.moved_bytes == sum(SIZES) - SIZES[1], (
            f"moved_bytes counts what did not arrive: {report}"
        )

    async def test_a_missing_source_fails_its_step_alone(self, transport: Any, tmp_path: Path) -> None:
        """A step whose source is not there fails; the others arrive.

        How to fix: turn the I/O error into a failed step with a message that names the source.
        """
        steps = list(self.steps(tmp_path))
        steps[0] = self.step(SIZES[0], "c0", tmp_path, source=self.target(SIZES[0], "not-there", tmp_path))
        report = await transport.execute(TransportPlan.from_steps("kit-missing", tuple(steps)))
        assert report.statuses == ("failed", "done", "done", "done"), f"{report.statuses}, {report.errors}"
        assert not self.arrived(steps[0], 0), "something is at the target of a step without a source"

    async def test_a_plan_out_of_reach_is_refused(self, transport: Any, tmp_path: Path) -> None:
        """A step to a place of an unknown kind is ``InvalidRequest``, before anything has moved.

        How to fix: call ``can_reach`` for all steps first.
        """
        good = self.step(64, "c0", tmp_path)
        bad = self.step(64, "c1", tmp_path, target=self.unreachable)
        with pytest.raises(InvalidRequest):
            await transport.execute(TransportPlan.from_steps("kit-far", (good, bad)))
        assert not self.arrived(good, 0), "a step of a refused plan was carried out"

    async def test_a_chunk_without_a_checksum_is_refused(self, transport: Any, tmp_path: Path) -> None:
        """A step whose chunk has no checksum is ``InvalidRequest``, and nothing is moved.

        How to fix: look at all chunks before the first one moves; what cannot be verified must not arrive.
        """
        good, bad = self.step(64, "c0", tmp_path), self.step(64, "c1", tmp_path)
        bad = attrs.evolve(bad, chunk=attrs.evolve(bad.chunk, checksum=None))
        with pytest.raises(InvalidRequest):
            await transport.execute(TransportPlan.from_steps("kit-bare", (good, bad)))
        assert not self.arrived(good, 0), "a step of a refused plan was carried out"

    async def test_an_unknown_checksum_is_refused(self, transport: Any, tmp_path: Path) -> None:
        """A checksum of an algorithm that nobody knows is ``UnsupportedFeature`` that names it; nothing is moved.

        How to fix: verify ``xxh3-64`` with ``sage_infer.sdk.verify``, and refuse every other algorithm.
        """
        good, bad = self.step(64, "c0", tmp_path), self.step(64, "c1", tmp_path)
        bad = attrs.evolve(bad, chunk=attrs.evolve(bad.chunk, checksum="kit-sum:0123456789abcdef"))
        with pytest.raises(UnsupportedFeature, match="kit-sum"):
            await transport.execute(TransportPlan.from_steps("kit-unknown", (good, bad)))
        assert not self.arrived(good, 0), "a step of a refused plan was carried out"

    async def test_each_step_is_told_as_it_ends(self, transport: Any, tmp_path: Path) -> None:
        """``on_step`` is called once for each step, in the event loop, with the status that the report has.

        How to fix: call it when the step has ended and its chunk can be read at the target; from a thread use
        ``loop.call_soon_threadsafe``, and return from ``execute`` after the last call.
        """
        steps = list(self.steps(tmp_path))
        steps[0] = self.step(SIZES[0], "c0", tmp_path, source=self.target(SIZES[0], "not-there", tmp_path))
        told: dict[int, str] = {}
        loop = asyncio.get_running_loop()

        def on_step(index: int, status: str) -> None:
            assert asyncio.get_running_loop() is loop, "on_step was called outside of the event loop"
            assert index not in told, f"step {index} ended twice"
            assert status != "done" or self.arrived(steps[index], index), (
                f"step {index} is done and not there"
            )
            told[index] = status

        plan = TransportPlan.from_steps("kit-steps", tuple(steps))
        report = await transport.execute(plan, on_step=on_step)
        assert [told.get(index) for index in range(len(steps))] == list(report.statuses), (
            f"on_step said {told}, the report {report.statuses}"
        )

    async def test_reports_are_well_formed(self, transport: Any, tmp_path: Path) -> None:
        """A report has one message for each failed step, and seconds for each step or for none.

        How to fix: collect ``errors`` and ``step_seconds`` in the plan's order; leave ``step_seconds`` empty where
        steps are not measured, and count each further attempt in ``retries``.
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
        """``register`` takes a region of memory, twice too.

        How to fix: return immediately where no registration is needed.
        """
        region = memoryview(bytearray(4096))
        for _ in range(2):
            transport.register(region)

    async def test_cancelling_leaves_no_partial_chunk(self, transport: Any, tmp_path: Path) -> None:
        """A plan that is cancelled leaves each target whole or untouched, and the transport usable.

        How to fix: write aside and rename, or publish with the last byte; clean up in ``finally``.
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
        """The same plan twice ends the same way: a retry after a lost report does no harm.

        How to fix: replace what is at the target, or verify it and leave it.
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

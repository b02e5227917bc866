"""The kit for transports."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sage_infer.contracts import Transport
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import (
    KVCacheSchema,
    KVChunk,
    KVLocation,
    TransportPlan,
    TransportReport,
    TransportStep,
)
from sage_infer.sdk import checksum

from sage_infer_testing.shape import shape_problems
from sage_infer_testing.suite import ContractSuite

__all__ = ["TransportContract"]

_SIZES = (64, 100_000, 1, 9_000)
_YIELDS = 6  # how many turns of the event loop a plan gets before it is cancelled


class TransportContract(ContractSuite, kit=True):
    """Everything that a ``Transport`` promises. Override the four methods below.

    ``make_transport`` gives the transport; ``place`` puts bytes where it can fetch them; ``target`` names a place
    where it can put some; ``contents`` reads them there. ``folder`` is empty at the start of each test.
    """

    unreachable: ClassVar[KVLocation] = KVLocation(tier="remote", uri="nowhere-kit://host/chunk")

    def make_transport(self) -> Transport:
        """The transport."""
        pytest.fail(f"{type(self).__name__} must override make_transport()")

    def place(self, data: bytes, name: str, folder: Path) -> KVLocation:
        """Put ``data`` where the transport can fetch it."""
        pytest.fail(f"{type(self).__name__} must override place(data, name, folder)")

    def target(self, nbytes: int, name: str, folder: Path) -> KVLocation:
        """A place for ``nbytes`` where nothing is yet."""
        pytest.fail(f"{type(self).__name__} must override target(nbytes, name, folder)")

    def contents(self, location: KVLocation) -> bytes | None:
        """What is there now; None where nothing is, or nothing was ever written."""
        pytest.fail(f"{type(self).__name__} must override contents(location)")

    def checksum(self, data: bytes) -> str:
        """``KVChunk.checksum`` of some bytes: the xxh3-64 that every transport verifies."""
        return checksum(data)

    # --- what tests use

    @pytest.fixture
    def transport(self) -> Iterator[Any]:
        """A transport, closed after the test."""
        made = self.make_transport()
        yield made
        self.run(made.close())

    def data(self, size: int, name: str) -> bytes:
        """Bytes that belong to a name."""
        return hashlib.shake_128(name.encode()).digest(size)

    def step(self, size: int, name: str, folder: Path, **changes: Any) -> TransportStep:
        """A step that moves the bytes of ``name``; ``changes`` replace its fields."""
        data = self.data(size, name)
        schema = KVCacheSchema(dtype="int8", page_size=size, num_layers=1, num_heads=1, head_dim=1,
                               scale_dtype="fp32", scale_granularity="tensor")  # fmt: skip
        chunk = KVChunk(
            chunk_id=hashlib.blake2b(name.encode(), digest_size=16).hexdigest(), request_id="kit", layer_start=0,
            layer_end=1, token_start=0, token_end=size, kv_schema=schema, nbytes=size, checksum=self.checksum(data),
        )  # fmt: skip
        fields: Mapping[str, Any] = {
            "chunk": chunk, "nbytes": size, "source": None, "target": None, **changes,
        }  # fmt: skip
        source = fields["source"] or self.place(data, f"{name}.source", folder)
        target = fields["target"] or self.target(size, f"{name}.target", folder)
        return TransportStep(**{**fields, "source": source, "target": target})

    def steps(self, folder: Path, sizes: tuple[int, ...] = _SIZES) -> tuple[TransportStep, ...]:
        """Steps of different sizes, the later ones more urgent."""
        return tuple(self.step(size, f"c{i}", folder, priority=-i) for i, size in enumerate(sizes))

    def arrived(self, step: TransportStep, index: int) -> bool:
        """Whether a step's bytes are at its target; fails where something else is."""
        __tracebackhide__ = True
        found = self.contents(step.target)
        expected = self.data(step.chunk.nbytes, f"c{index}")
        assert found is None or found == expected, (
            f"step {index} left {len(found or b'')} other bytes at {step.target}"
        )
        return found is not None

    # --- tests

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
        assert report.moved_bytes == sum(_SIZES), (
            f"{sum(_SIZES)} bytes moved, the report says {report.moved_bytes}"
        )
        for i, step in enumerate(steps):
            assert self.arrived(step, i), f"step {i} is done, and nothing is at {step.target}"
            assert self.contents(step.source) == self.data(_SIZES[i], f"c{i}"), (
                f"the source of step {i} has changed"
            )

    async def test_an_empty_plan_is_done(self, transport: Any) -> None:
        """A plan without steps gives an empty report.

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
        damaged = bytearray(self.data(_SIZES[1], "c1"))
        damaged[_SIZES[1] // 2] ^= 1
        steps[1] = self.step(
            _SIZES[1], "c1", tmp_path, source=self.place(bytes(damaged), "damaged", tmp_path)
        )
        report = await transport.execute(TransportPlan.from_steps("kit-damaged", tuple(steps)))
        assert report.statuses == ("done", "failed", "done", "done"), f"{report.statuses}, {report.errors}"
        assert len(report.errors) == 1, f"one message a failed step, got {report.errors}"
        assert not self.arrived(steps[1], 1), "a damaged chunk is at its target"
        assert report.moved_bytes == sum(_SIZES) - _SIZES[1], (
            f"moved_bytes counts what did not arrive: {report}"
        )

    async def test_a_missing_source_fails_its_step_alone(self, transport: Any, tmp_path: Path) -> None:
        """A step whose source is not there fails; the others arrive.

        How to fix: turn the I/O error into a failed step with a message that names the source.
        """
        steps = list(self.steps(tmp_path))
        steps[0] = self.step(_SIZES[0], "c0", tmp_path, source=self.target(_SIZES[0], "not-there", tmp_path))
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
        """Several plans at once do not mix.

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

        How to fix: return at once where it is closed already.
        """
        await transport.close()
        await transport.close()

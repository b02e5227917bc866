"""Identity and load of an instance, if ``reports`` is claimed."""

from __future__ import annotations

from typing import Any

import pytest
from sage_infer.contracts import InstanceReporting
from sage_infer.errors import EngineDead
from sage_infer.schemas import InstanceDescriptor, InstanceReport
from sage_infer.schemas.codec import from_json, to_json

from sage_infer_testing.features import when_claimed
from sage_infer_testing.kits.lifecycle import CapabilitySuite
from sage_infer_testing.shape import shape_problems

__all__ = ["ReportTests"]

_SHARED = ("running", "waiting", "kv_blocks_total", "kv_blocks_free", "kv_blocks_cached", "finished",
           "prompt_tokens", "output_tokens", "prefix_hit_tokens", "steps")  # fmt: skip


class ReportTests(CapabilitySuite, kit=True):
    """``describe`` and ``report``."""

    @when_claimed("reports")
    def test_describes_itself_the_same_each_time(self, backend: Any) -> None:
        """``describe`` always returns the same ``InstanceDescriptor`` with the instance's own capability.

        How to fix: create it once, in ``start``; ``generation`` is the start time in nanoseconds since the epoch.
        """
        problems = shape_problems(backend, InstanceReporting)
        assert not problems, f"not an InstanceReporting: {'; '.join(problems)}"
        identity = backend.describe()
        assert isinstance(identity, InstanceDescriptor), f"describe() returned a {type(identity).__name__}"
        assert backend.describe() == identity, "two calls of describe() differ"
        assert from_json(to_json(identity), InstanceDescriptor) == identity
        assert identity.generation > 0, "generation must be the start time in nanoseconds"
        assert identity.model_ids, "model_ids is empty"
        assert identity.capability == backend.get_capability(), "the capability differs from get_capability()"
        has_kv = identity.capability.kv_schema is not None
        assert (identity.key_space is not None) is has_kv, (
            f"key_space is {identity.key_space!r} with kv_schema {identity.capability.kv_schema}"
        )

    @when_claimed("reports")
    def test_reports_count_up(self, backend: Any) -> None:
        """Reports belong to the described instance, have the state ``ready``, and each increments ``seq`` by one.

        How to fix: count calls of ``report``; copy ``instance_id`` and ``generation`` from the descriptor; ``taken_at``
        is ``time.monotonic()``.
        """
        identity, first, second = backend.describe(), backend.report(), backend.report()
        for report in (first, second):
            assert isinstance(report, InstanceReport), f"report() returned a {type(report).__name__}"
            assert from_json(to_json(report), InstanceReport) == report
            assert (report.instance_id, report.generation) == (identity.instance_id, identity.generation)
            assert report.state == "ready", f"state {report.state!r} of a started instance"
        assert second.seq == first.seq + 1, f"seq went from {first.seq} to {second.seq}"
        assert second.taken_at >= first.taken_at, "taken_at ran backwards"

    @when_claimed("reports")
    async def test_reports_agree_with_stats(self, backend: Any) -> None:
        """An idle instance reports the same numbers as ``stats``, and at most as many free and cached blocks as exist.

        How to fix: read both from the same counters.
        """
        await self.ask(backend)
        stats = await self.idle(backend)
        report = backend.report()
        differ = {
            name: (getattr(report, name), getattr(stats, name))
            for name in _SHARED
            if getattr(report, name) != getattr(stats, name)
        }
        assert not differ, f"report and stats differ: {differ}"
        assert (report.kv_blocks_cached or 0) <= report.kv_blocks_free <= report.kv_blocks_total, report
        assert report.waiting_prompt_tokens == report.running_context_tokens == 0, (
            f"the instance is idle, but reports {report}"
        )
        assert report.oldest_wait_s == 0, f"no request waits, but oldest_wait_s is {report.oldest_wait_s}"

    @when_claimed("reports")
    async def test_steps_grow_with_work(self, backend: Any) -> None:
        """A request increases ``steps`` and ``finished``.

        How to fix: count engine steps; a supervisor considers a busy instance stuck if its steps do not grow.
        """
        await self.idle(backend)
        before = backend.report()
        await self.ask(backend)
        await self.idle(backend)
        after = backend.report()
        assert after.steps > before.steps, (
            f"a request did not increase steps: {before.steps} before and after"
        )
        assert after.finished == before.finished + 1, (
            f"finished went from {before.finished} to {after.finished}"
        )

    @when_claimed("reports")
    async def test_only_running_instances_describe_themselves(
        self, backend: Any, closed_backend: Any
    ) -> None:
        """``describe`` raises ``EngineDead`` before ``start`` and after ``close``.

        How to fix: first check whether the instance is running.
        """
        fresh = self.make_backend()
        try:
            for instance in (fresh, closed_backend):
                with pytest.raises(EngineDead):
                    instance.describe()
        finally:
            await fresh.close()

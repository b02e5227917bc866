"""What every backend has, whatever it serves: shape, capability, health, start and close."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from sage_infer.contracts import EngineStats, Health, Lifecycle, ProgressReporting
from sage_infer.schemas import CapabilityDescriptor
from sage_infer.schemas.codec import from_json, to_json

from sage_infer_testing.kits.opening import BackendSuite
from sage_infer_testing.shape import shape_problems

__all__ = ["CapabilitySuite", "LifecycleSuite"]

_COUNTS = ("running", "waiting", "finished", "prompt_tokens", "output_tokens", "prefix_hit_tokens",
           "waiting_prompt_tokens", "running_context_tokens", "oldest_wait_s", "steps")  # fmt: skip


class LifecycleSuite(BackendSuite, kit=True):
    """Tests of the life of an instance."""

    protocol: ClassVar[type] = Lifecycle

    def test_has_the_shape_of_its_protocol(self, backend: Any) -> None:
        """Every method of the protocol is there, async where it must be, and takes the contract's arguments.

        How to fix: the message names each method and parameter. Copy the signature from the protocol in
        ``sage_infer.contracts``; further parameters need a default, and keyword-only ones keep their names.
        """
        problems = shape_problems(backend, self.protocol)
        assert not problems, f"not a {self.protocol.__name__}: {'; '.join(problems)}"
        assert isinstance(backend, self.protocol), f"isinstance(…, {self.protocol.__name__}) is false"

    async def test_is_healthy(self, backend: Any) -> None:
        """A started instance reports ``ok``.

        How to fix: ``health`` returns ``Health(status="ok")`` from the end of ``start`` on, and must not run a
        request to find out.
        """
        health = await backend.health()
        assert isinstance(health, Health), f"health() gave a {type(health).__name__}"
        assert health.status == "ok", f"status {health.status!r}, reason {health.reason!r}"

    def test_stats_are_gauges(self, backend: Any) -> None:
        """``stats`` returns counts that are not negative, and no more free KV blocks than there are.

        How to fix: return ``EngineStats`` from counters that the scheduler keeps; an instance without KV says 0 for
        both block counts.
        """
        stats = backend.stats()
        assert isinstance(stats, EngineStats), f"stats() gave a {type(stats).__name__}"
        for name in _COUNTS:
            assert getattr(stats, name) >= 0, f"stats().{name} is {getattr(stats, name)}"
        assert 0 <= stats.kv_blocks_free <= stats.kv_blocks_total, stats
        assert 0 <= (stats.kv_blocks_cached or 0) <= stats.kv_blocks_free, stats
        assert stats.step_s is None or stats.step_s >= 0, f"stats().step_s is {stats.step_s}"

    async def test_progress_is_reported_during_start(self) -> None:
        """A backend with ``on_progress`` reports stages, and shares of 0 to 1, until ``start`` returns and not after.

        How to fix: call ``report(stage, share)`` while loading, with share None where it is not known; keep nothing
        running that reports after ``start``.
        """
        backend = self.make_backend()
        if not hasattr(backend, "on_progress"):
            pytest.skip("the backend has no on_progress")
        problems = shape_problems(backend, ProgressReporting)
        reports: list[tuple[str, float | None]] = []
        try:
            assert not problems, f"not a ProgressReporting: {'; '.join(problems)}"
            backend.on_progress(lambda stage, share: reports.append((stage, share)))
            await backend.start()
            during = list(reports)
            await backend.health()
        finally:
            await backend.close()
        assert during, "start() reported nothing"
        assert all(stage for stage, _ in during), f"a report without a stage: {during}"
        wrong = [share for _, share in during if share is not None and not 0 <= share <= 1]
        assert not wrong, f"shares outside of 0 to 1: {wrong}"
        assert reports == during, f"reported after start() had returned: {reports[len(during) :]}"

    async def test_close_without_start_is_safe(self) -> None:
        """``close`` on an instance that was never started does nothing: it is what ``open_backend`` calls when
        ``start`` has failed.

        How to fix: set every resource to None in ``__init__`` and free in ``close`` only those that are there.
        """
        backend = self.make_backend()
        try:
            await backend.close()
        except Exception as error:
            pytest.fail(f"close() of an instance that was never started raised {error!r}")

    async def test_close_twice_is_safe(self, closed_backend: Any) -> None:
        """A second ``close`` does nothing.

        How to fix: let ``close`` return immediately if the instance is already closed.
        """
        try:
            await closed_backend.close()
        except Exception as error:
            pytest.fail(f"a second close() raised {error!r}")

    async def test_is_dead_after_close(self, closed_backend: Any) -> None:
        """``health`` of a closed instance is ``dead`` and gives a reason; it does not raise.

        How to fix: return ``Health(status="dead", reason="closed")`` after ``close``.
        """
        health = await closed_backend.health()
        assert health.status == "dead", f"status {health.status!r} after close()"
        assert health.reason, "a dead instance must say why in Health.reason"


class CapabilitySuite(LifecycleSuite, kit=True):
    """Tests of what an instance with one model says of itself."""

    async def ask(self, backend: Any, *, options: Any = None) -> None:
        """A small request with these options, to its end; each kind of backend has its own."""
        raise NotImplementedError(f"{type(self).__name__} has no request to send")

    def test_capability_survives_json(self, backend: Any) -> None:
        """``get_capability`` returns a descriptor that reads back from JSON as it was.

        How to fix: return a ``CapabilityDescriptor`` made of plain numbers and strings; a numpy scalar or an enum of
        the engine must be converted.
        """
        capability = backend.get_capability()
        assert isinstance(capability, CapabilityDescriptor), (
            f"get_capability() gave a {type(capability).__name__}"
        )
        assert from_json(to_json(capability), CapabilityDescriptor) == capability

    def test_capability_is_stable(self, backend: Any) -> None:
        """Two calls of ``get_capability`` on a running instance agree, so that schedulers can cache it.

        How to fix: report limits of the loaded engine, not what is free at the moment; that belongs in ``stats``.
        """
        assert backend.get_capability() == backend.get_capability()

    def test_capability_names_the_backend(self, backend: Any) -> None:
        """``backend_name`` is the name that the plug-in registered.

        How to fix: use the same string in ``BackendSpec.name`` and ``CapabilityDescriptor.backend_name``.
        """
        name = backend.get_capability().backend_name
        assert not self.backend_name or name == self.backend_name, (
            f"{name!r} is registered as {self.backend_name!r}"
        )

    def test_honours_the_sequence_limit(self, backend: Any) -> None:
        """An instance opened with a smaller ``max_sequence_length`` keeps to it.

        How to fix: where ``ModelDescriptor.max_sequence_length`` is set, pass it to the engine, and report the
        smaller of it and the model's own limit in ``CapabilityDescriptor.max_sequence_length``.
        """
        limit = backend.get_capability().max_sequence_length
        assert not (self.backend_name and self.sequence_limit) or limit <= self.sequence_limit, (
            f"opened with max_sequence_length={self.sequence_limit}, reports {limit}"
        )

"""Tests of all backends: protocol, capability, health, start and close."""

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
    """Tests of the life cycle of an instance."""

    protocol: ClassVar[type] = Lifecycle

    def test_has_the_shape_of_its_protocol(self, backend: Any) -> None:
        """Every method of the protocol exists with the parameters of the contract, and is async if required.

        How to fix: the message names each method and parameter. Copy the signature from the protocol in
        ``sage_infer.contracts``. Additional parameters need a default; keyword-only parameters keep their names.
        """
        problems = shape_problems(backend, self.protocol)
        assert not problems, f"not a {self.protocol.__name__}: {'; '.join(problems)}"
        assert isinstance(backend, self.protocol), f"isinstance(…, {self.protocol.__name__}) is false"

    async def test_is_healthy(self, backend: Any) -> None:
        """A started instance reports ``ok``.

        How to fix: return ``Health(status="ok")`` after ``start`` has finished; do not run a request to find out.
        """
        health = await backend.health()
        assert isinstance(health, Health), f"health() returned a {type(health).__name__}"
        assert health.status == "ok", f"status {health.status!r}, reason {health.reason!r}"

    async def test_is_starting_before_start(self) -> None:
        """``health`` of an instance whose ``start`` was not called yet is ``starting``; it does not raise.

        How to fix: begin with the status ``starting``; it is ``ok`` once ``start`` returns, and ``dead`` after
        ``close``.
        """
        backend = self.make_backend()
        try:
            health = await backend.health()
            assert health.status == "starting", f"status {health.status!r} before start()"
        finally:
            await backend.close()

    def test_stats_are_gauges(self, backend: Any) -> None:
        """``stats`` returns non-negative counts, and at most as many free KV blocks as the total.

        How to fix: return ``EngineStats`` with the scheduler's counters; without KV, both block counts are 0.
        """
        stats = backend.stats()
        assert isinstance(stats, EngineStats), f"stats() returned a {type(stats).__name__}"
        for name in _COUNTS:
            assert getattr(stats, name) >= 0, f"stats().{name} is {getattr(stats, name)}"
        assert 0 <= stats.kv_blocks_free <= stats.kv_blocks_total, stats
        assert 0 <= (stats.kv_blocks_cached or 0) <= stats.kv_blocks_free, stats
        assert stats.step_s is None or stats.step_s >= 0, f"stats().step_s is {stats.step_s}"

    async def test_progress_is_reported_during_start(self) -> None:
        """A backend with ``on_progress`` reports stages and shares of 0 to 1 during ``start``, and not afterwards.

        How to fix: call ``report(stage, share)`` while loading, with share None if unknown; stop all reporting tasks
        before ``start`` returns.
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
        """``close`` is safe on an instance that was never started; ``open_backend`` calls it when ``start`` fails.

        How to fix: set every resource to None in ``__init__``, and free only existing resources in ``close``.
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
        """``health`` of a closed instance returns ``dead`` with a reason; it does not raise.

        How to fix: return ``Health(status="dead", reason="closed")`` after ``close``.
        """
        health = await closed_backend.health()
        assert health.status == "dead", f"status {health.status!r} after close()"
        assert health.reason, "Health.reason of a dead instance must not be empty"


class CapabilitySuite(LifecycleSuite, kit=True):
    """Tests of the capability of an instance with one model."""

    async def ask(self, backend: Any, *, options: Any = None) -> None:
        """Send a small request with these options and wait for its end; each kind of backend overrides this."""
        raise NotImplementedError(f"{type(self).__name__} has no request to send")

    def test_capability_survives_json(self, backend: Any) -> None:
        """``get_capability`` returns a descriptor that survives a round trip through JSON.

        How to fix: return a ``CapabilityDescriptor`` with plain numbers and strings; convert numpy scalars and the
        engine's enums.
        """
        capability = backend.get_capability()
        assert isinstance(capability, CapabilityDescriptor), (
            f"get_capability() returned a {type(capability).__name__}"
        )
        assert from_json(to_json(capability), CapabilityDescriptor) == capability

    def test_capability_is_stable(self, backend: Any) -> None:
        """Two calls of ``get_capability`` on a running instance return the same, so that schedulers can cache it.

        How to fix: report limits of the loaded engine; free capacity belongs in ``stats``.
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
        """An instance opened with a smaller ``max_sequence_length`` enforces it.

        How to fix: if ``ModelDescriptor.max_sequence_length`` is set, pass it to the engine, and report the smaller of
        this value and the model's own limit in ``CapabilityDescriptor.max_sequence_length``.
        """
        limit = backend.get_capability().max_sequence_length
        assert not (self.backend_name and self.sequence_limit) or limit <= self.sequence_limit, (
            f"opened with max_sequence_length={self.sequence_limit}, reports {limit}"
        )

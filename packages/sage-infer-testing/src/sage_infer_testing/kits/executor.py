"""The kit for executors, which run replicas."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import attrs
import pytest
from sage_infer.compat import wait_for
from sage_infer.contracts import Executor, ReplicaExit, ReplicaHandle
from sage_infer.errors import BackendUnavailable, EngineDead, InvalidRequest, OutOfMemory, UnsupportedFeature
from sage_infer.schemas import InstanceDescriptor, ReplicaSpec

from sage_infer_testing.shape import shape_problems
from sage_infer_testing.suite import ContractSuite

__all__ = ["ExecutorContract"]

_NUMBERS = itertools.count(1)
_NO_BACKEND = "kit-no-such-backend"


class ExecutorContract(ContractSuite, kit=True):
    """Guarantees of an ``Executor``. Override ``make_executor`` and ``make_spec``.

    Attributes:
        outlives_caller: whether replicas continue after ``close``, for a later executor to adopt.
        unsupported: fields of a spec that the executor does not support and must refuse, such as ``{"gpus": 1.0}``; if
            it is empty, the test is skipped.
        start_timeout_s: start timeout of replicas in these tests, in seconds.
    """

    outlives_caller: ClassVar[bool] = False
    unsupported: ClassVar[Mapping[str, Any]] = {}
    start_timeout_s: ClassVar[float] = 60.0

    def make_executor(self) -> Executor:
        """Return an executor. Called several times; each executor can adopt replicas that outlived earlier ones."""
        pytest.fail(f"{type(self).__name__} must override make_executor()")

    def make_spec(self, replica_id: str) -> ReplicaSpec:
        """Return the spec of a replica with this id that the executor can run."""
        pytest.fail(f"{type(self).__name__} must override make_spec(replica_id)")

    async def use(self, handle: ReplicaHandle) -> None:
        """Send the replica a small request; fail if it does not answer.

        The default checks the health of a backend in this process. Override it for replicas in other processes.
        """
        backend: Any = handle.backend
        if backend is not None:
            health = await backend.health()
            assert health.ok, f"the replica is {health.status}: {health.reason}"

    # --- helpers of the tests

    @pytest.fixture
    def executor(self) -> Iterator[Any]:
        """An executor; its replicas end with the test."""
        made = self.make_executor()
        self._handles: list[ReplicaHandle] = []
        yield made
        for handle in self._handles:
            self.run(handle.kill())
        self.run(made.close())

    def spec(self, **changes: Any) -> ReplicaSpec:
        """A spec with an id that no other replica has."""
        made = self.make_spec(changes.pop("replica_id", f"kit-replica-{next(_NUMBERS)}"))
        return attrs.evolve(made, **{"start_timeout_s": self.start_timeout_s, **changes})

    async def started(self, executor: Any, spec: ReplicaSpec | None = None) -> Any:
        """A replica that runs until the test ends."""
        handle = await executor.start(self.spec() if spec is None else spec)
        self._handles.append(handle)
        return handle

    async def ended(self, handle: ReplicaHandle) -> ReplicaExit:
        """Return the exit of the replica; fail if it does not end."""
        __tracebackhide__ = True
        try:
            found = await wait_for(handle.wait(), self.settle_s)
        except TimeoutError:
            pytest.fail(f"wait() did not return within {self.settle_s:g} s after the replica had ended")
        assert isinstance(found, ReplicaExit), f"wait() returned a {type(found).__name__}"
        return found

    # --- tests

    async def test_has_the_shape_of_its_protocol(self, executor: Any) -> None:
        """Every method of ``Executor``, and of the ``ReplicaHandle`` that it returns, exists with its parameters.

        How to fix: the message names each problem; copy the signature from ``sage_infer.contracts``.
        """
        problems = shape_problems(executor, Executor)
        assert not problems, f"not an Executor: {'; '.join(problems)}"
        problems = shape_problems(await self.started(executor), ReplicaHandle)
        assert not problems, f"not a ReplicaHandle: {'; '.join(problems)}"

    async def test_a_started_replica_is_ready(self, executor: Any) -> None:
        """``start`` returns when the replica is ready; its handle has the identity and addresses of the replica.

        How to fix: await the backend's ``start``, or its first healthy response, before returning. ``instance_id`` is
        the spec's ``replica_id``; ``inproc:`` is the address of a backend in this process.
        """
        spec = self.spec()
        handle = await self.started(executor, spec)
        await self.use(handle)
        assert handle.spec == spec, f"asked for {spec}, the handle has {handle.spec}"
        identity = handle.descriptor
        assert isinstance(identity, InstanceDescriptor), f"descriptor is a {type(identity).__name__}"
        assert identity.instance_id == spec.replica_id, f"instance_id is {identity.instance_id!r}"
        assert spec.model.model_id in identity.model_ids, (
            f"{spec.model.model_id!r} is not in {identity.model_ids}"
        )
        assert identity.addresses, "the descriptor has no address"
        is_here = any(address.startswith("inproc:") for address in identity.addresses)
        assert (handle.backend is not None) is is_here, f"backend {handle.backend!r} at {identity.addresses}"

    async def test_replicas_run_side_by_side(self, executor: Any) -> None:
        """Two replicas run simultaneously; stopping one leaves the other running.

        How to fix: keep all state of a replica in its handle.
        """
        one, other = await self.started(executor), await self.started(executor)
        await one.kill()
        await self.ended(one)
        await self.use(other)

    async def test_an_id_in_use_is_refused(self, executor: Any) -> None:
        """Starting a replica with the id of a running one is an ``InvalidRequest`` that names it; the first continues.

        How to fix: look up the id first, including replicas that are still starting.
        """
        handle = await self.started(executor)
        with pytest.raises(InvalidRequest, match=handle.spec.replica_id):
            await executor.start(handle.spec)
        await self.use(handle)

    async def test_simultaneous_starts_of_one_id_start_one(self, executor: Any) -> None:
        """Of two concurrent ``start`` calls with the same id, one is refused.

        How to fix: reserve the id before the first await, and release it if the start fails.
        """
        spec = self.spec()
        made = await asyncio.gather(executor.start(spec), executor.start(spec), return_exceptions=True)
        self._handles += [handle for handle in made if not isinstance(handle, BaseException)]
        errors = [error for error in made if isinstance(error, BaseException)]
        assert errors, f"two replicas have the id {spec.replica_id}"
        for error in errors:
            if not isinstance(error, InvalidRequest):
                raise error
        assert len(errors) == 1, f"none of two starts with the id {spec.replica_id} succeeded: {errors}"

    async def test_kill_ends_the_replica(self, executor: Any) -> None:
        """After ``kill`` every ``wait`` returns the same ``ReplicaExit`` with a reason; a second ``kill`` does too.

        How to fix: set one future when the replica has ended, and await it through ``asyncio.shield`` in each call.
        """
        handle = await self.started(executor)
        waiting = [asyncio.ensure_future(handle.wait()) for _ in range(2)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting), "wait() returned while the replica runs"
        killed = await handle.kill()
        assert killed.reason, "ReplicaExit.reason is empty"
        exits = [await self.ended(handle), await handle.kill(), *(await asyncio.gather(*waiting))]
        assert all(found == killed for found in exits), f"kill() returned {killed}, then {exits}"

    async def test_a_cancelled_wait_ends_nothing(self, executor: Any) -> None:
        """Cancelling one ``wait`` does not affect the replica or other calls of ``wait``.

        How to fix: await the shared future through ``asyncio.shield``.
        """
        handle = await self.started(executor)
        other = asyncio.ensure_future(handle.wait())
        given_up = asyncio.ensure_future(handle.wait())
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait([given_up])
        assert not other.done(), "the other wait() ended, too"
        await self.use(handle)
        await handle.kill()
        await other

    async def test_stop_closes_the_replica(self, executor: Any) -> None:
        """``stop`` closes the backend, ends the replica and returns its exit; it is safe to call twice.

        How to fix: await the backend's ``close`` for at most ``grace_s`` seconds, then kill the replica.
        """
        handle = await self.started(executor)
        backend: Any = handle.backend
        stopped = await handle.stop(grace_s=self.settle_s)
        assert isinstance(stopped, ReplicaExit), f"stop() returned a {type(stopped).__name__}"
        assert await self.ended(handle) == stopped
        assert await handle.stop() == stopped, "a second stop() says something else"
        if backend is not None:
            health = await backend.health()
            assert health.status == "dead", f"the backend is {health.status!r} after stop()"

    async def test_stop_without_grace_ends_it_all_the_same(self, executor: Any) -> None:
        """``stop(grace_s=0)`` ends the replica.

        How to fix: after the grace period, do the same as ``kill``.
        """
        handle = await self.started(executor)
        await handle.stop(grace_s=0.0)
        await self.ended(handle)

    async def test_an_id_is_free_after_its_end(self, executor: Any) -> None:
        """A replica that has ended can be restarted with the same id and a larger generation.

        How to fix: release the id when the replica ends; ``generation`` is its start time in nanoseconds.
        """
        first = await self.started(executor)
        before = first.descriptor
        await first.kill()
        await self.ended(first)
        again = await self.started(executor, first.spec)
        after = again.descriptor.generation
        assert after > before.generation, f"generation {before.generation}, and {after} after a restart"
        assert again.descriptor.instance_id == before.instance_id

    async def test_a_replica_that_cannot_start_leaves_nothing(self, executor: Any) -> None:
        """Starting a replica of a missing backend raises an error of the contract and leaves its id free.

        How to fix: free all resources, and raise ``BackendUnavailable``, ``OutOfMemory`` or ``EngineDead``.
        """
        spec = self.spec()
        with pytest.raises((BackendUnavailable, OutOfMemory, EngineDead)):
            await executor.start(attrs.evolve(spec, backend=_NO_BACKEND))
        await self.use(await self.started(executor, spec))

    async def test_what_it_cannot_do_is_refused(self, executor: Any) -> None:
        """A spec with an unsupported field is an ``UnsupportedFeature`` that names the field.

        How to fix: check the whole spec first; do not ignore any field.
        """
        if not self.unsupported:
            pytest.skip("unsupported is not set")
        for field, value in self.unsupported.items():
            with pytest.raises(UnsupportedFeature, match=field):
                await self.started(executor, self.spec(**{field: value}))

    async def test_close_lets_go(self, executor: Any) -> None:
        """``close`` stops replicas that end with their caller, leaves the others running, and is safe to call twice.

        How to fix: stop every replica in ``close``; if replicas outlive the caller, only close the connections.
        """
        other = self.make_executor()
        handle = await self.started(other)
        await other.close()
        await other.close()
        if self.outlives_caller:
            await self.use(handle)
        else:
            await self.ended(handle)

    async def test_adopts_what_outlived_its_caller(self, executor: Any) -> None:
        """``adopt`` returns the replicas of a closed executor, or none if replicas end with their caller.

        How to fix: look up their specs and descriptors where they are registered; return an empty list if replicas
        cannot outlive their caller.
        """
        other = self.make_executor()
        handle = await self.started(other)
        identity = handle.descriptor
        await other.close()
        found = {adopted.descriptor.instance_id: adopted for adopted in await executor.adopt()}
        if not self.outlives_caller:
            assert identity.instance_id not in found, f"{identity.instance_id} ended, and was adopted"
            return
        assert identity.instance_id in found, f"{identity.instance_id} is not among {sorted(found)}"
        adopted = found[identity.instance_id]
        self._handles.append(adopted)
        assert adopted.descriptor.generation == identity.generation, "adopted another replica of that id"
        await self.use(adopted)
        await adopted.kill()
        await self.ended(adopted)

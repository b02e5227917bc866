"""Executors with one mistake each."""

from __future__ import annotations

import asyncio
from typing import Any

from attrs import evolve
from kit_reference.executor import ReferenceExecutor, ReferenceHandle, toy_spec
from sage_infer.errors import InvalidRequest
from sage_infer_testing import ExecutorContract

from kit_broken.suites import suite


def executor(*tests: str) -> Any:
    settings = {
        "make_spec": lambda self, replica_id: toy_spec(replica_id),
        "unsupported": {"server": "some.module:serve", "gpus": 1.0},
    }
    return suite(ExecutorContract, "make_executor", *tests, **settings)


def with_handle(handle: type, *tests: str) -> None:
    """An executor whose replicas have this handle."""

    class WithHandle(ReferenceExecutor):
        async def start(self, spec: Any) -> Any:
            made = await super().start(spec)
            made.__class__ = handle
            return made

    WithHandle.__name__ = handle.__name__
    executor(*tests)(WithHandle)


@executor("test_an_id_in_use_is_refused", "test_simultaneous_starts_of_one_id_start_one")
class AnyId(ReferenceExecutor):
    def take(self, replica_id: str) -> None:
        self.replicas[replica_id] = None


@executor("test_simultaneous_starts_of_one_id_start_one")
class LooksTooEarly(ReferenceExecutor):
    def take(self, replica_id: str) -> None:
        if self.replicas.get(replica_id) is not None:
            raise InvalidRequest(f"{replica_id} runs already")

    def open(self, spec: Any) -> Any:
        backend = super().open(spec)
        start = backend.start

        async def slowly() -> None:
            await asyncio.sleep(0)
            await start()

        backend.start = slowly
        return backend


@executor("test_a_replica_that_cannot_start_leaves_nothing")
class KeepsTheIdOfAFailedStart(ReferenceExecutor):
    async def give_up(self, replica_id: str, backend: Any) -> None:
        await backend.close()


@executor("test_what_it_cannot_do_is_refused")
class TakesAnySpec(ReferenceExecutor):
    def check(self, spec: Any) -> None:
        """Takes it."""


@executor("test_close_lets_go")
class ForgetsItsReplicas(ReferenceExecutor):
    async def close(self) -> None:
        self.replicas.clear()


@executor("test_a_started_replica_is_ready")
class ReturnsTooEarly(ReferenceExecutor):
    def open(self, spec: Any) -> Any:
        backend = super().open(spec)

        async def start() -> None:
            """Later."""

        backend.start = start
        return backend


class WaitsForNothing(ReferenceHandle):
    async def wait(self) -> Any:
        return await self.kill()


class CancelsTheOthers(ReferenceHandle):
    async def wait(self) -> Any:
        return await self.exit


class LeavesTheBackendOpen(ReferenceHandle):
    async def stop(self, *, grace_s: float = 10.0) -> Any:
        if not self.exit.done():
            self.end("stopped")
        return self.exit.result()


class WaitsWithoutEnd(ReferenceHandle):
    async def stop(self, *, grace_s: float = 10.0) -> Any:
        if grace_s:
            return await super().stop(grace_s=grace_s)
        return None


class KeepsItsGeneration(ReferenceHandle):
    @property
    def descriptor(self) -> Any:
        return evolve(self.__dict__["descriptor"], generation=7)


class AnotherExitEachTime(ReferenceHandle):
    async def kill(self) -> Any:
        found = await super().kill()
        self.count = getattr(self, "count", 0) + 1
        return evolve(found, reason=f"killed {self.count} times")


with_handle(WaitsForNothing, "test_kill_ends_the_replica")
with_handle(CancelsTheOthers, "test_a_cancelled_wait_ends_nothing")
with_handle(LeavesTheBackendOpen, "test_stop_closes_the_replica")
with_handle(WaitsWithoutEnd, "test_stop_without_grace_ends_it_all_the_same")
with_handle(KeepsItsGeneration, "test_an_id_is_free_after_its_end")
with_handle(AnotherExitEachTime, "test_kill_ends_the_replica")

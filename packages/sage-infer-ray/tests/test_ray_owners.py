"""Actors and their owners on a cluster of two nodes: who takes a replica over, and when one ends without them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray_toys import TOKEN, spec
from sage_infer.errors import InvalidRequest
from sage_infer.schemas.codec import to_dict
from sage_infer_testing.waiting import eventually

ray = pytest.importorskip("ray")
pytest.importorskip("sage_llm")

from ray_help import WAIT_S, actor_id, leave, tokens_of  # noqa: E402 - needs Ray
from sage_infer_ray.actor import LEASE_S, ReplicaActor  # noqa: E402
from sage_infer_ray.cluster import Cluster  # noqa: E402
from sage_infer_ray.executor import RayExecutor  # noqa: E402
from sage_infer_ray.leave import main as leave_actor  # noqa: E402

pytestmark = pytest.mark.usefixtures("cluster")


def test_the_next_executor_adopts_what_a_dead_one_has_left(executor_of: Callable[..., RayExecutor]) -> None:
    async def main() -> None:
        first, second, third = executor_of(), executor_of(), executor_of()
        handle = await first.start(spec())
        tokens = await tokens_of(handle)
        leave(first)
        (adopted,) = await second.adopt()
        assert adopted.spec == spec()
        assert adopted.descriptor == handle.descriptor
        assert await tokens_of(adopted) == tokens
        assert "another control plane" in (await handle.wait()).reason
        await first.close()
        assert await third.adopt() == []
        with pytest.raises(InvalidRequest, match="belongs to another control plane"):
            await third.start(spec())
        assert await tokens_of(adopted) == tokens
        await second.close()
        assert await third.adopt() == []
        await third.close()

    asyncio.run(asyncio.wait_for(main(), WAIT_S))


def test_a_replica_of_a_dead_executor_is_started_anew(executor_of: Callable[..., RayExecutor]) -> None:
    async def main() -> None:
        first, second = executor_of(), executor_of()
        old: Any = await first.start(spec())
        leave(first)
        new: Any = None
        while new is None:  # until the lease of the dead one has ended
            try:
                new = await second.start(spec())
            except InvalidRequest as error:
                assert "belongs to another control plane" in str(error)  # noqa: PT017
                await asyncio.sleep(0.2)
        assert new.pid != old.pid
        assert len(await tokens_of(new)) == 3
        await old.wait()
        await second.close()
        await first.close()

    asyncio.run(asyncio.wait_for(main(), WAIT_S))


def test_of_two_executors_that_start_a_replica_one_is_refused(
    executor_of: Callable[..., RayExecutor], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        first, second = executor_of(), executor_of()
        handle = await first.start(spec())
        monkeypatch.setattr(second._cluster, "find", lambda replica_id: None)  # as a moment before
        with pytest.raises(InvalidRequest, match="was started by another control plane of the Ray namespace"):
            await second.start(spec())
        await eventually(
            lambda: len(first._cluster._groups("toy/0")) == 1, "its placement group is left", within_s=WAIT_S
        )
        assert len(await tokens_of(handle)) == 3
        await first.close()
        await second.close()

    asyncio.run(asyncio.wait_for(main(), WAIT_S))


def test_an_actor_that_does_not_answer_is_left_alone(
    executor_of: Callable[..., RayExecutor], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        first, second = executor_of(), executor_of()
        handle: Any = await first.start(spec())
        leave(first)
        monkeypatch.setattr("sage_infer_ray.executor._ANSWER_S", 1.0 - LEASE_S)
        os.kill(handle.pid, signal.SIGSTOP)
        try:
            assert await second.adopt() == []
            assert second._cluster.ids() == ["toy/0"]
        finally:
            os.kill(handle.pid, signal.SIGCONT)
        monkeypatch.undo()
        (adopted,) = await second.adopt()
        assert len(await tokens_of(adopted)) == 3
        await second.close()
        await first.close()

    asyncio.run(asyncio.wait_for(main(), WAIT_S))


def test_a_replica_whose_owner_died_ends_after_its_grace(executor_of: Callable[..., RayExecutor]) -> None:
    async def main() -> None:
        executor = executor_of(grace_s=0.0)
        await executor.start(spec())
        leave(executor)
        where = Cluster(executor._cluster.address, "tests")
        await eventually(lambda: not where.ids(), "the actor did not end", within_s=WAIT_S)
        await eventually(lambda: not where.is_placed("toy/0"), "the placement group is left", within_s=WAIT_S)

    asyncio.run(main())


def test_the_helper_of_a_leaving_actor_ends_that_one_only(
    with_executor: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(executor: RayExecutor) -> None:
        handle = await executor.start(spec())
        monkeypatch.setattr(ray, "init", lambda **options: None)  # this process is connected
        rows = ray.util.placement_group_table().values()
        (group,) = [row["placement_group_id"] for row in rows if row["state"] == "CREATED"]
        leave_actor(executor._cluster.address, "tests", "sage/toy/0", "another actor", "another group")
        leave_actor(executor._cluster.address, "tests", "sage/none", "another actor", "another group")
        assert len(await tokens_of(handle)) == 3
        leave_actor(executor._cluster.address, "tests", "sage/toy/0", actor_id("toy/0"), group)
        await handle.wait()
        await eventually(lambda: not executor._cluster.ids(), "the actor did not end", within_s=WAIT_S)
        assert not executor._cluster.is_placed("toy/0")

    with_executor(test)


def test_an_actor_without_an_owner_ends_itself(
    with_executor: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object in this process leaves as the actor on the cluster would, which then ends."""

    async def test(executor: RayExecutor) -> None:
        handle = await executor.start(spec())
        rows = ray.util.placement_group_table().values()
        (name,) = [row["name"] for row in rows if row["state"] == "CREATED"]
        found = actor_id("toy/0")
        context = SimpleNamespace(
            get_actor_id=lambda: found,
            gcs_address=executor._cluster.address,
            namespace="tests",
        )
        monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
        group = ray.util.get_placement_group(name)
        monkeypatch.setattr(ray.util, "get_current_placement_group", lambda: group)
        actor = ReplicaActor("sage/toy/0", 0.0)
        actor.beat("nobody")
        actor._silent_s = LEASE_S
        assert (await handle.wait()).reason
        await eventually(lambda: not executor._cluster.ids(), "the actor did not end", within_s=WAIT_S)
        await eventually(
            lambda: not executor._cluster.is_placed("toy/0"), "the group is left", within_s=WAIT_S
        )

    with_executor(test)


def test_an_empty_process_of_a_dead_executor_is_removed(executor_of: Callable[..., RayExecutor]) -> None:
    async def main() -> None:
        first, second = executor_of(), executor_of()
        handle: Any = await first.start(spec())
        leave(first)
        os.kill(handle.pid, signal.SIGKILL)
        assert await second.adopt() == []
        assert second._cluster.ids() == []
        await second.close()

    asyncio.run(asyncio.wait_for(main(), WAIT_S))


def test_the_actor_in_this_process(with_executor: Callable[..., None]) -> None:
    """The same object that Ray runs, without a process of its own."""

    async def test(executor: RayExecutor) -> None:
        await executor.adopt()  # connects
        actor = ReplicaActor("sage/toy/0", 60.0)
        assert actor.take("a") == {}
        assert "owned_s" in actor.take("b")
        assert actor.load("b", to_dict(spec()))["failed"][0] == "engine_dead"
        state = await asyncio.to_thread(actor.load, "a", to_dict(spec()))
        assert (state["pid"], state["spec"]) == (os.getpid(), to_dict(spec()))
        assert actor.take("a") == state
        assert os.environ.pop("SAGE_REPLICA_TOKEN") == TOKEN
        assert os.environ.pop("SAGE_REPLICA_HOST") in state["descriptor"]["addresses"][0]
        holding = asyncio.ensure_future(asyncio.to_thread(actor.hold, "a"))
        actor.beat("b")
        actor.beat("a")
        actor._silent_s = 1000.0
        assert actor.take("b") == state
        await holding
        await asyncio.to_thread(actor.stop)
        failing = ReplicaActor("sage/toy/1", 60.0)
        failing.take("a")
        failed = await asyncio.to_thread(failing.load, "a", to_dict(spec(backend="none-such")))
        assert failed["failed"][0] == "backend_unavailable"

    with_executor(test)

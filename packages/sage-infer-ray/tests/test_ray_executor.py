"""The executor on a cluster of two nodes: the kit, and what happens to actors, nodes and control planes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from ray_toys import TOKEN, spec
from sage_infer.contracts import ReplicaHandle
from sage_infer.errors import (
    BackendUnavailable,
    ConfigError,
    EngineDead,
    InvalidRequest,
    OutOfMemory,
    UnsupportedFeature,
)
from sage_infer.plugins import open_executor
from sage_infer.schemas import ReplicaSpec, SamplingParams
from sage_infer.schemas.codec import to_dict
from sage_infer_testing import ExecutorContract
from sage_infer_testing.waiting import eventually

ray = pytest.importorskip("ray")
pytest.importorskip("sage_llm")

from sage_infer_ray.actor import ReplicaActor  # noqa: E402 - needs Ray
from sage_infer_ray.cluster import Cluster, bundles_of  # noqa: E402
from sage_infer_ray.executor import RayExecutor  # noqa: E402
from sage_infer_ray.leave import main as leave_actor  # noqa: E402
from sage_llm.replicas.connect import connect  # noqa: E402

WAIT_S = 120.0
Test = Callable[[RayExecutor], Awaitable[None]]

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture
def executor_of(cluster: Any) -> Callable[..., RayExecutor]:
    def make(**options: Any) -> RayExecutor:
        return RayExecutor(address=cluster.address, namespace="tests", **options)

    return make


@pytest.fixture
def with_executor(executor_of: Callable[..., RayExecutor]) -> Callable[..., None]:
    """Run a coroutine function with an executor, which is closed then."""

    def run(test: Test, **options: Any) -> None:
        async def main() -> None:
            executor = executor_of(**options)
            try:
                async with asyncio.timeout(WAIT_S):
                    await test(executor)
            finally:
                await executor.close()

        asyncio.run(main())

    return run


async def tokens_of(handle: ReplicaHandle, count: int = 3) -> list[int]:
    """Connect to a replica and read a short stream."""
    replica = await connect(handle)
    try:
        (stream,) = await replica.backend.generate("Once", SamplingParams(max_tokens=count, ignore_eos=True))
        return [token async for delta in stream for token in delta.token_ids]
    finally:
        await replica.close()


def leave(executor: RayExecutor) -> None:
    """What the death of the executor's process does: nobody beats any more."""
    assert executor._beating is not None
    executor._beating.cancel()


def actor_id(replica_id: str) -> str:
    return str(ray.get_actor(f"sage/{replica_id}", namespace="tests")._actor_id.hex())


class TestOnRay(ExecutorContract):
    settle_s = WAIT_S
    timeout_s = WAIT_S
    start_timeout_s = WAIT_S
    unsupported = {"device_ids": (0,), "group": "a", "server": None}  # noqa: RUF012 - as the kit declares it
    address = ""

    @pytest.fixture(autouse=True)
    def _address(self, cluster: Any) -> None:
        type(self).address = cluster.address

    def make_executor(self) -> RayExecutor:
        return RayExecutor(address=self.address, namespace="tests")

    def make_spec(self, replica_id: str) -> ReplicaSpec:
        return spec(replica_id)

    async def use(self, handle: ReplicaHandle) -> None:
        assert len(await tokens_of(handle)) == 3


def test_the_plug_in_registers_the_executor(cluster: Any) -> None:
    assert isinstance(open_executor("ray", address=cluster.address, grace_s=7.0), RayExecutor)


def test_a_killed_process_is_restarted_by_ray_and_loaded_by_start(with_executor: Callable[..., None]) -> None:
    async def test(executor: RayExecutor) -> None:
        handle: Any = await executor.start(spec())
        before, tokens = actor_id("toy/0"), await tokens_of(handle, 20)
        os.kill(handle.pid, signal.SIGKILL)
        assert (await handle.wait()).reason
        again: Any = await executor.start(spec())
        assert actor_id("toy/0") == before
        assert again.pid != handle.pid
        assert again.descriptor.generation > handle.descriptor.generation
        assert await tokens_of(again, 20) == tokens

    with_executor(test)


def test_a_replica_of_a_lost_node_starts_on_another(cluster: Any, with_executor: Callable[..., None]) -> None:
    async def test(executor: RayExecutor) -> None:
        node = cluster.add_node(num_cpus=4, object_store_memory=100 << 20, include_dashboard=False)
        handle: Any = await executor.start(spec(cpus=4))
        assert handle.descriptor.labels["ray_node"] == node.node_id
        third = cluster.add_node(num_cpus=4, object_store_memory=100 << 20, include_dashboard=False)
        try:
            await asyncio.to_thread(cluster.remove_node, node, False)
            await handle.wait()
            again: Any = await executor.start(spec(cpus=4))
            assert again.descriptor.labels["ray_node"] == third.node_id
            await again.stop()
        finally:
            await asyncio.to_thread(cluster.remove_node, third, False)

    with_executor(test)


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


def test_replicas_share_an_accelerator(with_executor: Callable[..., None]) -> None:
    async def test(executor: RayExecutor) -> None:
        half = [await executor.start(spec(f"toy/{n}", gpus=0.5, cpus=0)) for n in range(3)]
        places = [handle.descriptor.labels["accelerators"] for handle in half]
        assert all(place.startswith("GPU ") for place in places)
        assert len(set(places)) == 2, places
        with pytest.raises(BackendUnavailable, match=r"asks for CPU 0\.001, GPU 1, .*GPU 2.*free.*GPU 0\.5"):
            await executor.start(spec("toy/3", gpus=1, cpus=0))
        await half[0].stop()
        await half[1].stop()
        await half[2].stop()
        both = await executor.start(spec("toy/4", gpus=2, cpus=0))
        assert both.descriptor.labels["accelerators"] == ""  # they are for the engine's workers

    with_executor(test, place_s=1.0)


def test_bundles_of_a_placement_group() -> None:
    assert bundles_of(spec(cpus=2, memory_gb=0.5)) == (
        [{"CPU": 2, "memory": 1 << 29}],
        {"num_cpus": 2, "num_gpus": 0, "memory": 1 << 29},
    )
    assert bundles_of(spec(gpus=0.25)) == ([{"CPU": 1, "GPU": 0.25}], {"num_cpus": 1, "num_gpus": 0.25})
    assert bundles_of(spec(gpus=2)) == ([{"CPU": 1}, {"GPU": 1}, {"GPU": 1}], {"num_cpus": 1, "num_gpus": 0})
    with pytest.raises(InvalidRequest, match=r"got 1\.5"):
        bundles_of(spec(gpus=1.5))


def test_errors_of_the_start_keep_their_type(with_executor: Callable[..., None]) -> None:
    async def test(executor: RayExecutor) -> None:
        with pytest.raises(OutOfMemory, match="80 GiB"):
            await executor.start(spec(options={"fails": "memory"}))
        with pytest.raises(EngineDead, match="ended before it was ready"):
            await executor.start(spec(options={"fails": "crash"}))
        with pytest.raises(EngineDead, match="did not start within 5 s"):
            await executor.start(spec(options={"fails": "stuck"}, start_timeout_s=5.0))
        with pytest.raises(BackendUnavailable, match=r"asks for CPU 64.*nodes: .*CPU 2.*lower --cpus"):
            await executor.start(spec(cpus=64))
        assert executor._cluster.ids() == []
        await executor.start(spec())

    with_executor(test, place_s=3.0)


def test_a_cluster_that_cannot_be_used_is_named(
    executor_of: Callable[..., RayExecutor], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnsupportedFeature, match="Ray Client"):
        RayExecutor(address="ray://head:10001")
    with pytest.raises(ConfigError, match="HOST:PORT or auto, got 'head'"):
        RayExecutor(address="head")
    with pytest.raises(BackendUnavailable, match="namespace"):
        Cluster(executor_of()._cluster.address, "another").connect()
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def fails(error: Exception) -> None:
        def init(**options: Any) -> None:
            raise error

        monkeypatch.setattr(ray, "init", init)

    fails(RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.48\n    Python: 3.12.1"))
    with pytest.raises(BackendUnavailable, match=r"Ray: 2\.48 Python: 3\.12\.1; install the same versions"):
        Cluster("auto", "tests").connect()
    fails(ConnectionError("Could not find any running Ray instance."))
    with pytest.raises(BackendUnavailable, match="no Ray cluster at auto: none runs on this machine"):
        Cluster(None, "tests").connect()
    fails(RuntimeError("it is broken"))
    with pytest.raises(BackendUnavailable, match="it is broken; start one with `ray start --head`"):
        Cluster("auto", "tests").connect()


def test_an_address_without_a_cluster_is_named_quickly() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code = (
            "import asyncio, sys; from sage_infer_ray import RayExecutor; "
            "asyncio.run(RayExecutor(address=sys.argv[1]).adopt())"
        )
        done = subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"no Ray cluster at {address}: " in done.stderr


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

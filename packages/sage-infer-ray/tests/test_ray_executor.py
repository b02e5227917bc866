"""The executor on a cluster of two nodes: the kit, its errors, and what happens when processes and nodes are lost."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from ray_toys import spec
from sage_infer.contracts import ReplicaHandle
from sage_infer.errors import (
    BackendUnavailable,
    ConfigError,
    EngineDead,
    InvalidRequest,
    OutOfMemory,
    PluginFailed,
    UnsupportedFeature,
)
from sage_infer.plugins import open_executor
from sage_infer.schemas import ReplicaSpec
from sage_infer_testing import ExecutorContract

ray = pytest.importorskip("ray")
pytest.importorskip("sage_llm")

from ray_help import WAIT_S, actor_id, tokens_of  # noqa: E402 - needs Ray
from sage_infer_ray.cluster import Cluster, bundles_of  # noqa: E402
from sage_infer_ray.executor import RayExecutor  # noqa: E402

pytestmark = pytest.mark.usefixtures("cluster")


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


def test_an_actor_that_does_not_leave_is_named(
    with_executor: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(executor: RayExecutor) -> None:
        await executor.start(spec())
        with monkeypatch.context() as patch:
            patch.setattr("sage_infer_ray.executor._GONE_S", -1.0)
            with pytest.raises(EngineDead, match="the actor of replica 'toy/0' did not end within"):
                await executor.remove("toy/0")
        await executor.remove("toy/0")

    with_executor(test)


def test_errors_of_ray_are_reported(
    with_executor: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(executor: RayExecutor) -> None:
        await executor.adopt()  # connects
        with monkeypatch.context() as patch:
            patch.setattr(ray.util, "list_named_actors", fails)
            with pytest.raises(BackendUnavailable, match="does not answer: it is broken; see `ray status`"):
                await executor.adopt()
        assert await executor.adopt() == []

    def fails(**options: Any) -> None:
        raise RuntimeError("it is\nbroken")

    with_executor(test)


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
        with pytest.raises(PluginFailed, match="the engine is in use"):
            await executor.start(spec(options={"fails": "busy"}))
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


def test_a_process_with_the_executor_can_take_its_time_on_sigterm(cluster: Any) -> None:
    """Ray's handler would set a timer, whose SIGALRM aborts the process while it closes its replicas."""
    code = (
        "import asyncio, os, signal, sys; from sage_infer_ray import RayExecutor; called = []; "
        "signal.signal(signal.SIGTERM, lambda *_: called.append(1)); "
        "asyncio.run(RayExecutor(address=sys.argv[1], namespace='tests').adopt()); "
        "os.kill(os.getpid(), signal.SIGTERM); print(called, signal.getitimer(signal.ITIMER_REAL))"
    )
    done = subprocess.run([sys.executable, "-c", code, cluster.address], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[1] (0.0, 0.0)\n"), done.stderr

"""What the tests of this package share: a cluster of two nodes on this machine, where Ray is installed."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sage_infer.compat import timeout
from sage_infer.discovery import discover

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for ray_toys, whatever pytest's import mode

NODE = {"num_cpus": 2, "object_store_memory": 100 << 20, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster of two nodes with two CPUs each, the second one with two GPUs that do not exist, and the toys."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("sage_llm")
    from ray.cluster_utils import Cluster

    site = tmp_path_factory.mktemp("site")
    info = site / "ray_toys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ray-toys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sage_infer.backends]\nray-toys = ray_toys\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(HERE), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.syspath_prepend(site)
        discover.cache_clear()
        made = Cluster(initialize_head=True, head_node_args=NODE)
        made.add_node(num_gpus=2, **NODE)
        yield made
        ray.shutdown()
        made.shutdown()
    discover.cache_clear()


@pytest.fixture
def executor_of(cluster: Any) -> Callable[..., Any]:
    """Makes executors that are to be closed by the test."""
    from sage_infer_ray.executor import RayExecutor

    def make(**options: Any) -> RayExecutor:
        return RayExecutor(address=cluster.address, namespace="tests", **options)

    return make


@pytest.fixture
def with_executor(executor_of: Callable[..., Any]) -> Callable[..., None]:
    """Runs a coroutine function with an executor, which is closed then."""

    def run(test: Callable[[Any], Awaitable[None]], **options: Any) -> None:
        from ray_help import WAIT_S

        async def main() -> None:
            executor = executor_of(**options)
            try:
                async with timeout(WAIT_S):
                    await test(executor)
            finally:
                await executor.close()

        asyncio.run(main())

    return run

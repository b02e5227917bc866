"""What the tests of this package share: a cluster of two nodes on this machine, where Ray is installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
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

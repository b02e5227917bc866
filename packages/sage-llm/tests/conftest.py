"""What the tests of this package share."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from sage_infer.discovery import discover, model_specs
from sage_infer.errors import SageInferError
from sage_infer.models import add_model

if "SAGE_RANDOM_EXAMPLES" not in os.environ:
    settings.load_profile("ci")  # of hypothesis: the same examples in each run, and no limit of time

HERE = Path(__file__).parent
KIT = HERE.parents[1] / "sage-infer-testing" / "tests"
# For plane and the kit's reference engine, whatever pytest's import mode.
sys.path[:0] = [str(HERE), str(HERE / "pd"), str(KIT)]

# Where the wheel is tested alone, the tests of the kit are not there, and with them its reference engine.
collect_ignore = (
    []
    if KIT.is_dir()
    else [
        f"{name}.py"
        for name in (
            "pd/test_kv_transports",
            "replicas/test_children_at_ports",
            "replicas/test_frames_calls",
            "replicas/test_frames_contract",
            "replicas/test_frames_faults",
            "replicas/test_local_executor",
            "replicas/test_openai_server",
        )
    ]
)


@pytest.fixture(scope="session")
def smollm2() -> str:
    """SmolLM2-135M-Instruct as a GGUF."""
    return _sample("smollm2-135m")


@pytest.fixture(scope="session")
def minilm() -> str:
    """The folder of all-MiniLM-L6-v2."""
    return _sample("minilm")


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where this session keeps prepared models."""
    return str(tmp_path_factory.mktemp("prepared"))


def _sample(name: str) -> str:
    try:
        return str(add_model(model_specs()[name]))
    except SageInferError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plug-in ``served_plugin`` is installed, here and for child processes, and the run folder is empty."""
    info = tmp_path / "site" / "served-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: served\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sage_infer.backends]\nserved = served_plugin\n")
    monkeypatch.syspath_prepend(info.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(info.parent), str(HERE), str(KIT)]))
    with tempfile.TemporaryDirectory(prefix="sage-") as folder:  # a short path, for sockets
        monkeypatch.setenv("SAGE_LLM_RUN_FOLDER", folder)
        discover.cache_clear()
        yield
    discover.cache_clear()

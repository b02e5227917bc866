"""The demo of the control plane, on the embedded engine, on a vendor's, and on vLLM where it is installed.

Which backend runs is in the models that are served, and nowhere else: the same code places, drains and continues.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tomllib
from sage_infer.discovery import discover, model_specs
from sage_infer.models import add_model

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "third_party_backend"
GUARD_S = 540
RUN_FOLDER = "SAGE_LLM_RUN_FOLDER"
ASKED = 4


@pytest.fixture
def demo() -> Any:
    spec = importlib.util.spec_from_file_location("phase0_demo", ROOT / "examples" / "phase0_demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ngram(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The wheel of another vendor is installed, here and for child processes, and the run folder is empty."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    info = tmp_path / "site" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    points = project["entry-points"]["sage_infer.backends"]
    lines = "".join(f"{name} = {module}\n" for name, module in points.items())
    (info / "entry_points.txt").write_text(f"[sage_infer.backends]\n{lines}")
    paths = [str(info.parent), str(EXAMPLE / "src")]
    for path in paths:
        monkeypatch.syspath_prepend(path)
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [*paths, before])))
    folder = tmp_path_factory.mktemp("run")
    folder.chmod(0o700)
    monkeypatch.setenv(RUN_FOLDER, str(folder))
    discover.cache_clear()
    yield
    discover.cache_clear()


def run(demo: Any, backend: str, model: str) -> Any:
    plane = asyncio.run(asyncio.wait_for(demo.demo(demo.served(backend, model)), GUARD_S))
    ends, replicas = plane.dispatcher.ends, demo.REPLICAS.get(backend, 2)
    rounds = 2 if replicas > 1 else 1  # the second one while a replica is drained
    assert ends == {"finished": rounds * ASKED, "cancelled": 0, "refused": 0, "failed": 0}
    receipts = [r for r in plane.dispatcher.placement.receipts.values() if r.request.kind == "generate"]
    assert receipts
    assert all(receipt.replay() == receipt.decision for receipt in receipts)
    assert {receipt.decision.policy for receipt in receipts} == {"kv-cost"}
    return plane


def test_another_backend_changes_no_scheduling_code(
    demo: Any, ngram: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other one is vLLM where it is installed, else the example of a vendor's wheel."""
    for name in ("smollm2-135m", "minilm"):
        add_model(model_specs()[name])
    other = ("vllm", "smollm2-135m") if find_spec("vllm") else ("ngram", "ngram-lighthouse")
    planes = []
    for backend, model in (("openvino", "smollm2-135m"), other):
        plane = run(demo, backend, model)
        planes.append(plane)
        shown = capsys.readouterr().out
        assert "DIFFERENT" not in shown
        assert "cosine similarity" in shown
        names = {r.spec.backend for r in plane.fleet.replicas.values() if r.spec.model.model_type == "llm"}
        assert names <= {backend}
        assert plane.get_model_settings(model)["backend"] == backend
    first, second = (plane.dispatcher.placement for plane in planes)
    assert first.policy == second.policy
    assert type(first.admission) is type(second.admission)


def test_the_readme_begins_with_the_demo() -> None:
    """Its first command runs the control plane."""
    text = (ROOT / "README.md").read_text()
    first = next(line for line in text.splitlines() if line.startswith("$ "))
    assert first == "$ python3 dev.py demo"
    assert 'demo = "python examples/phase0_demo.py"' in (ROOT / "hatch.toml").read_text()

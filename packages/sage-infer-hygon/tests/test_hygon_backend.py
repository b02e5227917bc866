"""Hygon as a platform of vLLM, up to the point where vLLM would be called, which is not here."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
from sage_infer.discovery.readiness import unmet_needs
from sage_infer.errors import BackendUnavailable
from sage_infer.schemas import ModelDescriptor
from sage_infer_hygon.needs import NEEDS
from sage_infer_testing.stand_in import add_distribution

pytest.importorskip("sage_infer_vllm", reason="the backend is the extra [vllm]")
from sage_infer_hygon.backend import HygonBackend, HygonEmbeddingBackend
from sage_infer_hygon.platform import HYGON
from sage_infer_vllm.installed import missing
from sage_infer_vllm.settings import VLLMSettings, engine_arguments, visible_devices


@pytest.fixture
def model(tmp_path: Path) -> ModelDescriptor:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    )
    (folder / "model.safetensors").write_bytes(bytes(8) + b"{}")
    return ModelDescriptor(model_id="tiny", model_type="llm", model_path=str(folder), device_ids=(2, 3))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of distributions, with the vendor's stack in it; vLLM's module says that the driver is not there."""
    site = tmp_path / "site"
    add_distribution(site, "vllm", "0.18.1+das.dtk2604")
    add_distribution(site, "torch", "2.10.0+das.opt1.dtk2604")
    (site / "vllm.py").write_text("raise ImportError('libgalaxyhip.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "sage_infer_vllm.compat", raising=False)
    return site


def test_every_fact_of_the_table_has_a_source() -> None:
    own = {"backend_name", "hardware_backend", "plugin_distributions", "sources"}
    said = {
        field.name
        for field in attrs.fields(type(HYGON))
        if field.name not in own and getattr(HYGON, field.name) not in (None, (), {})
    }
    assert said <= HYGON.sources.keys()


def test_needs_name_what_to_install_and_where_it_was_looked_for() -> None:
    lines = [str(missing) for missing in unmet_needs(NEEDS)]
    assert len(lines) == len(NEEDS)
    assert lines[0].startswith("driver: none of ")
    assert all("; " in line for line in lines)


def test_starting_without_the_stack_says_what_to_install(model: ModelDescriptor) -> None:
    for backend in (HygonBackend(model), HygonEmbeddingBackend(model)):
        with pytest.raises(BackendUnavailable, match=r"vLLM is not installed; pip install 'vllm"):
            asyncio.run(backend.start())


def test_the_stack_is_recognised_by_its_metadata(installed: Path) -> None:
    assert missing(HYGON) == []
    assert {need.what for need in unmet_needs(NEEDS)} == {"driver", "DTK toolkit"}


def test_starting_goes_as_far_as_importing_vllm(installed: Path, model: ModelDescriptor) -> None:
    with pytest.raises(BackendUnavailable, match=r"vLLM cannot be imported .*libgalaxyhip.so"):
        asyncio.run(HygonBackend(model).start())


def test_what_vllm_would_be_called_with(model: ModelDescriptor) -> None:
    arguments = engine_arguments(VLLMSettings(), HYGON, model, "folder", device="cuda", runner="generate")
    assert arguments["model"] == "folder"
    assert arguments.get("gpu_memory_utilization") is None
    assert visible_devices(HYGON, model, "cuda") == {"HIP_VISIBLE_DEVICES": "2,3"}


def test_names_are_the_registered_ones(model: ModelDescriptor) -> None:
    assert (HygonBackend(model).name, HygonEmbeddingBackend(model).name) == ("hygon", "hygon-embedding")
    assert HYGON.hardware_backend == "hygon"  # and not the device that vLLM's platform says, cuda


def test_detecting_needs_no_adapter() -> None:
    modules = ", ".join(f"sage_infer_hygon.{name}" for name in ("plugin", "detector", "recordings"))
    blocked = f"import sys; sys.modules['sage_infer_vllm'] = None; import {modules}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", blocked], capture_output=True, text=True, check=True
    ).stdout
    assert "sage_infer_vllm.platform" not in loaded

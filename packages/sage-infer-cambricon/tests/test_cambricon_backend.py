"""Cambricon as a platform of vLLM, up to the point where vLLM would be called, which is not here."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
from sage_infer.discovery.readiness import unmet_needs
from sage_infer.errors import BackendUnavailable, CapabilityMismatch
from sage_infer.schemas import ModelDescriptor, QuantizationProfile
from sage_infer_cambricon.needs import NEEDS
from sage_infer_testing.stand_in import add_distribution

pytest.importorskip("sage_infer_vllm", reason="the backend is the extra [vllm]")
from sage_infer_cambricon.backend import CambriconBackend, CambriconEmbeddingBackend
from sage_infer_cambricon.platform import CAMBRICON
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
    add_distribution(site, "vllm", "0.13.0")
    add_distribution(
        site, "vllm-mlu", "0.13.0+mlu1.2.pt29", {"vllm.platform_plugins:mlu": "vllm_mlu:register"}
    )
    add_distribution(site, "torch-mlu", "1.28.0")
    (site / "vllm.py").write_text("raise ImportError('libcnrt.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "sage_infer_vllm.compat", raising=False)
    return site


def test_every_fact_of_the_table_has_a_source() -> None:
    own = {"backend_name", "hardware_backend", "plugin_distributions", "sources"}
    said = {
        field.name
        for field in attrs.fields(type(CAMBRICON))
        if field.name not in own and getattr(CAMBRICON, field.name) not in (None, (), {})
    }
    assert said <= CAMBRICON.sources.keys()


def test_needs_name_what_to_install_and_where_it_was_looked_for() -> None:
    lines = [str(missing) for missing in unmet_needs(NEEDS)]
    assert len(lines) == len(NEEDS)
    assert lines[0].startswith("driver: none of ")
    assert all("; " in line for line in lines)


def test_starting_without_the_stack_says_what_to_install(model: ModelDescriptor) -> None:
    for backend in (CambriconBackend(model), CambriconEmbeddingBackend(model)):
        with pytest.raises(BackendUnavailable, match=r"vLLM is not installed; pip install 'vllm"):
            asyncio.run(backend.start())


def test_the_stack_is_recognised_by_its_metadata(installed: Path) -> None:
    assert missing(CAMBRICON) == []
    assert {need.what for need in unmet_needs(NEEDS)} == {"driver", "NeuWare toolkit"}


def test_the_platform_plug_in_and_its_version_are_checked(installed: Path) -> None:
    (old,) = installed.glob("vllm_mlu-*")
    old.rename(installed / "elsewhere")
    assert missing(CAMBRICON)[0].startswith("vllm-mlu>=0.9.1,<0.14 is not installed; pip install 'vllm-mlu")
    add_distribution(installed, "vllm-mlu", "0.1.0", {"vllm.platform_plugins:mlu": "x:register"})
    assert missing(CAMBRICON) == [
        "vllm-mlu 0.1.0 is installed, expected vllm-mlu>=0.9.1,<0.14; pip install 'vllm-mlu>=0.9.1,<0.14'"
    ]


def test_another_vendors_platform_plug_in_is_in_the_way(installed: Path) -> None:
    add_distribution(installed, "vllm-other", "1.0", {"vllm.platform_plugins:other": "x:register"})
    assert missing(CAMBRICON) == [
        "other vLLM platform plug-ins are installed, and one process can have one: other (vllm-other)"
    ]


def test_starting_goes_as_far_as_importing_vllm(installed: Path, model: ModelDescriptor) -> None:
    with pytest.raises(BackendUnavailable, match=r"vLLM cannot be imported .*libcnrt.so"):
        asyncio.run(CambriconBackend(model).start())


def test_what_vllm_would_be_called_with(model: ModelDescriptor) -> None:
    arguments = engine_arguments(VLLMSettings(), CAMBRICON, model, "folder", device="mlu", runner="generate")
    assert arguments["model"] == "folder"
    assert arguments.get("gpu_memory_utilization") is None
    assert visible_devices(CAMBRICON, model, "mlu") == {"MLU_VISIBLE_DEVICES": "2,3"}


def test_names_are_the_registered_ones(model: ModelDescriptor) -> None:
    assert (CambriconBackend(model).name, CambriconEmbeddingBackend(model).name) == (
        "cambricon",
        "cambricon-embedding",
    )
    assert CAMBRICON.hardware_backend == "cambricon"  # and not the device that vLLM's platform says, mlu


def test_quantization_is_checked_against_the_table(model: ModelDescriptor) -> None:
    config = Path(model.model_path) / "config.json"
    profile = QuantizationProfile(profile_id="p", weight_bits=4, activation_bits=16)
    config.write_text(json.dumps({"quantization_config": {"quant_method": "gptq_mlu", "bits": 4}}))
    CambriconBackend(model).load_quant_profile(profile)
    config.write_text(json.dumps({"quantization_config": {"quant_method": "marlin-only", "bits": 4}}))
    with pytest.raises(CapabilityMismatch, match="cambricon"):
        CambriconBackend(model).load_quant_profile(attrs.evolve(profile, activation_bits=16))
    config.write_text("{}")
    with pytest.raises(
        CapabilityMismatch, match="the checkpoint is in floating point, and cambricon cannot make"
    ):
        CambriconBackend(model).load_quant_profile(profile)


def test_detecting_needs_no_adapter() -> None:
    modules = ", ".join(f"sage_infer_cambricon.{name}" for name in ("plugin", "detector", "recordings"))
    blocked = f"import sys; sys.modules['sage_infer_vllm'] = None; import {modules}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", blocked], capture_output=True, text=True, check=True
    ).stdout
    assert "sage_infer_vllm.platform" not in loaded

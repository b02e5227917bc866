"""Stand-ins do what they are told, and say what they were asked."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from sage_infer import Need
from sage_infer.discovery.readiness import ROOT_VARIABLE, unmet_needs
from sage_infer_testing.stand_in import Replay, add_distribution, calls_of, stand_in_tool
from sage_infer_testing.vllm_stand_in import VLLMPlatformStandIn, add_vendor_stack


def test_a_tool_replays_what_was_recorded_and_nothing_else(tmp_path: Path) -> None:
    tool = stand_in_tool(
        tmp_path, "smi", {"": "ä\n", "info -m": Replay(prints="no\n", exit_code=3, writes={"f": "x"})}
    )
    assert calls_of(tool) == []
    folder = tmp_path / "work"
    folder.mkdir()
    run = {"capture_output": True, "text": True, "cwd": folder, "env": {**os.environ, "LC_ALL": "C"}}
    assert subprocess.run([tool], **run, encoding="utf-8").stdout == "ä\n"  # type: ignore[call-overload]
    done = subprocess.run([tool, "info", "-m"], **run)  # type: ignore[call-overload]
    assert (done.returncode, done.stdout, (folder / "f").read_text()) == (3, "no\n", "x")
    unknown = subprocess.run([tool, "info", "-x"], **run)  # type: ignore[call-overload]
    assert unknown.returncode == 1
    assert "this stand-in has no recording of 'smi info -x'" in unknown.stderr
    assert calls_of(tool) == ["", "info -m", "info -x"]


def test_a_distribution_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_distribution(tmp_path / "site", "some-dist", "1.2", {"a.group:name": "module:thing"})
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert importlib.metadata.version("some-dist") == "1.2"
    (entry,) = importlib.metadata.entry_points(group="a.group", name="name")
    assert entry.value == "module:thing"


def test_a_vendors_stack_is_there_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = (
        Need(what="driver", files=("/dev/toy_manager*", "/elsewhere"), install="x"),
        Need(what="kit", variables=("TOY_HOME",), files=("/opt/toy/set_env.sh",), install="x"),
        Need(
            what="plug-in", distributions={"toy-plug-in": ">=1"}, install="x",
            entry_point="vllm.platform_plugins:toy",
        ),
    )  # fmt: skip
    machine = add_vendor_stack(
        tmp_path / "site", tmp_path / "root", needs, {"toy-engine": "1.0", "toy-plug-in": "1.1"},
        device_nodes=("/dev/toy[0-9]*",),
    )  # fmt: skip
    assert machine == {"PYTHONPATH": str(tmp_path / "site"), ROOT_VARIABLE: str(tmp_path / "root")}
    assert {str(path.relative_to(tmp_path / "root")) for path in (tmp_path / "root").rglob("*") if path.is_file()} == {
        "dev/toy0", "dev/toy_manager0", "opt/toy/set_env.sh",
    }  # fmt: skip
    assert unmet_needs(needs)
    monkeypatch.setenv(ROOT_VARIABLE, machine[ROOT_VARIABLE])
    monkeypatch.syspath_prepend(machine["PYTHONPATH"])
    assert unmet_needs(needs) == []


@pytest.mark.parametrize("builtin", ["", "rocm"])
def test_a_platform_says_the_vendors_names_to_the_adapter_alone(
    builtin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a stand-in of vLLM's own platform: ``tests/vendors`` runs it where vLLM is installed."""

    class CpuPlatform:
        device_type = "cpu"

        @classmethod
        def check_and_update_config(cls, vllm_config: Any) -> None:
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"

    for name in ("vllm", "vllm.platforms", "vllm.platforms.cpu"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["vllm.platforms.cpu"].CpuPlatform = CpuPlatform  # type: ignore[attr-defined]
    stand_in = VLLMPlatformStandIn(
        platform=f"vllm_toy{builtin}.platforms.toy:ToyPlatform", device_type="npu", visible_devices="TOY_DEVICES",
        builtin=builtin, can_sleep=True,
    )  # fmt: skip
    need = Need(what="x", distributions={"toy": ""}, entry_point="vllm.platform_plugins:toy", install="x")
    site = tmp_path / "site"
    add_vendor_stack(site, tmp_path, () if builtin else (need,), {"toy": "1"}, platform=stand_in)
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "vllm_platform_stand_in", raising=False)
    (entry,) = importlib.metadata.entry_points(group="vllm.platform_plugins", name=builtin or "toy")
    module, _, cls = entry.load()().rpartition(".")
    platform = getattr(importlib.import_module(module), cls)()
    ask = {"__name__": "sage_infer_vllm.any", "platform": platform}
    assert (platform.device_type, eval("platform.device_type", ask)) == ("cpu", "npu")
    assert (platform.device_name, platform.device_control_env_var) == ("npu", "TOY_DEVICES")
    assert platform.is_sleep_mode_available()
    if builtin:
        assert (platform.is_rocm(), eval("platform.is_rocm()", ask)) == (False, True)
    for method in ("fork", None):
        monkeypatch.delenv("VLLM_WORKER_MULTIPROC_METHOD", raising=False)
        if method is not None:
            monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", method)
        monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
        platform.check_and_update_config(None)
        assert os.environ.get("VLLM_WORKER_MULTIPROC_METHOD") == method
        assert os.environ["VLLM_CPU_KVCACHE_SPACE"] == "1"
        monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")

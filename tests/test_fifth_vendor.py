"""A vendor that nobody here has heard of: one wheel from outside of this repository, and nothing here changes for it.

The wheel of "Tidewave" brings a hardware name, a detector with a reader of its tool's output, and a backend (whose
engine is that of the core's tests). It is built, installed by pip into an empty folder, and met by the command.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ROOT / "packages/sage-infer-core/tests/toy/toy_engine.py"

PLUGIN = '''
"""Tidewave's plug-in."""
import os

from sage_infer import BackendSpec, DetectorSpec, hookimpl

SAGE_INFER_CONTRACT = "1.0"
NODES = (os.environ.get("TIDE_NODES", "/dev/tide[0-9]*"),)


@hookimpl
def sage_infer_backends():
    return [BackendSpec(name="tide", factory="tidewave.backend:TideBackend", serves={"llm"}, hardware={"tide"},
                        device_nodes=NODES, summary="Tidewave's engine")]


@hookimpl
def sage_infer_detectors():
    return [DetectorSpec(name="tidewave", factory="tidewave.detector:TideDetector", hardware={"tide"},
                         device_nodes=NODES, read_recording="tidewave.detector:read", summary="Tidewave devices")]
'''
BACKEND = """
from attrs import evolve
from tidewave.engine import ToyBackend


class TideBackend(ToyBackend):
    def get_capability(self):
        return evolve(super().get_capability(), backend_name="tide", hardware_backend="tide")
"""
DETECTOR = """
import glob

from sage_infer.errors import ToolOutputError
from sage_infer.schemas import AcceleratorDescriptor, HardwareProfile, LinkProfile, MemoryTierSpec
from tidewave.plugin import NODES


def machine(count, source):
    ends = [f"tide:{i}" for i in range(count)]
    return HardwareProfile(
        accelerators=[
            AcceleratorDescriptor(hardware_backend="tide", vendor="Tidewave", model="Surge 1", index=i, numa_node=0,
                                  memory_bytes=48 << 30, supported_precisions=("bf16",))
            for i in range(count)
        ],
        links=[LinkProfile(source=a, target=b, kind="other", vendor_code="FLOW") for a in ends for b in ends if a != b],
        memory_tiers=[MemoryTierSpec(tier="hbm", name=end, capacity_bytes=48 << 30) for end in ends],
        sources=[source],
    )


class TideDetector:
    def detect(self):
        count = sum(len(glob.glob(pattern)) for pattern in NODES)
        return machine(count, "tide driver 1.0") if count else HardwareProfile()


def read(text, *, name):
    if not text.startswith("TIDE "):
        raise ToolOutputError(f"{name}: line 1 is no output of tidectl")
    return machine(int(text.split()[1]), f"tidectl in {name}")
"""
CONTRACT = """
from sage_infer_testing import HardwareDetectorContract, PluginContract
from tidewave.detector import TideDetector


class TestDetector(HardwareDetectorContract):
    hardware = ("tide",)

    def make_detector(self):
        return TideDetector()


class TestPlugin(PluginContract):
    module = "tidewave.plugin"
"""


class Installed:
    """The folder that the wheel was installed into, and the command with it on its path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes = folder / "dev"
        self.nodes.mkdir()

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SAGE_INFER_")}
        paths = [str(self.folder / "site"), environment.get("PYTHONPATH", "")]
        environment |= {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "HOME": str(self.folder), "XDG_CACHE_HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder),
            "TIDE_NODES": str(self.nodes / "tide[0-9]*"),
        }  # fmt: skip
        return subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            timeout=600,
            cwd=self.folder,
            env=environment,
        )

    def sage(self, *arguments: str) -> str:
        done = self.run("-m", "sage_infer.cli.main", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def backend(self) -> tuple[str, str]:
        rows = {row["name"]: row for row in json.loads(self.sage("infer", "backend", "list", "--json"))}
        return rows["tide"]["state"], rows["tide"]["reason"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel as a vendor publishes it."""
    path = tmp_path_factory.mktemp("wheel") / "tidewave_sage-1.0-py3-none-any.whl"
    info = "tidewave_sage-1.0.dist-info"
    files = {
        "tidewave/__init__.py": "",
        "tidewave/plugin.py": PLUGIN,
        "tidewave/backend.py": BACKEND,
        "tidewave/detector.py": DETECTOR,
        "tidewave/engine.py": ENGINE.read_text("utf-8"),
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tidewave-sage\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[sage_infer.backends]\ntidewave = tidewave.plugin\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> Installed:
    site = str(tmp_path / "site")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        site,
        str(wheel),
    ]
    subprocess.run(command, check=True)
    return Installed(tmp_path)


def test_the_backends_state_follows_the_hardware(installed: Installed) -> None:
    state, reason = installed.backend()
    assert state == "no-hardware"
    assert "tide" in reason
    assert str(installed.nodes) in reason
    (installed.nodes / "tide0").touch()
    assert installed.backend() == ("ready", "")
    assert "tidewave-sage 1.0" in installed.sage("infer", "backend", "show", "tide")


def test_the_machine_has_its_devices(installed: Installed) -> None:
    assert "tide" not in installed.sage("infer", "hal", "show")
    for number in range(3):
        (installed.nodes / f"tide{number}").touch()
    shown = installed.sage("infer", "hal", "show")
    assert "tide:2: Surge 1, 48.0 GiB" in shown
    assert "tide:0  X       FLOW    FLOW" in shown
    profile = json.loads(installed.sage("infer", "hal", "profile", "--json"))
    assert [a["hardware_backend"] for a in profile["accelerators"]].count("tide") == 3
    installed.sage("infer", "hal", "plot", "-o", "topology.svg")
    text = "".join(ElementTree.parse(installed.folder / "topology.svg").getroot().itertext())
    assert "FLOW: 3 devices, fully connected" in text


@pytest.mark.parametrize("vendor", ["tide", "tidewave"])
def test_its_recordings_are_read(installed: Installed, vendor: str) -> None:
    (installed.folder / "recorded.txt").write_text("TIDE 2\n")
    shown = installed.sage(
        "infer", "hal", "profile", "--from-file", "recorded.txt", "--vendor", vendor, "--json"
    )
    assert json.loads(shown)["sources"] == ["tidectl in recorded.txt"]


def test_it_answers_and_schedulers_see_its_hardware(installed: Installed) -> None:
    (installed.nodes / "tide0").touch()
    program = """
import asyncio
from sage_infer import SamplingParams, open_backend
from sage_infer.schemas import CapabilityDescriptor, ModelDescriptor
from sage_infer.schemas.codec import from_json, to_json

async def main():
    model = ModelDescriptor(model_id="m", model_type="llm", model_path="/nowhere")
    async with open_backend("tide", model=model, serves="llm") as backend:
        (stream,) = await backend.generate("abc", SamplingParams(max_tokens=8))
        capability = from_json(to_json(backend.get_capability()), CapabilityDescriptor)
        print("".join([delta.text async for delta in stream]), capability.hardware_backend)

asyncio.run(main())
"""
    done = installed.run("-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "cba tide\n"


def test_it_passes_the_contract_kit(installed: Installed) -> None:
    (installed.nodes / "tide0").touch()
    (installed.folder / "test_tide.py").write_text(CONTRACT)
    done = installed.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", "test_tide.py")
    assert done.returncode == 0, done.stdout[-3000:]

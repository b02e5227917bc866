"""The detector on a machine made of recordings: an xpu-smi that replays them, and a sysfs with their devices."""

from __future__ import annotations

from pathlib import Path

import pytest
from sage_infer.errors import ToolOutputError
from sage_infer.schemas import HardwareProfile
from sage_infer_kunlunxin.detector import KunlunxinDetector
from sage_infer_testing import HardwareDetectorContract
from sage_infer_testing.stand_in import add_pci_device, calls_of, stand_in_tool

DATA = Path(__file__).parent / "data"
TABLE = (DATA / "xpu-smi-p800-oam-x8-v5.0.21.26.txt").read_text("utf-8")
# Of other machines with eight P800.
UUIDS = (DATA / "xpu-smi-L-p800-x8.txt").read_text("utf-8")
TOPOLOGY = (DATA / "xpu-smi-topo-m-p800-x8-nic5-hypercube.txt").read_text("utf-8")
ANSWERS = {"": TABLE, "-L": UUIDS, "topo -m": TOPOLOGY}
BUSES = ("52", "55", "63", "66", "9a", "9b", "aa", "ab")
INTEL = "Intel XPU System Management Interface -- v1.2\nUsage: xpu-smi [Options]\n"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the search path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    root = tmp_path / "sys"
    for bus in BUSES:
        add_pci_device(root, f"0000:{bus}:00.0", vendor=0x2057, device=0x3686)
    return root


class TestOnRecordings(HardwareDetectorContract):
    hardware = ("kunlunxin",)

    @pytest.fixture(autouse=True)
    def _recorded(self, tools: Path, sysfs: Path) -> None:
        self.sysfs = sysfs
        stand_in_tool(tools, "xpu-smi", ANSWERS)

    def make_detector(self) -> KunlunxinDetector:
        return KunlunxinDetector(self.sysfs)


class TestWithoutAnything(HardwareDetectorContract):
    hardware = ("kunlunxin",)

    @pytest.fixture(autouse=True)
    def _empty(self, tools: Path, tmp_path: Path) -> None:
        self.sysfs = tmp_path / "sys"

    def make_detector(self) -> KunlunxinDetector:
        return KunlunxinDetector(self.sysfs)


def test_the_whole_machine(tools: Path, sysfs: Path) -> None:
    tool = stand_in_tool(tools, "xpu-smi", ANSWERS)
    found = KunlunxinDetector(sysfs).detect()
    assert sorted(calls_of(tool)) == ["", "-L", "topo -m"]
    assert [(a.index, a.pci_address, a.numa_node) for a in found.accelerators] == [
        (n, f"0000:{bus}:00.0", n // 4) for n, bus in enumerate(BUSES)
    ]
    assert found.accelerators[7].uuid == "GPU-4922595e-feb9-5762-9082-d8fd7f11abf5"
    assert found.accelerators[7].cpu_affinity == "52-103,156-207"
    assert sum(link.kind == "xpu-link" for link in found.links) == 31  # 24 in meshes, 8 across, less one
    assert sum(link.target.startswith("nic:") for link in found.links) == 40
    assert found.sources == ("xpu-smi 5.0.21", "Kunlunxin driver 5.0.21.26")
    assert [note.partition(",")[0] for note in found.notes] == ["the link table is not symmetric"]


def test_an_older_tool_prints_sections(tools: Path, sysfs: Path) -> None:
    stand_in_tool(tools, "xpu_smi", {"": (DATA / "xpu_smi-r300-x2-rt4.31.txt").read_text("utf-8")})
    found = KunlunxinDetector(sysfs).detect()
    assert [(a.index, a.model) for a in found.accelerators] == [(0, "R300"), (1, "R300")]
    assert [note.partition(":")[0] for note in found.notes] == [
        "no UUIDs", "no links", "on the PCI bus, but not shown by the tool",
    ]  # fmt: skip


def test_intels_tool_of_the_same_name_is_no_kunlunxin_machine(tools: Path, tmp_path: Path) -> None:
    stand_in_tool(tools, "xpu-smi", {"": INTEL})
    assert KunlunxinDetector(tmp_path / "intel").detect() == HardwareProfile()


def test_intels_tool_does_not_hide_the_vendors_own(tools: Path, sysfs: Path) -> None:
    stand_in_tool(tools, "xpu-smi", {"": INTEL})
    stand_in_tool(tools, "xpu_smi", {"": TABLE})
    assert len(KunlunxinDetector(sysfs).detect().accelerators) == 8


def test_a_tool_that_fails_is_an_error_where_there_are_devices(tools: Path, sysfs: Path) -> None:
    stand_in_tool(tools, "xpu-smi", {"": INTEL})
    with pytest.raises(ToolOutputError, match="this one is of Intel's tool of that name"):
        KunlunxinDetector(sysfs).detect()
    stand_in_tool(tools, "xpu_smi", {})
    found = KunlunxinDetector(sysfs.parent / "nothing").detect()
    assert found.accelerators == ()
    assert found.notes[0].startswith("no Kunlunxin device is on the PCI bus, and ")


def test_devices_without_the_tool_are_noted(tools: Path, sysfs: Path) -> None:
    (note,) = KunlunxinDetector(sysfs).detect().notes
    assert "xpu-smi or xpu_smi is missing" in note
    assert "0000:52:00.0 (2057:3686)" in note

"""The detector on a machine made of recordings: a cnmon that replays them, and a sysfs with their devices."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from sage_infer.errors import ToolOutputError
from sage_infer_cambricon.detector import CambriconDetector
from sage_infer_testing import HardwareDetectorContract
from sage_infer_testing.stand_in import Replay, add_pci_device, calls_of, stand_in_tool

DATA = Path(__file__).parent / "data"
TABLE = (DATA / "cnmon-mlu370-x8-x2-v5.10.13.txt").read_text("utf-8")
BUSES = ("39", "3d")
# No recording of the file is public: the table's devices, under the keys that public readers of the file use.
JSON = json.dumps(
    {
        "CnmonInfo": [
            {
                "CardNum": number,
                "ProductName": "MLU370-X8",
                "UUID": f"77013006-2457-0000-0000-{number:012d}",
                "PhysicalMemUsage": {"Total": "23374", "Used": "0"},
                "PCI": {"DomainID": "0000", "Bus": bus, "Device": "00", "Function": "0"},
            }
            for number, bus in enumerate(BUSES)
        ]
    }
)
WRITES = Replay(writes={"cnmon_info.json": JSON})


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
    for node, bus in enumerate(BUSES):
        add_pci_device(root, f"0000:{bus}:00.0", vendor=0xCABC, device=0x0370, numa_node=node)
    return root


class TestOnRecordings(HardwareDetectorContract):
    hardware = ("cambricon",)

    @pytest.fixture(autouse=True)
    def _recorded(self, tools: Path, sysfs: Path) -> None:
        self.sysfs = sysfs
        stand_in_tool(tools, "cnmon", {"": TABLE, "info -j": WRITES})

    def make_detector(self) -> CambriconDetector:
        return CambriconDetector(self.sysfs)


class TestWithoutAnything(HardwareDetectorContract):
    hardware = ("cambricon",)

    @pytest.fixture(autouse=True)
    def _empty(self, tools: Path, tmp_path: Path) -> None:
        self.sysfs = tmp_path / "sys"

    def make_detector(self) -> CambriconDetector:
        return CambriconDetector(self.sysfs)


def test_the_json_is_written_elsewhere_and_read(
    tools: Path, sysfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = stand_in_tool(tools, "cnmon", {"": TABLE, "info -j": WRITES})
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    found = CambriconDetector(sysfs).detect()
    assert not os.listdir()
    assert calls_of(tool) == ["info -j", "topo -m"]
    assert [(a.index, a.model, a.pci_address, a.numa_node, a.uuid) for a in found.accelerators] == [
        (0, "MLU370-X8", "0000:39:00.0", 0, "77013006-2457-0000-0000-000000000000"),
        (1, "MLU370-X8", "0000:3d:00.0", 1, "77013006-2457-0000-0000-000000000001"),
    ]
    assert found.links == ()
    assert found.notes[-1].startswith("no links: cnmon topo -m failed with exit code 1")


def test_a_cnmon_without_json_is_asked_for_its_table(tools: Path, sysfs: Path) -> None:
    tool = stand_in_tool(tools, "cnmon", {"": TABLE, "info -j": "Unknown option -j\n"})
    found = CambriconDetector(sysfs).detect()
    assert calls_of(tool) == ["info -j", "", "topo -m"]
    assert [(a.index, a.pci_address, a.uuid) for a in found.accelerators] == [
        (0, "0000:39:00.0", None), (1, "0000:3d:00.0", None),
    ]  # fmt: skip
    assert "cnmon info -j did not write cnmon_info.json" in found.notes[1]
    assert found.sources == ("cnmon 5.10.13", "Cambricon driver 5.10.13")


def test_a_link_table_is_read_where_cnmon_prints_one(tools: Path, sysfs: Path) -> None:
    topology = "MLU0 MLU1 MLU2\nMLU0 X MLK SYS\nMLU1 MLK X SYS\nMLU2 SYS SYS X\n"
    stand_in_tool(tools, "cnmon", {"info -j": WRITES, "topo -m": topology})
    found = CambriconDetector(sysfs).detect()
    assert [(link.source, link.target, link.kind) for link in found.links] == [
        ("cambricon:0", "cambricon:1", "mlu-link"), ("cambricon:1", "cambricon:0", "mlu-link"),
    ]  # fmt: skip


def test_one_device_has_no_links_to_ask_for(tools: Path, sysfs: Path) -> None:
    one = json.dumps({"CnmonInfo": json.loads(JSON)["CnmonInfo"][:1]})
    tool = stand_in_tool(tools, "cnmon", {"info -j": Replay(writes={"cnmon_info.json": one})})
    found = CambriconDetector(sysfs).detect()
    assert calls_of(tool) == ["info -j"]
    assert "on the PCI bus, but not shown by the tool: 0000:3d:00.0" in found.notes


def test_a_cnmon_that_says_nothing_is_an_error_where_there_are_devices(tools: Path, sysfs: Path) -> None:
    stand_in_tool(tools, "cnmon", {})
    with pytest.raises(ToolOutputError, match="cnmon failed with exit code 1"):
        CambriconDetector(sysfs).detect()
    found = CambriconDetector(sysfs.parent / "nothing").detect()
    assert found.accelerators == ()
    assert found.notes[0].startswith("no Cambricon device is on the PCI bus, and cnmon failed")

"""The detector on a machine made of recordings: an npu-smi that replays them, and a sysfs with their devices."""

from __future__ import annotations

from pathlib import Path

import pytest
from sage_infer.errors import ToolOutputError
from sage_infer.schemas import HardwareProfile
from sage_infer_ascend.detector import AscendDetector
from sage_infer_testing import HardwareDetectorContract
from sage_infer_testing.stand_in import Replay, add_pci_device, calls_of, stand_in_tool

DATA = Path(__file__).parent / "data"
INFO = (DATA / "npu-smi-info-910b3-x8-v24.1.rc1.txt").read_text("utf-8")
TOPOLOGY = (DATA / "npu-smi-topo-910b3-x8-hccs.txt").read_text("utf-8")  # of the same machine
HEAD = (DATA / "npu-smi-info-m-910b3-x2of8-v25.5.1.txt").read_text("utf-8").splitlines()[0]
BUSES = ("c1", "c2", "81", "82", "01", "02", "41", "42")
# The recorded CPU affinities are nodes of 24 CPUs.
NODES = (6, 6, 4, 4, 0, 0, 2, 2)
FAILS = Replay(prints="dcmi module initialize failed. ret is -8005\n", exit_code=1)


def mapping() -> str:
    """The recorded mapping shows two of eight cards; this is all of them, in its form."""
    rows = [HEAD]
    for n in range(8):
        rows.append("\t" + "".join(f"{value:<31}" for value in (n, 0, n)) + "Ascend 910B3")
        rows.append("\t" + "".join(f"{value:<31}" for value in (n, 1, "-")) + "Mcu")
    return "\n".join(rows)


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    root = tmp_path / "sys"
    for bus, node in zip(BUSES, NODES, strict=True):
        speed = {"max_link_speed": "16.0 GT/s PCIe", "max_link_width": 16}
        add_pci_device(root, f"0000:{bus}:00.0", vendor=0x19E5, device=0xD802, numa_node=node, **speed)
    add_pci_device(root, "0000:05:00.0", vendor=0x19E5, device=0x1711, class_code=0x030000)
    add_pci_device(root, "0000:06:00.0", vendor=0x19E5, device=0xA222, class_code=0x020000)
    return root


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the search path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


class TestOnRecordings(HardwareDetectorContract):
    hardware = ("ascend",)
    sysfs: Path

    @pytest.fixture(autouse=True)
    def _recorded(self, tools: Path, sysfs: Path) -> None:
        self.sysfs = sysfs
        stand_in_tool(tools, "npu-smi", {"info": INFO, "info -m": mapping(), "info -t topo": TOPOLOGY})

    def make_detector(self) -> AscendDetector:
        return AscendDetector(self.sysfs)


class TestWithoutAnything(HardwareDetectorContract):
    hardware = ("ascend",)

    @pytest.fixture(autouse=True)
    def _empty(self, tools: Path, tmp_path: Path) -> None:
        self.sysfs = tmp_path / "sys"

    def make_detector(self) -> AscendDetector:
        return AscendDetector(self.sysfs)


def test_the_whole_machine(tools: Path, sysfs: Path) -> None:
    tool = stand_in_tool(tools, "npu-smi", {"info": INFO, "info -m": mapping(), "info -t topo": TOPOLOGY})
    found = AscendDetector(sysfs).detect()
    assert sorted(calls_of(tool)) == ["info", "info -m", "info -t topo"]
    assert [(a.index, a.pci_address, a.numa_node, a.model) for a in found.accelerators] == [
        (n, f"0000:{BUSES[n]}:00.0", NODES[n], "910B3") for n in range(8)
    ]
    hccs = [link for link in found.links if link.kind == "hccs"]
    assert len(hccs) == 56
    assert {link.nominal_gbs.value for link in hccs if link.nominal_gbs} == {28}
    host = [link for link in found.links if "host" in (link.source, link.target)]
    assert len(host) == 16
    assert {link.nominal_gbs.value for link in host if link.nominal_gbs} == {31.5}
    assert found.sources == ("npu-smi 24.1.rc1.b030", "Ascend driver 24.1.rc1.b030")
    assert found.notes == ()


def test_logic_ids_come_from_the_mapping(tools: Path, sysfs: Path) -> None:
    # NPUs 0 and 5 of eight, as in the recording; in a container their logic ids are 0 and 1.
    info = (DATA / "npu-smi-info-910b3-x2of8-v25.5.1.txt").read_text("utf-8")
    rows = [HEAD] + [
        "\t" + "".join(f"{v:<31}" for v in (npu, 0, n)) + "Ascend 910B3" for n, npu in enumerate((0, 5))
    ]
    stand_in_tool(tools, "npu-smi", {"info": info, "info -m": "\n".join(rows), "info -t topo": TOPOLOGY})
    found = AscendDetector(sysfs).detect()
    assert [(a.index, a.pci_address) for a in found.accelerators] == [
        (0, "0000:c1:00.0"),
        (1, "0000:02:00.0"),
    ]
    assert [(link.source, link.target) for link in found.links if link.kind == "hccs"] == [
        ("ascend:0", "ascend:1"), ("ascend:1", "ascend:0"),
    ]  # fmt: skip
    assert found.notes == (
        "NPUs 1, 2, 3, 4 not shown: hidden from this user, or lost from the recording",
        "on the PCI bus, but not shown by the tool: 0000:01:00.0, 0000:41:00.0, 0000:42:00.0, 0000:81:00.0, "
        "0000:82:00.0, 0000:c2:00.0",
    )


def test_dies_of_an_atlas_a3_are_joined_by_their_physical_ids(tools: Path, tmp_path: Path) -> None:
    info = """\
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip  Phy-ID              | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
| 6     Ascend910           | OK            | 166.9       38                0    / 0             |
| 0     12                  | 0000:9D:00.0  | 0           0    / 0          3419 / 65536         |
| 6     Ascend910           | OK            | -           37                0    / 0             |
| 1     13                  | 0000:9F:00.0  | 0           0    / 0          3419 / 65536         |
"""
    rows = [
        "NPU ID  Chip ID  Chip Logic ID  Chip Phy-ID  Chip Name",
        "6  0  0  12  Ascend910",
        "6  1  1  13  Ascend910",
    ]
    topology = (DATA / "npu-smi-t-topo-a3-2die-sio.txt").read_text("utf-8")
    stand_in_tool(tools, "npu-smi", {"info": info, "info -m": "\n".join(rows), "info -t topo": topology})
    found = AscendDetector(tmp_path / "sys").detect()
    assert [(a.index, a.board, a.peak_tflops["bf16"].value) for a in found.accelerators] == [
        (0, "NPU 6", 390), (1, "NPU 6", 390),
    ]  # fmt: skip
    assert [(link.source, link.target, link.vendor_code) for link in found.links] == [
        ("ascend:0", "ascend:1", "SIO"), ("ascend:1", "ascend:0", "SIO"),
    ]  # fmt: skip


def test_what_the_other_calls_do_not_say_is_noted(tools: Path, sysfs: Path) -> None:
    stand_in_tool(tools, "npu-smi", {"info": INFO, "info -m": FAILS})
    found = AscendDetector(sysfs).detect()
    assert len(found.accelerators) == 8
    assert [note.partition(":")[0] for note in found.notes] == ["no logic ids", "no links"]
    assert "dcmi module initialize failed. ret is -8005" in found.notes[0]
    assert "this stand-in has no recording of 'npu-smi info -t topo'" in found.notes[1]


def test_a_topology_of_other_devices_is_no_topology_of_these(tools: Path, sysfs: Path) -> None:
    strangers = (DATA / "npu-smi-t-topo-a3-2die-sio.txt").read_text("utf-8")
    stand_in_tool(tools, "npu-smi", {"info": INFO, "info -m": mapping(), "info -t topo": strangers})
    found = AscendDetector(sysfs).detect()
    assert found.notes == (
        "no links: npu-smi info -t topo names Phy-ID12, Phy-ID13, but `npu-smi info` lists none of them",
    )


def test_a_driver_that_does_not_work_is_an_error_where_there_are_devices(
    tools: Path, sysfs: Path, tmp_path: Path
) -> None:
    stand_in_tool(tools, "npu-smi", {"info": FAILS})
    with pytest.raises(
        ToolOutputError, match=r"npu-smi info failed with exit code 1: dcmi module initialize failed"
    ):
        AscendDetector(sysfs).detect()
    assert AscendDetector(tmp_path / "nothing").detect().accelerators == ()


def test_devices_without_the_tool_are_noted(tools: Path, sysfs: Path) -> None:
    found = AscendDetector(sysfs).detect()
    assert found.accelerators == ()
    assert "0000:c1:00.0 (19e5:d802)" in found.notes[0]
    assert "1711" not in found.notes[0]  # the management chip's display is no accelerator
    assert AscendDetector(sysfs.parent / "nothing").detect() == HardwareProfile()

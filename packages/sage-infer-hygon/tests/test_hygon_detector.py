"""The detector on a machine made of recordings: an hy-smi that replays them, and a sysfs with their devices."""

from __future__ import annotations

from pathlib import Path

import pytest
from sage_infer.errors import ToolOutputError
from sage_infer.schemas import HardwareProfile
from sage_infer_hygon.detector import HygonDetector
from sage_infer_testing import HardwareDetectorContract
from sage_infer_testing.stand_in import add_pci_device, calls_of, stand_in_tool

DATA = Path(__file__).parent / "data"
NAMES, BUSES, MEMORY, UNIQUE, DRIVER = (
    "--showproductname --json", "--showbus --json", "--showmeminfo vram --json", "--showuniqueid --json",
    "--showdriverversion",
)  # fmt: skip


def recorded(name: str) -> str:
    return (DATA / name).read_text("utf-8")


# Of hy-smi no topology is public: AMD's, from which it comes, with Hygon's labels.
TOPOLOGY = "\n".join(
    line.replace("GPU", "HCU")
    for line in recorded("_format-proxy-rocm-smi-showtopo-amd-mi300-class-x8.txt").splitlines()
    if "AMD" not in line and "ROCm" not in line
)
ANSWERS = {
    NAMES: recorded("hy-smi-json-showproductname-bw.json"),
    BUSES: recorded("hy-smi-json-showbus-bw.json"),
    MEMORY: recorded("hy-smi-json-showmeminfo-bw.json"),
    UNIQUE: recorded("hy-smi-json-showuniqueid-bw.json"),
    "--showtopo": TOPOLOGY,
    DRIVER: recorded("hy-smi-showdriverversion-bw.txt"),
}


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
    for bus in ("09", "36"):
        add_pci_device(
            root, f"0000:{bus}:00.0", vendor=0x1D94, device=0x6320, class_code=0x0B4000, numa_node=3
        )
    add_pci_device(
        root, "0000:00:00.0", vendor=0x1D94, device=0x1450, class_code=0x060000
    )  # the processor's bridge
    return root


class TestOnRecordings(HardwareDetectorContract):
    hardware = ("hygon",)

    @pytest.fixture(autouse=True)
    def _recorded(self, tools: Path, sysfs: Path) -> None:
        self.sysfs = sysfs
        stand_in_tool(tools, "hy-smi", ANSWERS)

    def make_detector(self) -> HygonDetector:
        return HygonDetector(self.sysfs)


class TestWithoutAnything(HardwareDetectorContract):
    hardware = ("hygon",)

    @pytest.fixture(autouse=True)
    def _empty(self, tools: Path, tmp_path: Path) -> None:
        self.sysfs = tmp_path / "sys"

    def make_detector(self) -> HygonDetector:
        return HygonDetector(self.sysfs)


def test_the_whole_machine(tools: Path, sysfs: Path) -> None:
    tool = stand_in_tool(tools, "hy-smi", ANSWERS)
    found = HygonDetector(sysfs).detect()
    assert sorted(calls_of(tool)) == sorted(ANSWERS)
    assert [(a.index, a.model, a.pci_address, a.uuid, a.memory_bytes) for a in found.accelerators] == [
        (0, "BW", "0000:09:00.0", "TCA24620040801", 65520 * 2**20),
        (1, "BW", "0000:36:00.0", "TAP34123070901", 65520 * 2**20),
    ]
    assert [a.numa_node for a in found.accelerators] == [0, 0]  # the tool's, before the bus's
    assert [(link.source, link.target, link.kind, link.hops) for link in found.links] == [
        ("hygon:0", "hygon:1", "xgmi", 1), ("hygon:1", "hygon:0", "xgmi", 1),
    ]  # fmt: skip
    assert found.sources == ("hy-smi", "Hygon driver 6.3.31-V1.5.0a")
    assert len(found.notes) == 1  # which chip a BW is


def test_what_one_call_does_not_say_is_noted(tools: Path, sysfs: Path) -> None:
    stand_in_tool(tools, "hy-smi", {key: text for key, text in ANSWERS.items() if key in (NAMES, MEMORY)})
    found = HygonDetector(sysfs).detect()
    assert [(a.index, a.pci_address, a.numa_node) for a in found.accelerators] == [
        (0, None, None),
        (1, None, None),
    ]
    assert [note.partition(":")[0] for note in found.notes[:3]] == [
        "--showbus --json returned nothing", "--showuniqueid --json returned nothing", "no links",
    ]  # fmt: skip
    assert found.sources == ("hy-smi",)


def test_an_older_release_calls_its_tool_rocm_smi(tools: Path, sysfs: Path) -> None:
    stand_in_tool(tools, "rocm-smi", ANSWERS)
    assert HygonDetector(sysfs).detect().sources == ("rocm-smi", "Hygon driver 6.3.31-V1.5.0a")


def test_amds_rocm_smi_is_not_even_asked(tools: Path, tmp_path: Path) -> None:
    tool = stand_in_tool(tools, "rocm-smi", ANSWERS)
    assert HygonDetector(tmp_path / "amd").detect() == HardwareProfile()
    assert calls_of(tool) == []


def test_amds_cards_beside_a_hygon_processor_are_not_hygons(tools: Path, sysfs: Path) -> None:
    amd = '{"card0": {"Card Series": "Instinct MI300X", "Card Vendor": "Advanced Micro Devices, Inc. [AMD/ATI]"}}'
    stand_in_tool(tools, "rocm-smi", {NAMES: amd})
    with pytest.raises(ToolOutputError, match="AMD's rocm-smi"):
        HygonDetector(sysfs).detect()


def test_a_tool_that_fails_is_an_error_where_there_are_devices(tools: Path, sysfs: Path) -> None:
    stand_in_tool(tools, "hy-smi", {})
    with pytest.raises(ToolOutputError, match="hy-smi --showproductname --json failed with exit code 1"):
        HygonDetector(sysfs).detect()
    assert HygonDetector(sysfs.parent / "nothing").detect().accelerators == ()


def test_devices_without_the_tool_are_noted(tools: Path, sysfs: Path) -> None:
    (note,) = HygonDetector(sysfs).detect().notes
    assert "hy-smi or rocm-smi is missing: 0000:09:00.0 (1d94:6320), 0000:36:00.0 (1d94:6320)" in note

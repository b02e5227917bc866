"""The detector on a stand-in for NVML that answers with recorded values, and on machines without a driver."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pynvml
import pytest
from cuda_fake_nvml import FakeNvml, Gpu, Mig
from sage_infer.errors import ToolOutputError
from sage_infer.schemas import HardwareProfile
from sage_infer_cuda.detector import NvidiaDetector
from sage_infer_testing import HardwareDetectorContract, PluginContract

# smi-qx-h100.xml, topo-m-h100x8-nv18-ht.txt
NODES = (0, 0, 0, 0, 1, 1, 1, 1)
ADDRESSES = ("53", "64", "75", "86", "97", "A8", "B9", "CA")
CPUS = (
    sum(1 << n for n in (*range(52), *range(104, 156))),
    sum(1 << n for n in (*range(52, 104), *range(156, 208))),
)
H100 = tuple(
    Gpu(
        name="NVIDIA H100 80GB HBM3", uuid=f"GPU-0000000{i}-0000-0000-0000-00000000000{i}",
        address=f"00000000:{bus}:00.0", mib=81559, capability=(9, 0), generation=5, cpus=CPUS[NODES[i]],
        links=[None] * 18, link_mbps=26562,
    )
    for i, bus in enumerate(ADDRESSES)
)  # fmt: skip
# nvlink-s, nvlink-R and topo -m of one host
BRIDGED = tuple(
    Gpu(
        name="NVIDIA H100 PCIe", uuid=uuid, address=f"00000000:{own}:00.0", mib=81559, capability=(9, 0), generation=5,
        links=[f"00000000:{far}:00.0"] * 12, link_mbps=26562,
    )
    for uuid, own, far in (
        ("GPU-6968dfc2-d444-d92c-c36b-6abe53445cb9", "C2", "D5"),
        ("GPU-9b1446e2-8a89-4cf6-b68c-a98d99e958d3", "D5", "C2"),
    )
)  # fmt: skip
# smi-qx-telegraf-a100-sxm4-v12.xml
MIG = Gpu(
    name="NVIDIA A100-SXM4-80GB", uuid="GPU-513536b6-7d19-9063-b049-1e69664bb298", address="00000000:01:00.0",
    mib=81920, capability=(8, 0),
    migs={
        index: Mig(name="NVIDIA A100-SXM4-80GB MIG 1g.20gb", uuid=f"MIG-{index}", mib=19968, units=14)
        for index in (0, 1, 3)
    },
)  # fmt: skip


def machine(
    folder: Path, *addresses: str, driver: bool = True, nodes: tuple[int, ...] = ()
) -> dict[str, Path]:
    """Device nodes and a PCI bus below a folder."""
    (folder / "dev").mkdir()
    for number, address in enumerate(addresses):
        if driver:
            (folder / "dev" / f"nvidia{number}").touch()
        device = folder / "sys/bus/pci/devices" / address
        device.mkdir(parents=True)
        (device / "vendor").write_text("0x10de\n")
        (device / "device").write_text("0x2330\n")
        (device / "class").write_text("0x030200\n")
        (device / "numa_node").write_text(f"{nodes[number] if nodes else -1}\n")
    return {"root": folder, "sysfs": folder / "sys"}


def detected(folder: Path, *gpus: Gpu, nodes: tuple[int, ...] = ()) -> HardwareProfile:
    places = machine(folder, *(gpu.address[4:].lower() for gpu in gpus), nodes=nodes)
    nvml = FakeNvml(*gpus)
    profile = NvidiaDetector(**places, load=lambda: nvml).detect()
    assert nvml.open == 0
    return profile


def test_eight_gpus_on_nvswitches(tmp_path: Path) -> None:
    found = detected(tmp_path, *H100, nodes=NODES)
    assert found.sources == ("NVML of driver 580.105.08",)
    assert [(gpu.index, gpu.pci_address, gpu.numa_node) for gpu in found.accelerators] == [
        (i, f"0000:{bus.lower()}:00.0", NODES[i]) for i, bus in enumerate(ADDRESSES)
    ]
    first = found.accelerators[0]
    assert (first.model, first.memory_bytes, first.compute_capability) == (
        "NVIDIA H100 80GB HBM3", 81559 * 1024 * 1024, "9.0",
    )  # fmt: skip
    assert first.cpu_affinity == "0-51,104-155"
    assert found.accelerators[7].cpu_affinity == "52-103,156-207"
    assert first.peak_tflops["fp8_e4m3"].value == 1979
    joined = [link for link in found.links if link.kind == "nvlink"]
    assert len(joined) == 56
    assert {link.vendor_code for link in joined} == {"NV18"}
    assert {link.nominal_gbs.value for link in joined if link.nominal_gbs} == {478.116}
    host = [link for link in found.links if link.target == "host"]
    assert [link.nominal_gbs.value for link in host if link.nominal_gbs] == [63.0] * 8


def test_two_gpus_on_a_bridge(tmp_path: Path) -> None:
    found = detected(tmp_path, *BRIDGED)
    joined = [link for link in found.links if link.kind == "nvlink"]
    assert [(link.source, link.target, link.vendor_code) for link in joined] == [
        ("cuda:0", "cuda:1", "NV12"), ("cuda:1", "cuda:0", "NV12"),
    ]  # fmt: skip
    assert [link.nominal_gbs.value for link in joined if link.nominal_gbs] == [318.744, 318.744]


def test_paths_over_pcie(tmp_path: Path) -> None:
    """As in topo-m-x8-pcie-only-2numa-uneven.txt: PHB, NODE and SYS; what NVML does not say is no link."""
    a, b, c = "00000000:01:00.0", "00000000:02:00.0", "00000000:81:00.0"
    levels = {
        a: {b: pynvml.NVML_TOPOLOGY_HOSTBRIDGE, c: pynvml.NVML_TOPOLOGY_SYSTEM},
        b: {a: pynvml.NVML_TOPOLOGY_NODE},
        c: {a: pynvml.NVML_TOPOLOGY_SYSTEM, b: 77},
    }
    gpus = [
        Gpu(
            name="NVIDIA L40S",
            uuid="GPU",
            address=address,
            mib=46068,
            capability=(8, 9),
            ancestors=levels[address],
        )
        for address in (a, b, c)
    ]
    found = detected(tmp_path, *gpus)
    assert {(x.source, x.target): x.vendor_code for x in found.links if "host" not in (x.source, x.target)} == {
        ("cuda:0", "cuda:1"): "PHB", ("cuda:0", "cuda:2"): "SYS", ("cuda:1", "cuda:0"): "NODE",
        ("cuda:2", "cuda:0"): "SYS",
    }  # fmt: skip
    assert "not symmetric" in found.notes[0]


def test_mig_instances(tmp_path: Path) -> None:
    (gpu,) = detected(tmp_path, MIG).accelerators
    assert [(p.index, p.profile, p.uuid, p.memory_bytes, p.compute_units) for p in gpu.partitions] == [
        (index, "1g.20gb", f"MIG-{index}", 19968 * 1024 * 1024, 14) for index in (0, 1, 3)
    ]
    assert (gpu.numa_node, gpu.cpu_affinity) == (None, None)


def test_a_lost_gpu_is_a_note(tmp_path: Path) -> None:
    lost = Gpu(name="x", uuid="y", address="00000000:99:00.0", mib=1, capability=(9, 0), lost=True)
    found = detected(tmp_path, H100[0], lost)
    assert [gpu.index for gpu in found.accelerators] == [0]
    assert found.notes == ("cuda:1 does not answer: GPU is lost",)


def test_a_driver_that_does_not_start_is_one_error(tmp_path: Path) -> None:
    places = machine(tmp_path, "0000:53:00.0")
    with pytest.raises(
        ToolOutputError, match="NVML does not start: RM has detected an NVML/RM version mismatch"
    ):
        NvidiaDetector(**places, load=lambda: FakeNvml(starts=False)).detect()


def test_a_driver_that_lists_nothing_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)

    nvml = FakeNvml()
    monkeypatch.setattr(nvml, "nvmlDeviceGetCount", fail)
    with pytest.raises(ToolOutputError, match="does not list its devices: Unknown Error"):
        NvidiaDetector(**machine(tmp_path, "0000:53:00.0"), load=lambda: nvml).detect()


def no_library() -> None:
    pytest.fail("NVML was loaded where there is no device node")


def test_devices_without_a_driver_are_a_note(tmp_path: Path) -> None:
    found = NvidiaDetector(**machine(tmp_path, "0000:53:00.0", driver=False), load=no_library).detect()
    assert found.accelerators == ()
    (note,) = found.notes
    assert "0000:53:00.0 (10de:2330)" in note
    assert "install NVIDIA's driver" in note


def test_nothing_is_nothing(tmp_path: Path) -> None:
    assert NvidiaDetector(**machine(tmp_path), load=no_library).detect() == HardwareProfile()


def test_wsl_has_a_library_and_no_device_nodes(tmp_path: Path) -> None:
    places = machine(tmp_path)
    library = tmp_path / "usr/lib/wsl/lib/libnvidia-ml.so.1"
    library.parent.mkdir(parents=True)
    library.touch()
    found = NvidiaDetector(**places, load=lambda: FakeNvml(H100[0])).detect()
    assert len(found.accelerators) == 1


@pytest.mark.skipif(bool(list(Path("/dev").glob("nvidia[0-9]*"))), reason="this machine has an NVIDIA driver")
def test_no_library_is_touched_on_a_machine_without_a_gpu() -> None:
    program = (
        "import sys; from sage_infer_cuda.detector import NvidiaDetector; profile = NvidiaDetector().detect(); "
        "assert not profile.accelerators; assert 'pynvml' not in sys.modules; "
        "maps = open('/proc/self/maps').read(); assert 'nvidia' not in maps and 'libcuda' not in maps"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=600)


class TestContract(HardwareDetectorContract):
    """The kit on this machine: with a GPU it is the real thing, without one the profile is empty."""

    hardware = ("cuda",)

    def make_detector(self) -> NvidiaDetector:
        return NvidiaDetector()


class TestContractOnRecordedValues(HardwareDetectorContract):
    """The kit on the stand-in for NVML, with the values of recordings."""

    hardware = ("cuda",)

    @pytest.fixture(autouse=True)
    def places(self, tmp_path: Path) -> None:
        self.found = machine(tmp_path, *(f"0000:{bus.lower()}:00.0" for bus in ADDRESSES), nodes=NODES)

    def make_detector(self) -> NvidiaDetector:
        return NvidiaDetector(**self.found, load=lambda: FakeNvml(*H100))


class TestPlugin(PluginContract):
    module = "sage_infer_cuda.plugin"

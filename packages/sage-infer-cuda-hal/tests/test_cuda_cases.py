"""Recordings that once came out wrong, short or not at all: the values that their text shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from sage_infer.schemas import AcceleratorDescriptor, HardwareProfile
from sage_infer.schemas.codec import to_json
from sage_infer_cuda.recordings import read
from sage_infer_testing import WholeRecordingContract

CASES = Path(__file__).parent / "data" / "cases"
MIB = 1024 * 1024


def profile(name: str) -> HardwareProfile:
    return read((CASES / name).read_text("utf-8"), name=name)


def places(found: HardwareProfile) -> list[tuple[int, int | None, str | None]]:
    return [(gpu.index, gpu.numa_node, gpu.cpu_affinity) for gpu in found.accelerators]


def codes(found: HardwareProfile) -> dict[tuple[str, str], str | None]:
    return {(link.source, link.target): link.vendor_code for link in found.links}


def one(name: str) -> AcceleratorDescriptor:
    (gpu,) = profile(name).accelerators
    return gpu


def test_the_list_of_an_orin() -> None:
    gpu = one("nvidia-smi-L-orin.txt")
    assert (gpu.index, gpu.model, gpu.uuid) == (0, "Orin (nvgpu)", "00000000-0000-0000-0000-000000000000")
    assert (gpu.compute_capability, gpu.memory_bytes, gpu.pci_address) == ("8.7", None, None)


def test_the_table_of_an_orin() -> None:
    found = profile("nvidia-smi-table-orin-nvgpu.txt")
    (gpu,) = found.accelerators
    assert (gpu.index, gpu.model, gpu.compute_capability) == (0, "Orin (nvgpu)", "8.7")
    assert (gpu.memory_bytes, gpu.pci_address, gpu.uuid, gpu.memory_bandwidth_gbs) == (None, None, None, None)
    assert found.sources == ("nvidia-smi 540.4.0",)
    assert any("unified memory" in note for note in found.notes)


def test_a_gb10_has_no_memory_of_its_own() -> None:
    found = profile("smi-qx-gb10-unified-subset.xml")
    (gpu,) = found.accelerators
    assert (gpu.model, gpu.compute_capability, gpu.memory_bytes) == ("NVIDIA GB10", "12.1", None)
    assert gpu.pci_address == "0000:01:00.0"
    assert "fp4" in gpu.supported_precisions
    assert found.memory_tiers == ()
    assert any("cuda:0 shares the host's memory" in note for note in found.notes)


def test_a_hopper_is_a_hopper_and_has_no_rates_of_its_sibling() -> None:
    gpus = profile("smi-qx-h100pcie-derived.xml").accelerators
    assert [(gpu.index, gpu.model, gpu.memory_bytes) for gpu in gpus] == [
        (i, "NVIDIA H100 PCIe", 81559 * MIB) for i in range(8)
    ]
    for gpu in gpus:
        assert gpu.compute_capability == "9.0"
        assert "fp8_e4m3" in gpu.supported_precisions
        assert "int4" not in gpu.supported_precisions
        assert (gpu.peak_tflops, gpu.memory_bandwidth_gbs) == ({}, None)


def test_one_lost_gpu_costs_that_gpu() -> None:
    found = profile("smi-qx-mock-gb200-lost.xml")
    (gpu,) = found.accelerators
    assert (gpu.index, gpu.model, gpu.memory_bytes) == (0, "NVIDIA GB200", 196608 * MIB)
    assert (gpu.pci_address, gpu.uuid) == ("0000:0a:00.0", "GPU-00000000-0000-0000-0000-000000000000")
    assert (
        gpu.compute_capability == "10.0"
    )  # by its name and its architecture; the made-up device id is a Hopper's
    assert any("device id 0x2341 9.0" in note for note in found.notes)
    assert any(note.startswith("cuda:1 is left out") and "GPU is lost" in note for note in found.notes)
    assert {end for link in found.links for end in (link.source, link.target)} == {"host", "cuda:0"}


@pytest.mark.parametrize("serial", ["1562849103700", "1562849103701", "1822725100200"])
def test_a_serial_number_is_in_no_profile(serial: str) -> None:
    name = "smi-qx-mock-gb200-lost.xml"
    assert serial in (CASES / name).read_text("utf-8")
    assert serial not in to_json(profile(name))


def test_mig_devices_of_a_subset_of_the_xml() -> None:
    gpu = one("smi-qx-rtxpro6000-mig-subset.xml")
    assert (gpu.model, gpu.memory_bytes) == ("NVIDIA RTX PRO 6000 Blackwell", 97871 * MIB)
    assert (gpu.compute_capability, gpu.pci_address) == ("12.0", "0000:55:00.0")
    assert [(part.index, part.memory_bytes) for part in gpu.partitions] == [
        (0, 24576 * MIB),
        (1, 24576 * MIB),
    ]
    assert gpu.peak_tflops == {}


def test_a_list_of_numa_nodes_is_said() -> None:
    found = profile("topo-m-gb200-x4-nic6-numa-list-sglang11208.txt")
    assert places(found) == [(0, None, "0-71"), (1, None, "0-71"), (2, None, "72-143"), (3, None, None)]
    table = codes(found)
    assert {table[f"cuda:{a}", f"cuda:{b}"] for a in range(3) for b in range(4) if a != b} == {"NV18"}
    assert {table[f"cuda:{a}", f"nic:{n}"] for a in range(3) for n in range(6)} == {"SYS"}
    assert len(table) == 27
    notes = "\n".join(found.notes)
    assert "no row for GPU3, NIC0" in notes
    assert "GPU0 is near the NUMA nodes 0,3-9,11-17" in notes
    assert "GPU2 is near the NUMA nodes 1,19-25,27-33" in notes
    assert "the memory of GPU1 is NUMA node 10" in notes


def test_cells_that_ran_into_each_other() -> None:
    found = profile("topo-m-h100-x8-nic12-fused-cells-vllm13855.txt")
    assert places(found) == [(i, i // 4, "0-55,112-167" if i < 4 else "56-111,168-223") for i in range(8)]
    table = codes(found)
    assert {table[f"cuda:{a}", f"cuda:{b}"] for a in range(8) for b in range(8) if a != b} == {"NV18"}
    assert [table["cuda:4", f"nic:{n}"] for n in range(12)] == ["SYS"] * 6 + ["PXB"] + ["NODE"] * 5
    assert [table["cuda:5", f"nic:{n}"] for n in range(6, 12)] == ["NODE"] * 3 + ["PXB"] + ["NODE"] * 2
    assert [table["cuda:6", f"nic:{n}"] for n in range(12)] == ["SYS"] * 6 + ["NODE"] * 4 + ["PXB", "NODE"]
    assert [table["cuda:0", f"nic:{n}"] for n in range(12)] == ["PXB"] + ["NODE"] * 5 + ["SYS"] * 6


def test_an_empty_column_of_affinities() -> None:
    found = profile("topo-m-x8-nv18-nic6-empty-cpu-affinity.txt")
    assert places(found) == [(i, 0, None) for i in range(4)] + [(i, 1, "1") for i in range(4, 8)]
    table = codes(found)
    assert len(table) == 14 * 13
    assert table["cuda:0", "nic:1"] == table["nic:2", "cuda:3"] == table["nic:5", "cuda:6"] == "PIX"
    assert table["cuda:7", "nic:5"] == "NODE"
    assert found.notes == (", ".join(f"nic:{n} is mlx5_{n}" for n in range(6)),)


def test_peer_access_is_no_link() -> None:
    found = profile("topo-p2p-rw-5090x2-gns.txt")
    assert places(found) == [(0, None, None), (1, None, None)]
    assert found.links == ()
    assert "GNS (the GPU does not support it): cuda:0 → cuda:1, cuda:1 → cuda:0" in found.notes[0]


def test_every_case_has_a_test() -> None:
    source = Path(__file__).read_text("utf-8")
    assert not [
        path.name for path in CASES.glob("*.*") if path.suffix != ".md" and f'"{path.name}"' not in source
    ]


class TestCaseTables(WholeRecordingContract):
    folder = CASES
    pattern = "*.txt"

    def read(self, text: str, *, name: str) -> HardwareProfile:
        return read(text, name=name)


class TestCaseXml(TestCaseTables):
    pattern = "*.xml"
    damaged = examples = 15

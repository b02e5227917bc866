"""Forms of output of which there is no recording: composed from NVIDIA's documentation and from NCCL's sources."""

from __future__ import annotations

import pytest
from sage_infer.errors import ToolOutputError
from sage_infer_cuda.recordings import read

LISTING = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
  MIG 1g.5gb      Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 2g.10gb     Device  1: (UUID: MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx)
"""


def test_listing() -> None:
    first, second = read(LISTING, name="x").accelerators
    assert (first.index, first.model, first.compute_capability) == (0, "NVIDIA A100-SXM4-40GB", "8.0")
    assert first.uuid == "GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77"
    assert [(part.index, part.profile, part.uuid) for part in first.partitions] == [
        (0, "1g.5gb", "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f"),
        (1, "2g.10gb", "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb"),
    ]
    assert second.uuid is None
    with pytest.raises(ToolOutputError, match="line 2"):
        read(LISTING.replace("  MIG 1g.5gb", "  VGPU 1g.5gb"), name="x")


def test_gpus_without_nvlink() -> None:
    text = "GPU 0: Tesla T4 (UUID: GPU-1)\nNVML: Unable to retrieve NVLink information as all links are inActive\n"
    found = read(text, name="x")
    assert [gpu.model for gpu in found.accelerators] == ["Tesla T4"]
    assert found.links == ()


def test_far_ends_that_are_switches_stay_addresses() -> None:
    text = "".join(
        f"GPU {gpu}: NVIDIA H200 (UUID: GPU-{gpu})\n"
        f"\t Link 0: Remote Device 00000000:87:00.0: Link 3{gpu}\n"
        f"\t Link 1: Remote Device 00000000:88:00.0: Link 3{gpu}\n"
        for gpu in (0, 1)
    )
    found = read(text, name="x")
    assert {(link.source, link.target, link.vendor_code) for link in found.links} == {
        ("cuda:0", "pci:0000:87:00.0", "NV1"), ("cuda:0", "pci:0000:88:00.0", "NV1"),
        ("cuda:1", "pci:0000:87:00.0", "NV1"), ("cuda:1", "pci:0000:88:00.0", "NV1"),
    }  # fmt: skip
    assert [gpu.pci_address for gpu in found.accelerators] == [None, None]


@pytest.mark.parametrize(
    "line", ["\t Link 0: 26.562 GB/s", "\t Link 0: Remote Device 00000000:87:00.0: Link 30"]
)
def test_links_of_a_gpu_that_is_alone_are_not_counted(line: str) -> None:
    """A recording that was cut looks the same."""
    found = read(f"GPU 0: NVIDIA H200 (UUID: GPU-0)\n{line}\n", name="x")
    assert len(found.accelerators) == 1
    assert found.links == ()
    assert "one GPU only" in found.notes[0]


def test_older_names_of_paths_and_cards() -> None:
    text = (
        "\t\x1b[4mGPU0\tGPU1\tmlx5_0\tCPU Affinity\x1b[0m\r\n"
        "GPU0\t X \tSOC\tPSB\t0-13,28-41\r\n"
        "GPU1\tSOC\t X \tN/A\t14-27,42-55\r\n"
        "mlx5_0\tPSB\tN/A\t X \t\r\n"
    )
    found = read(text, name="x")
    assert [(gpu.index, gpu.cpu_affinity) for gpu in found.accelerators] == [
        (0, "0-13,28-41"),
        (1, "14-27,42-55"),
    ]
    assert {(link.source, link.target, link.vendor_code) for link in found.links} == {
        ("cuda:0", "cuda:1", "SOC"), ("cuda:1", "cuda:0", "SOC"), ("cuda:0", "nic:mlx5_0", "PSB"),
        ("nic:mlx5_0", "cuda:0", "PSB"),
    }  # fmt: skip


EMPTY_CELL = (
    "\tGPU0\tGPU1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\n"
    "GPU0\t X \tSYS\t\t0\t\tN/A\n"
    "GPU1\tSYS\t X \t0-7\t0\t\tN/A\n"
)


@pytest.mark.parametrize("table", [EMPTY_CELL, EMPTY_CELL.expandtabs()], ids=["tabs", "blanks"])
def test_an_affinity_column_may_be_empty(table: str) -> None:
    first, second = read(table, name="x").accelerators
    assert (first.cpu_affinity, first.numa_node) == (None, 0)
    assert (second.cpu_affinity, second.numa_node) == ("0-7", 0)


def test_an_affinity_is_not_guessed_where_blanks_were_squeezed() -> None:
    squeezed = "\n".join(" ".join(line.split()) for line in EMPTY_CELL.splitlines())
    found = read(squeezed + "\n", name="x")
    assert (found.accelerators[0].cpu_affinity, found.accelerators[0].numa_node) == (None, None)
    assert (found.accelerators[1].cpu_affinity, found.accelerators[1].numa_node) == ("0-7", 0)
    assert any("rows of GPU0" in note and "affinities are left out" in note for note in found.notes)


def test_cells_that_ran_into_each_other_are_taken_apart_where_there_is_one_way() -> None:
    fused = "      GPU0 GPU1NIC0  CPU Affinity\nGPU0   X   NV18NODE   0-7\nGPU1  NV18X   NODE   0-7\n"
    found = read(fused, name="x")
    assert {(x.source, x.target): x.vendor_code for x in found.links} == {
        ("cuda:0", "cuda:1"): "NV18", ("cuda:0", "nic:0"): "NODE",
        ("cuda:1", "cuda:0"): "NV18", ("cuda:1", "nic:0"): "NODE",
    }  # fmt: skip
    with pytest.raises(ToolOutputError, match="a link code under NIC0"):  # NV1 and 80-7, or NV18 and 0-7
        read("      GPU0 GPU1 NIC0 CPU Affinity\nGPU0 X SYS NV180-7\n", name="x")


def test_a_cut_table_says_so_and_one_gpu_is_a_table() -> None:
    found = read("      GPU0  GPU1  CPU Affinity\nGPU0   X    NV4   0-7\n", name="x")
    assert len(found.accelerators) == 2
    assert "no row for GPU1" in found.notes[0]
    (gpu,) = read(
        "\tGPU0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\nGPU0\t X \t0-7\t0\t\tN/A\n", name="x"
    ).accelerators
    assert (gpu.index, gpu.numa_node) == (0, 0)
    with pytest.raises(ToolOutputError):
        read("\tGPU0\tGPU1\tCPU Affinity\n", name="x")


DUMP = """\
<system version="1">
  <cpu host_hash="0x1" numaid="-1" affinity="" arch="x86_64" vendor="AuthenticAMD" familyid="143" modelid="49">
    <pci busid="0000:11:00.0" class="0x060400" vendor="0x1000" device="0xc010">
      <pci busid="0000:13:00.0" class="0x060400" link_speed="16.0 GT/s PCIe" link_width="16">
        <pci busid="0000:15:00.0" class="0x030200" vendor="0x10de" device="0x2330"
             link_speed="32.0 GT/s PCIe" link_width="16">
          <gpu dev="1" sm="90" rank="1" gdr="1">
            <nvlink target="0000:05:00.0" count="4" tclass="0x068000"/>
            <nvlink target="0000:06:00.0" count="5" tclass="0x068000"/>
          </gpu>
        </pci>
      </pci>
      <pci busid="0000:16:00.0" class="0x030200" vendor="0x10de" device="0x2330" link_speed="Unknown" link_width="16">
        <gpu dev="0" sm="90" rank="0" gdr="1">
          <nvlink target="0000:05:00.0" count="9" tclass="0x068000"/>
        </gpu>
      </pci>
      <pci busid="0000:17:00.0" class="0x038000" vendor="0x1002" device="0x74a1"/>
    </pci>
  </cpu>
</system>
"""


def test_nvlink_through_switches_in_a_dump() -> None:
    found = read(DUMP, name="x")
    assert [(gpu.index, gpu.pci_address, gpu.numa_node) for gpu in found.accelerators] == [
        (0, "0000:16:00.0", None), (1, "0000:15:00.0", None),
    ]  # fmt: skip
    assert {gpu.compute_capability for gpu in found.accelerators} == {"9.0"}
    joined = [link for link in found.links if link.kind == "nvlink"]
    assert [(link.source, link.target, link.vendor_code) for link in joined] == [
        ("cuda:0", "cuda:1", "NV9"), ("cuda:1", "cuda:0", "NV9"),
    ]  # fmt: skip
    assert all(link.nominal_gbs is not None and link.nominal_gbs.value == 225 for link in joined)
    paths = {link.vendor_code for link in found.links if link.kind == "pcie" and link.vendor_code}
    assert paths == {"PXB"}  # several bridges, below one root port
    assert [link.source for link in found.links if link.target == "host"] == [
        "cuda:1"
    ]  # the other's speed is unknown
    assert "another vendor (0x1002)" in found.notes[0]


def test_direct_nvlinks_in_a_dump() -> None:
    text = DUMP.replace(
        'target="0000:05:00.0" count="4" tclass="0x068000"',
        'target="0000:16:00.0" count="2" tclass="0x030200"',
    )
    text = text.replace('<nvlink target="0000:06:00.0" count="5" tclass="0x068000"/>', "").replace(
        'target="0000:05:00.0" count="9" tclass="0x068000"',
        'target="0000:99:00.0" count="2" tclass="0x030200"',
    )
    joined = {
        (link.source, link.target): link.vendor_code
        for link in read(text, name="x").links
        if link.kind == "nvlink"
    }
    assert joined == {("cuda:1", "cuda:0"): "NV2", ("cuda:0", "pci:0000:99:00.0"): "NV2"}

"""Names, device ids, capabilities and rates agree; and the plain table of nvidia-smi."""

from __future__ import annotations

import itertools

import pytest
from sage_infer.errors import ToolOutputError
from sage_infer.schemas import AcceleratorDescriptor
from sage_infer_cuda.capability import ID_RANGES, PRECISIONS, capability_of, capability_of_name
from sage_infer_cuda.chips import CHIPS, described
from sage_infer_cuda.recordings import read
from sage_infer_hal.detection import Chip

# --- names, ids, capabilities and rates agree


def test_ranges_of_device_ids_do_not_overlap() -> None:
    ranges = sorted(ID_RANGES)
    assert all(first <= last for first, last, _ in ranges)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(ranges))
    assert {capability for _, _, capability in ranges} <= PRECISIONS.keys()


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.names[0])
def test_a_row_agrees_with_its_capability(chip: Chip) -> None:
    assert chip.architecture is not None
    assert {capability_of_name(name) for name in chip.names} == {chip.architecture}
    assert set(chip.precisions) == set(PRECISIONS[chip.architecture])
    assert set(chip.tflops) <= set(chip.precisions)


def test_names_are_of_one_row() -> None:
    names = [name for chip in CHIPS for name in chip.names]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("name", "device_id", "capability"),
    [
        ("NVIDIA GeForce RTX 5090", 0x2B85, "12.0"),
        ("NVIDIA GeForce RTX 5070", 0x2F04, "12.0"),
        ("NVIDIA GeForce RTX 5060 Ti", 0x2D04, "12.0"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 0x2BB5, "12.0"),
        ("NVIDIA RTX PRO 4500 Blackwell", 0x2C31, "12.0"),
        ("NVIDIA GB10", 0x2E12, "12.1"),
        ("NVIDIA Thor", 0x2B00, "11.0"),
        ("NVIDIA B300 SXM6 AC", 0x3182, "10.3"),
        ("NVIDIA GB300", 0x31C2, "10.3"),
        ("NVIDIA B200", 0x2901, "10.0"),
        ("NVIDIA H200 NVL", 0x233B, "9.0"),
        ("NVIDIA GH200 480GB", 0x2342, "9.0"),
        ("NVIDIA H20", 0x2329, "9.0"),
        ("NVIDIA A100-PCIE-40GB", 0x20F1, "8.0"),
        ("NVIDIA RTX A6000", 0x2230, "8.6"),
        ("NVIDIA GeForce RTX 3090", 0x2204, "8.6"),
        ("NVIDIA L40", 0x26B5, "8.9"),
        ("Tesla T4", 0x1EB8, "7.5"),
        ("NVIDIA Graphics Device", 0x2330, "9.0"),
        ("NVIDIA Graphics Device", 0x22A3, None),  # an NVSwitch
        ("Orin (nvgpu)", None, "8.7"),
        ("NVIDIA A100-SXM...", None, None),
    ],
)
def test_capabilities_by_name_and_device_id(name: str, device_id: int | None, capability: str | None) -> None:
    assert capability_of(name, device_id) == (capability, "")


def test_a_name_and_a_device_id_that_differ_are_no_capability() -> None:
    found, note = capability_of("NVIDIA A100-SXM4-80GB", 0x2330)
    assert found is None
    assert "its name says 8.0, its device id 0x2330 9.0" in note
    assert capability_of("NVIDIA H100 PCIe", 0x20B0, "Hopper")[0] == "9.0"


MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("name", "mib", "rates"),
    [
        ("NVIDIA H20", 97871, True),
        ("NVIDIA H20", 143771, False),  # the one with 141 GB has another memory
        ("NVIDIA H20", None, False),
        ("NVIDIA B200", 183359, True),
        ("NVIDIA L40S", 46068, True),
        ("NVIDIA L40S", 24576, False),
        ("NVIDIA H100 80GB HBM3", 81559, True),
        ("NVIDIA H100 80GB HBM3", 65247, False),
        ("NVIDIA A100-SXM4-40GB", 40960, True),
        ("NVIDIA A100-SXM4-40GB", 81920, False),
        ("NVIDIA H100 PCIe", 81559, False),
    ],
)
def test_rates_are_of_the_exact_product(name: str, mib: int | None, rates: bool) -> None:
    gpu = AcceleratorDescriptor(
        hardware_backend="cuda", vendor="NVIDIA", model=name, index=0, memory_bytes=mib and mib * MIB
    )
    found = described(gpu)
    assert bool(found.peak_tflops) == (found.memory_bandwidth_gbs is not None) == rates
    assert found.compute_capability is not None
    assert found.supported_precisions


# --- the table of nvidia-smi

TABLE = """\
Fri Aug 14 10:18:15 2026
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 570.86.10              Driver Version: 570.86.10      CUDA Version: 12.8     |
|-----------------------------------------+------------------------+----------------------+
| GPU  Name                 Persistence-M | Bus-Id          Disp.A | Volatile Uncorr. ECC |
| Fan  Temp   Perf          Pwr:Usage/Cap |           Memory-Usage | GPU-Util  Compute M. |
|                                         |                        |               MIG M. |
|=========================================+========================+======================|
|   0  NVIDIA A100-SXM4-80GB          On  |   00000000:01:00.0 Off |                   On |
| N/A   31C    P0             61W /  400W |      87MiB /  81920MiB |     N/A      Default |
|                                         |                        |              Enabled |
+-----------------------------------------+------------------------+----------------------+
|   1  NVIDIA H100 PCIe               On  |   00000000:41:00.0 Off |                    0 |
| N/A   31C    P0             61W /  350W |       1MiB /  81559MiB |      0%      Default |
|                                         |                        |             Disabled |
+-----------------------------------------+------------------------+----------------------+

+-----------------------------------------------------------------------------------------+
| MIG devices:                                                                            |
+------------------+----------------------------------+-----------+-----------------------+
| GPU  GI  CI  MIG |                     Memory-Usage |        Vol|        Shared         |
|      ID  ID  Dev |                       BAR1-Usage | SM     Unc| CE ENC  DEC  OFA  JPG |
|                  |                                  |        ECC|                       |
|==================+==================================+===========+=======================|
|  0    1   0   0  |              37MiB / 40192MiB    | 42      0 |  3   0    2    0    0 |
|                  |               0MiB / 65535MiB    |           |                       |
+------------------+----------------------------------+-----------+-----------------------+

+-----------------------------------------------------------------------------------------+
| Processes:                                                                              |
|  GPU   GI   CI              PID   Type   Process name                        GPU Memory |
|        ID   ID                                                               Usage      |
|=========================================================================================|
|  No running processes found                                                             |
+-----------------------------------------------------------------------------------------+
"""
LOST_ROW = """\
|   1  ERR!                          ERR! |   00000000:41:00.0 ERR! |                 ERR! |
|ERR!  ERR! ERR!              ERR! / ERR! |       1MiB /  81559MiB |     ERR!     Default |
|                                         |                        |                 ERR! |
"""


def test_the_table_of_nvidia_smi() -> None:
    found = read(TABLE, name="x")
    assert found.sources == ("nvidia-smi 570.86.10",)
    assert [
        (g.index, g.model, g.pci_address, g.memory_bytes, g.compute_capability) for g in found.accelerators
    ] == [
        (0, "NVIDIA A100-SXM4-80GB", "0000:01:00.0", 81920 * MIB, "8.0"),
        (1, "NVIDIA H100 PCIe", "0000:41:00.0", 81559 * MIB, "9.0"),
    ]
    (part,) = found.accelerators[0].partitions
    assert (part.index, part.memory_bytes) == (0, 40192 * MIB)
    assert found.notes == ()


def test_one_lost_gpu_of_the_table_costs_that_gpu() -> None:
    lines = TABLE.splitlines(keepends=True)
    found = read("".join(lines[:12]) + LOST_ROW + "".join(lines[15:]), name="x")
    assert [gpu.index for gpu in found.accelerators] == [0]
    assert found.notes == ("cuda:1 is left out: nvidia-smi prints 'ERR!' for it",)
    handle = "Unable to determine the device handle for GPU 0000:C1:00.0: Unknown Error\n"
    found = read(handle + TABLE, name="x")
    assert [gpu.index for gpu in found.accelerators] == [0, 1]
    assert found.notes == (f"a GPU is left out: {handle.strip()}",)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("".join(TABLE.splitlines(keepends=True)[:8]), "a row of a GPU below the table's heading"),
        ("".join(TABLE.splitlines(keepends=True)[:11]), "a rule below this row: the table is cut"),
        (TABLE.replace("|   1  NVIDIA", "|   0  NVIDIA"), "one row for GPU 0"),
        (TABLE.replace("81559MiB", "81559 GB"), "memory as used MiB / total MiB"),
        (TABLE.replace("00000000:41:00.0", "elsewhere"), "a bus id such as"),
        (TABLE.replace("00000000:41:00.0", "00000000:01:00.0"), "a bus id that no other GPU has"),
        (
            TABLE.replace("|  0    1   0   0  |", "|  7    1   0   0  |"),
            "numbers of GPU, GI, CI and MIG device",
        ),
        (TABLE.replace("| GPU  Name ", "| GPU  Nome "), "does not start a known output"),
    ],
)
def test_a_damaged_table_is_refused(changed: str, message: str) -> None:
    with pytest.raises(ToolOutputError, match=message):
        read(changed, name="x")

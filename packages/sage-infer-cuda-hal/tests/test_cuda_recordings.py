"""Every recording of NVIDIA's tools, fact by fact as a person reads it in the file (``data/SOURCES.md``)."""

from __future__ import annotations

from pathlib import Path

import pytest
from sage_infer.errors import ToolOutputError
from sage_infer.schemas import HardwareProfile
from sage_infer_cuda.recordings import read

DATA = Path(__file__).parent / "data"
MIB = 1024 * 1024


def profile(name: str) -> HardwareProfile:
    return read((DATA / name).read_text("utf-8"), name=name)


def codes(found: HardwareProfile) -> dict[tuple[str, str], str | None]:
    return {(link.source, link.target): link.vendor_code for link in found.links if link.source != "host"}


def nominal(found: HardwareProfile, source: str, target: str) -> float | None:
    figures = [x.nominal_gbs for x in found.links if (x.source, x.target) == (source, target)]
    assert len(figures) == 1
    return None if figures[0] is None else figures[0].value


# --- nvidia-smi -q -x

SMI = {
    # file: driver, product, MiB, address, uuid, capability, GB/s of PCIe
    "smi-qx-a100.xml": (
        "570.148.08", "NVIDIA A100-SXM4-40GB", 40960, "0000:06:00.0",
        "GPU-00000000-0000-0000-0000-000000000000", "8.0", 31.5,
    ),
    "smi-qx-l40s.xml": (
        "595.91.07", "NVIDIA L40S", 46068, "0000:30:00.0", "GPU-00000000-0000-0000-0000-000000000000", "8.9", 31.5,
    ),
    "smi-qx-t4.xml": (
        "595.91.07", "Tesla T4", 15360, "0000:00:1e.0", "GPU-00000000-0000-0000-0000-000000000000", "7.5", 15.8,
    ),
    "smi-qx-telegraf-a100-sxm4-v12.xml": (
        "535.54.03", "NVIDIA A100-SXM4-80GB", 81920, "0000:01:00.0",
        "GPU-513536b6-7d19-9063-b049-1e69664bb298", "8.0", 31.5,
    ),
    "smi-qx-telegraf-a10g.xml": (
        "515.105.01", "NVIDIA A10G", 23028, "0000:00:1e.0", "GPU-9a9a6c50-2a47-2f51-a902-b82c3b127e94", "8.6", 31.5,
    ),
    "smi-qx-telegraf-gtx-1070-ti.xml": (
        None, "GeForce GTX 1070 Ti", 4096, "0000:01:00.0", "GPU-f9ba66fc-a7f5-94c5-da19-019ef2f9c665", "6.1", None,
    ),
    "smi-qx-telegraf-gtx-1660-ti.xml": (
        "418.43", "Graphics Device", 5912, "0000:43:00.0", "GPU-304a277d-3545-63b8-3a36-dfde3c992989", "7.5", 15.8,
    ),
    "smi-qx-telegraf-quadro-p400.xml": (
        "418.43", "Quadro P400", 1998, "0000:43:00.0", "GPU-8f750be4-dfbc-23b9-b33f-da729a536494", "6.1", 15.8,
    ),
    "smi-qx-telegraf-rtx-3080-v13.xml": (
        "595.58.03", "NVIDIA GeForce RTX 3080", 10240, "0000:0c:00.0",
        "GPU-19d6d965-2acc-f646-00f8-4c76979aabb4", "8.6", 31.5,
    ),
    "smi-qx-telegraf-rtx-4000-sff-ada-v13.xml": (
        "595.84", "NVIDIA RTX 4000 SFF Ada Generation", 20475, "0000:06:00.0",
        "GPU-37037c3f-65c8-ec4d-24a9-420204ad8026", "8.9", 31.5,
    ),
    "smi-qx-telegraf-tesla-t4.xml": (
        "515.105.01", "Tesla T4", 15360, "0000:00:1e.0", "GPU-d37e67a5-91dd-3774-a5cb-99096249601a", "7.5", 15.8,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SMI)
def test_one_gpu_of_smi(name: str) -> None:
    version, product, mib, address, uuid, capability, gbs = SMI[name]
    found = profile(name)
    (gpu,) = found.accelerators
    assert (gpu.hardware_backend, gpu.vendor, gpu.index) == ("cuda", "NVIDIA", 0)
    assert (gpu.model, gpu.memory_bytes, gpu.pci_address, gpu.uuid) == (product, mib * MIB, address, uuid)
    assert gpu.compute_capability == capability
    assert gpu.numa_node is None  # this output does not say
    assert found.sources == (f"nvidia-smi {version}" if version else "nvidia-smi",)
    if gbs is None:  # only the present generation is recorded, which power saving lowers
        assert found.links == ()
    else:
        assert nominal(found, "host", "cuda:0") == nominal(found, "cuda:0", "host") == gbs
    (tier,) = found.memory_tiers
    assert (tier.tier, tier.name, tier.capacity_bytes) == ("hbm", "cuda:0", mib * MIB)


def test_eight_h100_of_smi() -> None:
    found = profile("smi-qx-h100.xml")
    assert found.sources == ("nvidia-smi 580.105.08",)
    assert [gpu.index for gpu in found.accelerators] == list(range(8))
    assert {gpu.model for gpu in found.accelerators} == {"NVIDIA H100 80GB HBM3"}
    assert {gpu.memory_bytes for gpu in found.accelerators} == {81559 * MIB}
    assert [gpu.pci_address for gpu in found.accelerators] == [
        "0000:53:00.0", "0000:64:00.0", "0000:75:00.0", "0000:86:00.0",
        "0000:97:00.0", "0000:a8:00.0", "0000:b9:00.0", "0000:ca:00.0",
    ]  # fmt: skip
    assert [gpu.uuid for gpu in found.accelerators] == [
        f"GPU-0000000{i}-0000-0000-0000-00000000000{i}" for i in range(8)
    ]
    assert {gpu.compute_capability for gpu in found.accelerators} == {"9.0"}
    assert all(nominal(found, "host", f"cuda:{i}") == 63.0 for i in range(8))
    assert not found.notes


def test_four_gb200_of_smi() -> None:
    found = profile("smi-qx-gb200.xml")
    assert found.sources == ("nvidia-smi 580.173.02",)
    assert [(gpu.model, gpu.memory_bytes, gpu.pci_address) for gpu in found.accelerators] == [
        ("NVIDIA GB200", 189471 * MIB, "0000:29:00.0"),
        ("NVIDIA GB200", 189471 * MIB, "0000:3f:00.0"),
        ("NVIDIA GB200", 189471 * MIB, "0000:9c:00.0"),
        ("NVIDIA GB200", 189471 * MIB, "0000:b2:00.0"),
    ]
    assert {gpu.compute_capability for gpu in found.accelerators} == {"10.0"}
    assert nominal(found, "host", "cuda:0") == 63.0  # generation 5, the lesser of device and slot


def test_mig_devices_of_smi() -> None:
    found = profile("smi-qx-telegraf-a100-sxm4-v12.xml")
    (gpu,) = found.accelerators
    assert [(part.index, part.memory_bytes, part.compute_units) for part in gpu.partitions] == [
        (0, 19968 * MIB, 14), (1, 19968 * MIB, 14), (2, 19968 * MIB, 14), (3, 19968 * MIB, 14),
    ]  # fmt: skip
    (note,) = found.notes
    assert "4 attached GPUs but lists 1" in note


def test_figures_of_the_chip_table_have_source_and_confidence() -> None:
    (gpu,) = profile("smi-qx-l40s.xml").accelerators
    assert {name: figure.value for name, figure in gpu.peak_tflops.items()} == {"fp16": 362, "bf16": 362}
    assert gpu.memory_bandwidth_gbs is not None
    assert gpu.memory_bandwidth_gbs.value == 864
    assert "L40S datasheet 2023" in gpu.memory_bandwidth_gbs.source
    assert gpu.memory_bandwidth_gbs.confidence == "high"
    assert "fp8_e4m3" in gpu.supported_precisions


def test_a_product_that_is_not_in_the_chip_table_has_no_figures() -> None:
    (gpu,) = profile("smi-qx-telegraf-a10g.xml").accelerators  # not the A10
    assert gpu.peak_tflops == {}
    assert gpu.memory_bandwidth_gbs is None
    assert (gpu.compute_capability, "fp8_e4m3" in gpu.supported_precisions) == ("8.6", False)


# --- nvidia-smi topo -m


def gpus(found: HardwareProfile) -> list[tuple[int, int | None, str | None]]:
    assert {gpu.model for gpu in found.accelerators} == {"unknown"}
    assert {gpu.pci_address for gpu in found.accelerators} == {None}
    return [(gpu.index, gpu.numa_node, gpu.cpu_affinity) for gpu in found.accelerators]


@pytest.mark.parametrize(
    ("name", "code", "cpus", "node"),
    [
        ("topo-m-2gpu-nv2.txt", "NV2", "0-23", None),
        ("topo-m-2gpu-phb.txt", "PHB", "0-11", None),
        ("topo-m-h100pcie-x2-nv12-bridge.txt", "NV12", "32-63,96-127", 1),
        ("topo-m-litgpt-nvidia-smi-nvlink-dual-gpu-no-numa.txt", "NV1", "0-15", 0),
    ],
)
def test_two_gpus_of_topo(name: str, code: str, cpus: str, node: int | None) -> None:
    found = profile(name)
    assert gpus(found) == [(0, node, cpus), (1, node, cpus)]
    assert codes(found) == {("cuda:0", "cuda:1"): code, ("cuda:1", "cuda:0"): code}
    assert {link.kind for link in found.links} == {"nvlink" if code.startswith("NV") else "pcie"}


@pytest.mark.parametrize(
    ("name", "code", "first", "second"),
    [
        ("topo-m-a100x8-nv12.txt", "NV12", "0-23", "24-47"),
        ("topo-m-h100x8-nv18.txt", "NV18", "0-51", "52-103"),
        ("topo-m-h100x8-nv18-ht.txt", "NV18", "0-51,104-155", "52-103,156-207"),
    ],
)
def test_eight_gpus_of_topo(name: str, code: str, first: str, second: str) -> None:
    found = profile(name)
    assert gpus(found) == [(i, 0, first) for i in range(4)] + [(i, 1, second) for i in range(4, 8)]
    assert codes(found) == {(f"cuda:{a}", f"cuda:{b}"): code for a in range(8) for b in range(8) if a != b}
    assert {link.kind for link in found.links} == {"nvlink"}
    assert {link.nominal_gbs for link in found.links} == {
        None
    }  # the generation of NVLink is not in this output


def test_four_gpus_without_nvlink_of_topo() -> None:
    found = profile("topo-m-litgpt-nvlink-not-connected.txt")
    assert gpus(found) == [(i, 0, "0-47") for i in range(4)]
    assert codes(found) == {(f"cuda:{a}", f"cuda:{b}"): "PHB" for a in range(4) for b in range(4) if a != b}


def test_uneven_numa_nodes_of_topo() -> None:
    found = profile("topo-m-x8-pcie-only-2numa-uneven.txt")
    assert gpus(found) == [(i, 0, "0-15,32-47") for i in range(6)] + [(i, 1, "16-31,48-63") for i in (6, 7)]
    near = {(1, 2), (2, 1), (3, 4), (4, 3), (6, 7), (7, 6)}
    for (source, target), code in codes(found).items():
        a, b = int(source[5:]), int(target[5:])
        expected = "PHB" if (a, b) in near else "SYS" if (a < 6) != (b < 6) else "NODE"
        assert code == expected, (a, b)
    assert len(codes(found)) == 56


def test_network_cards_of_topo_by_number() -> None:
    found = profile("topo-m-a800x8-nv8-nic8.txt")
    assert gpus(found) == [(i, 0, "0-61") for i in range(4)] + [(i, 1, "62-123") for i in range(4, 8)]
    table = codes(found)
    assert len(table) == 16 * 15
    assert {table[f"cuda:{a}", f"cuda:{b}"] for a in range(8) for b in range(8) if a != b} == {"NV8"}
    first = [table["cuda:0", f"nic:{n}"] for n in range(8)]
    assert first == ["PIX", "PIX", "NODE", "NODE", "SYS", "SYS", "SYS", "SYS"]
    last = [table["cuda:7", f"nic:{n}"] for n in range(8)]
    assert last == ["SYS", "SYS", "SYS", "SYS", "NODE", "NODE", "PIX", "PIX"]
    assert table["nic:4", "cuda:5"] == "PIX"
    assert table["nic:0", "nic:1"] == "PIX"
    assert table["nic:7", "nic:5"] == "NODE"


def test_network_cards_of_topo_with_a_legend() -> None:
    found = profile("topo-m-litgpt-nvlink-all-gpu-connected-but-other-connected.txt")
    assert found.notes == (", ".join(f"nic:{n} is mlx5_{n}" for n in range(10)),)
    cpus = ["0-63,128-191"] * 4 + ["64-127,192-254"] * 4
    assert gpus(found) == [(i, i // 4, cpus[i]) for i in range(8)]
    table = codes(found)
    assert len(table) == 18 * 17
    assert {table[f"cuda:{a}", f"cuda:{b}"] for a in range(8) for b in range(8) if a != b} == {"NV12"}
    assert [n for n in range(10) if table["cuda:0", f"nic:{n}"] == "PXB"] == [2, 3]
    assert [n for n in range(10) if table["cuda:2", f"nic:{n}"] == "PXB"] == [0, 1]
    assert [n for n in range(10) if table["cuda:4", f"nic:{n}"] == "PXB"] == [8, 9]
    assert [n for n in range(10) if table["cuda:6", f"nic:{n}"] == "PXB"] == [4, 5]
    assert table["nic:0", "nic:1"] == "PIX"
    assert table["nic:9", "nic:8"] == "PXB"
    assert table["nic:6", "nic:7"] == "PIX"


# --- nvidia-smi nvlink

FIRST, SECOND = "GPU-6968dfc2-d444-d92c-c36b-6abe53445cb9", "GPU-9b1446e2-8a89-4cf6-b68c-a98d99e958d3"


def test_speeds_of_nvlink() -> None:
    found = profile("nvlink-s-h100pcie-x2-bridge.txt")
    assert [(g.index, g.model, g.uuid) for g in found.accelerators] == [
        (0, "NVIDIA H100 PCIe", FIRST), (1, "NVIDIA H100 PCIe", SECOND),
    ]  # fmt: skip
    assert len(found.links) == 4
    for gpu in ("cuda:0", "cuda:1"):  # 12 links are active, 6 are not
        assert nominal(found, gpu, "nvlink") == nominal(found, "nvlink", gpu) == 318.744
        assert codes(found)[gpu, "nvlink"] == "NV12"


def test_far_ends_of_nvlink() -> None:
    found = profile("nvlink-R-h100pcie-x2-bridge.txt")
    assert [(g.index, g.uuid, g.pci_address) for g in found.accelerators] == [
        (0, FIRST, "0000:c2:00.0"), (1, SECOND, "0000:d5:00.0"),
    ]  # fmt: skip
    assert codes(found) == {("cuda:0", "cuda:1"): "NV12", ("cuda:1", "cuda:0"): "NV12"}


# --- NCCL


def places(found: HardwareProfile) -> list[tuple[str | None, int | None, str | None]]:
    assert [gpu.index for gpu in found.accelerators] == list(range(len(found.accelerators)))
    return [(gpu.pci_address, gpu.numa_node, gpu.cpu_affinity) for gpu in found.accelerators]


@pytest.mark.parametrize("name", ["nccl-aws-p4d-24xl-topo.xml", "nccl-aws-p4de-24xl-topo.xml"])
def test_p4_of_nccl(name: str) -> None:
    found = profile(name)
    first, second = "0-23,48-71", "24-47,72-95"
    assert places(found) == [
        ("0000:10:1c.0", 0, first), ("0000:10:1d.0", 0, first), ("0000:20:1c.0", 0, first), ("0000:20:1d.0", 0, first),
        ("0000:90:1c.0", 1, second), ("0000:90:1d.0", 1, second), ("0000:a0:1c.0", 1, second),
        ("0000:a0:1d.0", 1, second),
    ]  # fmt: skip
    assert {gpu.compute_capability for gpu in found.accelerators} == {
        "8.0"
    }  # devices 10de:20b0 and 10de:20b2
    assert nominal(found, "cuda:0", "host") == 15.8  # 8 GT/s on 16 lanes
    table = codes(found)
    assert table["cuda:0", "cuda:1"] == table["cuda:7", "cuda:6"] == "PIX"  # one switch
    assert table["cuda:0", "cuda:2"] == table["cuda:5", "cuda:6"] == "PHB"  # one processor
    assert table["cuda:3", "cuda:4"] == "SYS"


def test_ncv4_of_nccl() -> None:
    found = profile("nccl-azure-ncv4-topo.xml")
    assert places(found) == [
        ("0001:00:00.0", 0, "0-23"), ("0002:00:00.0", 1, "24-47"),
        ("0003:00:00.0", 2, "48-71"), ("0004:00:00.0", 3, "72-95"),
    ]  # fmt: skip
    assert {gpu.compute_capability for gpu in found.accelerators} == {"8.0"}
    # The file joins each GPU to itself by 12 NVLinks, which cannot be; PCIe speed and width are empty.
    assert {link.kind for link in found.links} == {"pcie"}
    assert set(codes(found).values()) == {"SYS"}
    assert sum("to itself" in note for note in found.notes) == 4


def test_graph_of_nccl() -> None:
    found = profile("nccl-azure-ncv4-graph.xml")
    assert places(found) == [(None, None, None)] * 4
    assert found.links == ()


def test_ndv2_of_nccl() -> None:
    found = profile("nccl-azure-ndv2-topo.xml")
    assert places(found) == [(f"000{i}:00:00.0", 0, "0-19") for i in range(1, 5)] + [
        (f"000{i}:00:00.0", 1, "20-39") for i in range(5, 9)
    ]
    assert nominal(found, "cuda:0", "host") == 31.5
    assert codes(found)["cuda:0", "cuda:3"] == "PHB"
    assert codes(found)["cuda:0", "cuda:4"] == "SYS"


def test_ndv4_of_nccl() -> None:
    found = profile("nccl-azure-ndv4-topo.xml")
    assert places(found) == [
        ("0001:00:00.0", 1, "24-47"), ("0002:00:00.0", 1, "24-47"), ("0003:00:00.0", 0, "0-23"),
        ("0004:00:00.0", 0, "0-23"), ("000b:00:00.0", 3, "72-95"), ("000c:00:00.0", 3, "72-95"),
        ("000d:00:00.0", 2, "48-71"), ("000e:00:00.0", 2, "48-71"),
    ]  # fmt: skip
    table = codes(found)
    assert [table[f"cuda:{a}", f"cuda:{a + 1}"] for a in (0, 2, 4, 6)] == ["PIX"] * 4
    assert table["cuda:1", "cuda:2"] == "SYS"


def test_ndv5_of_nccl() -> None:
    found = profile("nccl-azure-ndv5-topo.xml")
    addresses = ["0001", "0002", "0003", "0008", "0009", "000a", "000b", "000c"]
    assert places(found) == [
        (f"{domain}:00:00.0", i // 4, "0-47" if i < 4 else "48-95") for i, domain in enumerate(addresses)
    ]
    assert nominal(found, "cuda:0", "host") == 63.0
    assert codes(found)["cuda:0", "cuda:1"] == "PHB"  # each has a switch of its own
    assert codes(found)["cuda:0", "cuda:7"] == "SYS"


def test_devices_without_a_class_are_not_taken_for_gpus() -> None:
    found = profile("nccl-aws-g5.48xl-topo.xml")
    assert found.accelerators == ()
    (note,) = found.notes
    assert "0000:00:16.0" in note
    assert "0000:00:15.0" in note


def test_every_recording_has_a_test() -> None:
    source = Path(__file__).read_text("utf-8")
    files = [path.name for path in DATA.iterdir() if path.suffix in (".xml", ".txt")]
    assert len(files) == 34
    assert not [name for name in files if f'"{name}"' not in source]


# --- what is no recording, or a damaged one


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the recording is empty"),
        (
            "| NVIDIA-SMI 535.54.03  Driver Version: 535.54.03 |\n",
            "does not start a known output of nvidia-smi",
        ),
        ("hello\n", "does not start a known output of nvidia-smi"),
    ],
)
def test_what_is_no_recording_is_refused_by_name(text: str, expected: str) -> None:
    with pytest.raises(ToolOutputError, match=expected) as caught:
        read(text, name="x.txt")
    assert str(caught.value).startswith("x.txt: ")
    assert "nvidia-smi -q -x" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "No devices were found\n",
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n",
        "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 550.90\n",
        "bash: nvidia-smi: command not found\n",
    ],
)
def test_a_failed_nvidia_smi_is_an_error(text: str) -> None:
    with pytest.raises(ToolOutputError, match=r"^x\.txt: .*nvidia-smi failed"):
        read(text, name="x.txt")


def damaged(name: str, old: str, new: str) -> str:
    text = (DATA / name).read_text("utf-8")
    assert old in text
    with pytest.raises(ToolOutputError) as caught:
        read(text.replace(old, new, 1), name=name)
    return str(caught.value)


def test_an_error_names_version_and_line() -> None:
    message = damaged("smi-qx-a100.xml", "<total>40960 MiB</total>", "<total>40960 MB</total>")
    line = (DATA / "smi-qx-a100.xml").read_text("utf-8").split("40960 MiB")[0].count("\n") + 1
    assert message == (
        f"smi-qx-a100.xml: nvidia-smi 570.148.08, line {line}: expected total as \\d+ MiB, or N/A, got "
        "'<total>40960 MB</total>'; record it again unedited, or report it with this tool's version"
    )


@pytest.mark.parametrize(
    ("name", "old", "new", "expected"),
    [
        ("smi-qx-a100.xml", "</nvidia_smi_log>", "", "well-formed XML to the end"),
        ("smi-qx-a100.xml", "<uuid>GPU", "<uuid>G</uuid><uuid>GPU", "one element uuid here"),
        ("smi-qx-a100.xml", 'gpu id="00000000:06:00.0"', 'gpu id="00000000:07:00.0"', "in the enclosing gpu element"),
        ("smi-qx-a100.xml", 'gpu id="00000000:06:00.0"', 'gpu id="zz"', "a PCI address"),
        ("smi-qx-telegraf-a100-sxm4-v12.xml", "<index>1</index>", "<index>0</index>", "an index each"),
        ("smi-qx-telegraf-a100-sxm4-v12.xml", "<index>1</index>", "", "an index in the MIG device"),
        ("topo-m-2gpu-nv2.txt", "NV2", "XYZ", "a path code"),
        ("topo-m-2gpu-nv2.txt", "NV2", "NV0", "a path code"),
        ("topo-m-a100x8-nv12.txt", "GPU3  NV12", "GPU3  ", "X where GPU3 meets itself"),
        ("nvlink-s-h100pcie-x2-bridge.txt", "Link 3:", "Link 4:", "link 3 of GPU 0"),
        ("nvlink-s-h100pcie-x2-bridge.txt", "26.562 GB/s", "fast", "a speed after"),
        ("nvlink-s-h100pcie-x2-bridge.txt", "         Link 17: <inactive>\n", "", "17 links, like the other"),
        ("nvlink-R-h100pcie-x2-bridge.txt", "00000000:D5:00.0", "D5", "a PCI address of the remote device"),
        ("nvlink-R-h100pcie-x2-bridge.txt", "GPU 0: NVIDIA H100 PCIe", "NVIDIA H100 PCIe", "a line GPU 0: … first"),
        ("nccl-aws-p4d-24xl-topo.xml", 'busid="0000:10:1c.0"', 'busid="1c"', "a PCI address in busid"),
        ("nccl-aws-p4d-24xl-topo.xml", 'busid="0000:10:1c.0"', 'busid="0000:10:1d.0"', "0000:10:1d.0 once"),
        ("nccl-aws-p4d-24xl-topo.xml", 'numaid="0"', 'numaid="a"', "a NUMA node in numaid"),
        ("nccl-aws-p4d-24xl-topo.xml", "000000ff,ffff0000", "000000fg,ffff0000", "a mask of CPUs"),
        ("nccl-aws-p4d-24xl-topo.xml", 'vendor="0x10de"', 'vendor="nvidia"', "a PCI id in vendor"),
        ("nccl-azure-ncv4-topo.xml", 'gpu dev="1"', 'gpu dev="0"', "a unique device number"),
        ("nccl-azure-ncv4-topo.xml", 'count="12"', 'count="0"', "an NVLink with a target and a count"),
        ("nccl-azure-ncv4-graph.xml", 'gpu dev="1"', 'gpu dev="x"', "a device number in dev"),
    ],
)  # fmt: skip
def test_damage_is_refused(name: str, old: str, new: str, expected: str) -> None:
    assert expected in damaged(name, old, new)


def test_entities_are_refused() -> None:
    bomb = '<?xml version="1.0"?>\n<!DOCTYPE a [<!ENTITY b "c">]>\n<nvidia_smi_log>&b;</nvidia_smi_log>\n'
    with pytest.raises(ToolOutputError, match="entities"):
        read(bomb, name="x.xml")

"""Running tools and reading the PCI bus, with real processes and a made-up sysfs."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from sage_infer.errors import ToolOutputError
from sage_infer.schemas import AcceleratorDescriptor, HardwareProfile
from sage_infer_hal.detection import (
    PciDevice,
    ToolDetector,
    VendorTool,
    answers,
    build_profile,
    find_tools,
    host_links,
    pci_devices,
    run_tool,
)
from sage_infer_testing.stand_in import add_pci_device

MakeTool = Callable[[str, str], str]


@pytest.fixture
def make_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeTool:
    """Put a Python script onto the search path, ahead of everything else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def make(name: str, body: str) -> str:
        path = folder / name
        path.write_text(f"#!{sys.executable}\nimport os, sys, time\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


def test_a_tool_answers_in_the_c_locale_and_reads_no_input(make_tool: MakeTool) -> None:
    tool = make_tool("vendor-smi", "print(os.environ['LC_ALL'], sys.argv[1:], repr(sys.stdin.read()))")
    assert run_tool(tool, "info", "-m") == "C ['info', '-m'] ''\n"


def test_a_failing_tool_is_named_with_what_it_said_last(make_tool: MakeTool) -> None:
    tool = make_tool("vendor-smi", "print('module initialize failed. ret is -8005'); sys.exit(3)")
    with pytest.raises(ToolOutputError, match=r"^vendor-smi info failed with exit code 3: module initialize"):
        run_tool(tool, "info")
    silent = make_tool("silent-smi", "sys.exit(1)")
    with pytest.raises(ToolOutputError, match="exit code 1: it printed nothing"):
        run_tool(silent)


def test_a_tool_that_is_no_program_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "vendor-smi"
    broken.write_bytes(b"\x7fELF")
    broken.chmod(0o755)
    with pytest.raises(ToolOutputError, match="vendor-smi cannot be run: Exec format error"):
        run_tool(str(broken))


def test_a_hanging_tool_ends_with_its_children(make_tool: MakeTool, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    body = f"""
child = os.fork()
if child == 0:
    time.sleep(3600)
open({str(pid_file)!r}, "w").write(str(child))
time.sleep(3600)
"""
    tool = make_tool("vendor-smi", body)
    for timeout_s in (1, 20, 300):  # until the machine was quick enough for the tool to begin
        message = f"vendor-smi did not answer within {timeout_s} s; the driver may hang"
        with pytest.raises(ToolOutputError, match=message):
            run_tool(tool, timeout_s=timeout_s)
        if pid_file.exists() and pid_file.read_text():
            break
    child = int(pid_file.read_text())
    while is_running(child):  # it has been killed; dying takes the kernel a moment, and not the child's hour
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether the process still does anything; an orphan may stay a zombie until init looks at it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def test_a_tool_may_write_its_answer_into_its_working_directory(
    make_tool: MakeTool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = make_tool("vendor-smi", "open('answer.json', 'w').write(os.getcwd())")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = run_tool(tool, "-j", output_file="answer.json")
    assert not os.listdir()
    assert not os.path.exists(folder)
    with pytest.raises(ToolOutputError, match=r"vendor-smi -j did not write other.json: No such file"):
        run_tool(tool, "-j", output_file="other.json")


def test_answers_of_calls_that_run_at_once_keep_their_order(make_tool: MakeTool) -> None:
    tool = make_tool("vendor-smi", "sys.exit(2) if sys.argv[1] == 'bad' else print(sys.argv[1])")
    first, second, third = answers([[tool, "a"], [tool, "bad"], [tool, "c"]])
    assert (first, third) == ("a\n", "c\n")
    assert isinstance(second, ToolOutputError)


def test_tools_are_looked_for_on_the_path_and_where_installers_put_them(
    make_tool: MakeTool, tmp_path: Path
) -> None:
    on_path = make_tool("b-smi", "")
    folder = tmp_path / "opt"
    folder.mkdir()
    for name in ("a-smi", "b-smi"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    assert find_tools("a-smi", "b-smi", "c-smi", folders=[str(folder)]) == [str(folder / "a-smi"), on_path]


# --- PCI


def add_device(sysfs: Path, address: str, **files: str) -> None:
    folder = sysfs / "bus/pci/devices" / address
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(content + "\n")


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    root = tmp_path / "sys"
    npu = {"vendor": "0x19e5", "device": "0xd802", "class": "0x120000"}
    speed = {"max_link_speed": "16.0 GT/s PCIe", "max_link_width": "16"}
    add_device(root, "0000:C1:00.0", numa_node="6", **npu, **speed)
    add_device(root, "0000:c2:00.0", numa_node="-1", max_link_speed="Unknown", max_link_width="0", **npu)
    add_device(root, "0000:05:00.0", vendor="0x19e5", device="0x1711", **{"class": "0x030000"})
    add_device(root, "0000:06:00.0", vendor="0x8086", device="0x1234", **{"class": "0x020000"})
    add_device(root, "0000:07:00.0", vendor="nonsense")
    return root


def test_pci_devices_of_a_vendor(sysfs: Path) -> None:
    bmc, first, second = pci_devices({0x19E5}, sysfs)
    assert bmc.class_code == 0x030000
    assert (first.address, first.device, first.numa_node, first.link_gbs) == ("0000:c1:00.0", 0xD802, 6, 31.5)
    assert (second.numa_node, second.link_gts, second.link_width, second.link_gbs) == (None, None, None, None)
    assert pci_devices({0x10DE}, sysfs) == []
    assert pci_devices({0x19E5}, sysfs / "nowhere") == []


@pytest.mark.parametrize(
    ("gts", "width", "gbs"), [(5.0, 8, 4.0), (8.0, 16, 15.8), (32.0, 16, 63.0), (64.0, 16, 128.0)]
)
def test_payload_of_a_link(gts: float, width: int, gbs: float) -> None:
    device = PciDevice(
        address="0000:01:00.0", vendor=1, device=1, class_code=0, link_gts=gts, link_width=width
    )
    assert device.link_gbs == gbs


def accelerator(index: int, address: str | None) -> AcceleratorDescriptor:
    return AcceleratorDescriptor(
        hardware_backend="acme",
        vendor="Acme",
        model="A1",
        index=index,
        pci_address=address,
        memory_bytes=2**30,
    )


def test_host_links_go_both_ways_and_name_their_source(sysfs: Path) -> None:
    devices = pci_devices({0x19E5}, sysfs)
    there, back = host_links([accelerator(0, "0000:c1:00.0"), accelerator(1, None)], devices)
    assert (there.source, there.target, back.source, back.target) == ("host", "acme:0", "acme:0", "host")
    assert there.nominal_gbs is not None
    assert there.nominal_gbs.source == "sysfs 0000:c1:00.0: 16 GT/s x16"


# --- the detector that is made of both


def acme(ask: Callable[[Sequence[str], Sequence[PciDevice]], HardwareProfile], sysfs: Path) -> ToolDetector:
    return ToolDetector(
        VendorTool(
            vendor="Acme",
            names=("acme-smi",),
            pci_vendors={0x19E5},
            is_accelerator=lambda device: device.class_code == 0x120000,
            ask=ask,
            install="install the Acme driver",
        ),
        sysfs,
    )


def one_device(tools: Sequence[str], devices: Sequence[PciDevice]) -> HardwareProfile:
    return build_profile([accelerator(0, "0000:c1:00.0")], sources=["acme-smi 1.0"])


def fails(tools: Sequence[str], devices: Sequence[PciDevice]) -> HardwareProfile:
    raise ToolOutputError("acme-smi info failed with exit code 1: no driver")


def test_nothing_on_the_bus_and_no_tool_is_an_empty_profile(tmp_path: Path) -> None:
    assert acme(one_device, tmp_path).detect() == HardwareProfile()


def test_devices_without_their_tool_are_noted_and_not_invented(sysfs: Path) -> None:
    profile = acme(one_device, sysfs).detect()
    assert profile.accelerators == ()
    assert profile.notes == (
        "Acme devices are on the PCI bus, but acme-smi is missing: 0000:c1:00.0 (19e5:d802), "
        "0000:c2:00.0 (19e5:d802); install the Acme driver",
    )


def test_the_bus_adds_numa_nodes_and_links_and_says_what_the_tool_hides(
    make_tool: MakeTool, sysfs: Path
) -> None:
    make_tool("acme-smi", "")
    profile = acme(one_device, sysfs).detect()
    assert [a.numa_node for a in profile.accelerators] == [6]
    assert [(link.source, link.target) for link in profile.links] == [("host", "acme:0"), ("acme:0", "host")]
    assert profile.memory_tiers[0].capacity_bytes == 2**30
    assert profile.notes == ("on the PCI bus, but not shown by the tool: 0000:c2:00.0",)


def test_a_failing_tool_matters_only_where_there_are_devices(
    make_tool: MakeTool, sysfs: Path, tmp_path: Path
) -> None:
    make_tool("acme-smi", "")
    with pytest.raises(ToolOutputError, match="no driver"):
        acme(fails, sysfs).detect()
    profile = acme(fails, tmp_path).detect()
    assert profile.notes == (
        "no Acme device is on the PCI bus, and acme-smi info failed with exit code 1: no driver",
    )


def test_a_device_listed_twice_is_an_error() -> None:
    with pytest.raises(ToolOutputError, match=r"acme-smi 1\.0 lists acme:0 more than once"):
        build_profile([accelerator(0, None), accelerator(0, None)], sources=["acme-smi 1.0"])


def test_a_device_is_on_the_bus(tmp_path: Path) -> None:
    add_pci_device(tmp_path, "0000:01:00.0", vendor=0x1D94, device=0x6320, numa_node=1)
    (device,) = pci_devices({0x1D94}, tmp_path)
    assert (device.device, device.class_code, device.numa_node) == (0x6320, 0x120000, 1)


def test_discovery_and_other_commands_import_the_plugin_module_only() -> None:
    code = "import sys, sage_infer.cli.main, sage_infer.backends as b; b.list_backends(); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    ours = {name for name in loaded if name.partition(".")[0] == "sage_infer_hal"}
    assert ours == {"sage_infer_hal", "sage_infer_hal.plugin"}

"""NCCL's XML: the PCI tree of a machine (``NCCL_TOPO_FILE``, ``NCCL_TOPO_DUMP_FILE``), and its search graphs.

The format is that of ``src/graph/xml.h`` and ``topo.cc`` of NCCL: ``cpu`` elements hold ``pci`` elements, in which
a class beginning with 0x03 is a GPU, 0x0604 a bridge and 0x02 a network card. Codes of paths are NCCL's own.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from attrs import frozen
from sage_infer.schemas import UNKNOWN_MODEL, AcceleratorDescriptor, Figure, HardwareProfile, LinkProfile
from sage_infer_hal.detection import UNCOUNTED, ToolText, bus_address
from sage_infer_hal.detection.profiles import build_profile

from sage_infer_cuda.capability import nvlink_gbs
from sage_infer_cuda.chips import described
from sage_infer_cuda.cpu_masks import cpu_list
from sage_infer_cuda.pcie import pcie_links
from sage_infer_cuda.topology import PATHS
from sage_infer_cuda.xml_tree import Element, line_error, read_xml

__all__ = ["NO_NUMBERS", "read_nccl_graph", "read_nccl_topology"]

NO_NUMBERS = "the file has no device numbers; indices follow the PCI addresses, as nvidia-smi counts"
_NVIDIA, _ANY = 0x10DE, 0xFFFF
_SWITCH = "0x068000"  # the class that NCCL uses for NVSwitches


@frozen
class _Place:
    """A GPU and its position in the tree: the cpu element and the bridges above it, outermost first."""

    element: Element
    address: str
    cpu: Element
    bridges: tuple[Element, ...]
    device_id: int | None

    @property
    def gpu(self) -> Element | None:
        return self.element.at("gpu")


def read_nccl_topology(text: ToolText) -> HardwareProfile:
    """GPUs by PCI address, their NUMA nodes and CPUs, PCIe and NVLink.

    Raises:
        ToolOutputError: the XML is malformed or contains impossible values.
    """
    root = read_xml(text, "system")
    notes: list[str] = []
    places: list[_Place] = []
    for cpu in root.walk():
        if cpu.tag == "cpu":
            places += _places(text, cpu, cpu, (), notes)
    unclassed = [
        pci.attributes["busid"]
        for pci in root.walk()
        if pci.tag == "pci" and not pci.attributes.get("class") and not pci.children
    ]
    if unclassed:
        notes.append(f"no class, so possibly GPUs: {', '.join(unclassed)}")
    numbered = _numbered(text, places, notes)
    devices = [_device(text, index, place) for index, place in numbered.items()]
    links: list[LinkProfile] = []
    for index, place in numbered.items():
        links += _pcie(text, index, place)
    links += _paths(numbered)
    links += _nvlinks(text, numbered, devices, notes)
    return build_profile(
        devices,
        sources=[f"NCCL topology, format {text.version or 'unknown'}"],
        links=links,
        notes=[*notes, UNCOUNTED] if devices else notes,
    )


def read_nccl_graph(text: ToolText) -> HardwareProfile:
    """The GPUs in NCCL's search graph. The file describes neither the GPUs nor their links."""
    root = read_xml(text, "graphs")
    numbers: set[int] = set()
    for element in root.walk():
        if element.tag == "gpu":
            number = element.attributes.get("dev", "")
            if not number.isdecimal():
                raise line_error(text, element, "a device number in dev")
            numbers.add(int(number))
    return build_profile(
        [
            AcceleratorDescriptor(hardware_backend="cuda", vendor="NVIDIA", model=UNKNOWN_MODEL, index=number)
            for number in numbers
        ],
        sources=[f"NCCL graph, format {text.version or 'unknown'}"],
        notes=["an NCCL graph lists GPU numbers only; NCCL_TOPO_DUMP_FILE writes their links"],
    )


def _places(
    text: ToolText, cpu: Element, above: Element, bridges: tuple[Element, ...], notes: list[str]
) -> list[_Place]:
    found: list[_Place] = []
    for pci in above.all("pci"):
        address = bus_address(pci.attributes.get("busid", ""))
        if address is None:
            raise line_error(text, pci, "a PCI address in busid")
        kind = pci.attributes.get("class", "").lower()
        vendor = _hex(text, pci, "vendor")
        if kind.startswith("0x03") or pci.at("gpu") is not None:
            if vendor in (None, _NVIDIA, _ANY):
                device_id = _hex(text, pci, "device") if vendor == _NVIDIA else None
                found.append(_Place(pci, address, cpu, bridges, device_id))
            else:
                notes.append(f"{address} is a GPU of another vendor ({vendor:#06x}), left out")
        elif kind.startswith("0x0604") or pci.all("pci"):
            found += _places(text, cpu, pci, (*bridges, pci), notes)
    return found


def _numbered(text: ToolText, places: Sequence[_Place], notes: list[str]) -> Mapping[int, _Place]:
    """GPUs by index: NCCL's device number if the file has them, else in the order of addresses, as CUDA counts."""
    addresses = Counter(place.address for place in places)
    for place in places:
        if addresses[place.address] > 1:
            raise line_error(text, place.element, f"{place.address} once")
    given = [place.gpu.attributes.get("dev", "") if place.gpu is not None else "" for place in places]
    if places and all(number.isdecimal() for number in given):
        if len({int(number) for number in given}) != len(given):
            raise text.error(None, "a unique device number for each GPU")
        return dict(sorted((int(number), place) for number, place in zip(given, places, strict=True)))
    if places:
        notes.append(NO_NUMBERS)
    return dict(enumerate(sorted(places, key=lambda place: place.address)))


def _device(text: ToolText, index: int, place: _Place) -> AcceleratorDescriptor:
    node = place.cpu.attributes.get("numaid", "")
    if re.fullmatch(r"-?\d+", node) is None:
        raise line_error(text, place.cpu, "a NUMA node in numaid")
    sm = place.gpu.attributes.get("sm", "") if place.gpu is not None else ""
    device = AcceleratorDescriptor(
        hardware_backend="cuda",
        vendor="NVIDIA",
        model=UNKNOWN_MODEL,
        index=index,
        pci_address=place.address,
        numa_node=int(node) if int(node) >= 0 else None,
        cpu_affinity=_cpus(text, place.cpu),
        compute_capability=f"{sm[:-1]}.{sm[-1]}" if re.fullmatch(r"\d{2,3}", sm) else None,
    )
    return described(device, device_id=place.device_id)


def _cpus(text: ToolText, cpu: Element) -> str | None:
    """The mask in ``affinity``, 32 CPUs a group and the highest group first, as a list."""
    mask = cpu.attributes.get("affinity", "")
    if not mask:
        return None
    if re.fullmatch(r"[0-9a-fA-F]{1,8}(,[0-9a-fA-F]{1,8})*", mask) is None:
        raise line_error(text, cpu, "a mask of CPUs in affinity")
    return cpu_list(int("".join(group.rjust(8, "0") for group in mask.split(",")), 16))


def _pcie(text: ToolText, index: int, place: _Place) -> list[LinkProfile]:
    speed = re.match(r"(\d+(?:\.\d+)?) GT/s", place.element.attributes.get("link_speed", ""))
    width = place.element.attributes.get("link_width", "")
    return pcie_links(
        f"cuda:{index}",
        generation=None,
        gts=float(speed[1]) if speed else None,
        width=int(width) if width.isdecimal() else None,
        source=f"NCCL topology {place.address}",
    )


def _paths(numbered: Mapping[int, _Place]) -> list[LinkProfile]:
    """The PCIe path between each two GPUs, by NCCL's code for it."""
    links = []
    for (one, a), (other, b) in itertools.permutations(numbered.items(), 2):
        common = [x for x, y in zip(a.bridges, b.bridges, strict=False) if x is y]
        if a.cpu is not b.cpu:
            code = "SYS"
        elif not common:
            code = "PHB"
        elif len(a.bridges) == len(b.bridges) == len(common):
            code = "PIX"
        else:
            code = "PXB"
        links.append(
            LinkProfile(source=f"cuda:{one}", target=f"cuda:{other}", vendor_code=code, **PATHS[code])
        )
    return links


def _nvlinks(
    text: ToolText, numbered: Mapping[int, _Place], devices: Sequence[AcceleratorDescriptor], notes: list[str]
) -> list[LinkProfile]:
    """NVLinks between GPUs, direct or through NVSwitches that both are joined to."""
    names = {place.address: index for index, place in numbered.items()}
    capabilities = {device.index: device.compute_capability for device in devices}
    switched: dict[int, int] = {}
    direct: dict[tuple[int, str], int] = {}
    for index, place in numbered.items():
        for link in place.gpu.all("nvlink") if place.gpu is not None else []:
            target, count = bus_address(link.attributes.get("target", "")), link.attributes.get("count", "")
            if target is None or not count.isdecimal() or int(count) == 0:
                raise line_error(text, link, "an NVLink with a target and a count")
            if target == place.address:
                notes.append(f"the file has {count} NVLinks from {target} to itself, left out")
            elif link.attributes.get("tclass", "").lower() == _SWITCH:
                switched[index] = switched.get(index, 0) + int(count)
            else:
                end = f"cuda:{names[target]}" if target in names else f"pci:{target}"
                direct[index, end] = direct.get((index, end), 0) + int(count)
    for one, other in itertools.permutations(switched, 2):
        # Two GPUs exchange data through switches at the speed of the one with fewer links.
        direct[one, f"cuda:{other}"] = min(switched[one], switched[other])
    links = []
    for (index, end), number in direct.items():
        each = nvlink_gbs(capabilities[index])
        source = f"{number} NVLinks of {each:g} GB/s, by the data sheet" if each is not None else ""
        links.append(
            LinkProfile(
                source=f"cuda:{index}",
                target=end,
                kind="nvlink",
                vendor_code=f"NV{number}",
                nominal_gbs=Figure(value=each * number, source=source) if each is not None else None,
            )
        )
    return links


def _hex(text: ToolText, pci: Element, name: str) -> int | None:
    shown = pci.attributes.get(name, "")
    if not shown:
        return None
    if re.fullmatch(r"0x[0-9a-fA-F]{1,4}", shown) is None:
        raise line_error(text, pci, f"a PCI id in {name}")
    return int(shown, 16)

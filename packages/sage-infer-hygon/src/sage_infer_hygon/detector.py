"""The Hygon detector: ``hy-smi`` and PCI vendor 1d94."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sage_infer.errors import ToolOutputError
from sage_infer.schemas import HardwareProfile, LinkProfile
from sage_infer_hal.detection import PciDevice, ToolDetector, ToolText, VendorTool, answers, build_profile
from sage_infer_hal.detection.pci import SYSFS

from sage_infer_hygon.dcu import TOOL, VERSION, describe, endpoint, refuse_amd, sources
from sage_infer_hygon.hy_smi_json import Cards, json_facts
from sage_infer_hygon.hy_smi_text import card_facts
from sage_infer_hygon.hy_smi_topo import links

__all__ = ["HygonDetector"]

# Classes of the PCI bus: display controllers, co-processors, processing accelerators. The vendor's processors bring
# bridges, network and storage controllers under the same vendor id.
_CLASSES = {0x03, 0x0B, 0x12}
_CARDS = (
    ("--showproductname", "--json"),
    ("--showbus", "--json"),
    ("--showmeminfo", "vram", "--json"),
    ("--showuniqueid", "--json"),
)
_TOPOLOGY = ("--showtopo",)
_DRIVER = ("--showdriverversion",)


def _ask(tools: Sequence[str], devices: Sequence[PciDevice]) -> HardwareProfile:
    tool = tools[0]
    if Path(tool).name != TOOL and not devices:
        return HardwareProfile()  # rocm-smi is AMD's tool too, and no Hygon device is on the bus
    calls = (*_CARDS, _TOPOLOGY, _DRIVER)
    *outputs, topology, driver = answers([[tool, *call] for call in calls])
    cards: Cards = {}
    notes = []
    errors = []
    for call, output in zip(_CARDS, outputs, strict=True):
        try:
            if isinstance(output, ToolOutputError):
                raise output
            text = _text(output, call)
            refuse_amd(text, labels=False)
            for index, facts in json_facts(text).items():
                cards.setdefault(index, {}).update(facts)
        except ToolOutputError as error:
            errors.append(error)
            notes.append(f"{' '.join(call)} returned nothing: {error}")
    if not cards and errors:
        raise errors[0]
    joined: list[LinkProfile] = []
    try:
        if isinstance(topology, ToolOutputError):
            raise topology
        text = _text(topology, _TOPOLOGY)
        names = {endpoint(index) for index in cards}
        joined = [link for link in links(text)[1] if {link.source, link.target} <= names]
        for index, facts in card_facts(text).items():
            if index in cards:
                cards[index].update(facts)
    except ToolOutputError as error:
        if len(cards) > 1:
            notes.append(f"no links: {error}")
    known, more = describe(ToolText.of("", tool=TOOL), cards)
    version = driver if isinstance(driver, str) else ""
    return build_profile(
        known,
        links=joined,
        sources=sources(ToolText.of(version, tool=Path(tool).name, version=VERSION)),
        notes=[*notes, *more],
    )


def _text(output: str, call: Sequence[str]) -> ToolText:
    return ToolText.of(output, tool=" ".join([TOOL, *call]))


HY_SMI = VendorTool(
    vendor="Hygon",
    names=("hy-smi", "rocm-smi"),
    folders=("/opt/hyhal/bin", "/opt/dtk/bin"),
    pci_vendors={0x1D94},
    is_accelerator=lambda device: device.class_code >> 16 in _CLASSES,
    ask=_ask,
    install="install the Hygon driver (hyhal) and put /opt/hyhal/bin on PATH",
)


class HygonDetector(ToolDetector):
    """This machine as reported by ``hy-smi``; see ``ToolDetector``."""

    def __init__(self, sysfs: Path = SYSFS) -> None:
        super().__init__(HY_SMI, sysfs)

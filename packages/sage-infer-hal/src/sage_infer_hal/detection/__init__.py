"""Shared by detectors: run a vendor's tool, list PCI devices, read text. No vendor is named here."""

from sage_infer_hal.detection.chips import Chip, find_chip
from sage_infer_hal.detection.completeness import NO_PROCESSES, UNCOUNTED, gap_notes, need_rows
from sage_infer_hal.detection.detector import ToolDetector, VendorTool, count_on_bus
from sage_infer_hal.detection.matrix import LinkMatrix, read_matrix
from sage_infer_hal.detection.pci import PciDevice, host_links, pci_devices
from sage_infer_hal.detection.profiles import build_profile
from sage_infer_hal.detection.recordings import OutputKind, no_card, read_recording
from sage_infer_hal.detection.redaction import board_names, redacted
from sage_infer_hal.detection.text import Line, ToolText, bus_address, is_masked, mebibytes, table_cells
from sage_infer_hal.detection.tools import Answer, answers, find_tools, run_tool

__all__ = [
    "NO_PROCESSES", "UNCOUNTED", "Answer", "Chip", "Line", "LinkMatrix", "OutputKind", "PciDevice", "ToolDetector",
    "ToolText", "VendorTool", "answers", "board_names", "build_profile", "bus_address", "count_on_bus",
    "find_chip", "find_tools", "gap_notes", "host_links", "is_masked", "mebibytes", "need_rows", "no_card",
    "pci_devices", "read_matrix", "read_recording", "redacted", "run_tool", "table_cells",
]  # fmt: skip

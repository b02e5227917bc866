"""Detectors with one mistake each."""

from __future__ import annotations

import os
import socket
import sys
import types
from typing import Any

import attrs
from kit_reference.detector import ReferenceDetector
from sage_infer.schemas import AcceleratorDescriptor, LinkProfile, MemoryTierSpec
from sage_infer_testing import HardwareDetectorContract

from kit_broken.suites import COUNTER, suite


def detector(*tests: str) -> Any:
    return suite(HardwareDetectorContract, "make_detector", *tests, hardware=("toy",))


def device(index: int, backend: str = "toy") -> AcceleratorDescriptor:
    return AcceleratorDescriptor(hardware_backend=backend, vendor="Toy", model="T1", index=index)


@detector("test_detects_the_same_twice", "test_works_in_any_thread")
class ReportsTheMoment(ReferenceDetector):
    def memory(self) -> Any:
        return (MemoryTierSpec(tier="dram", name="numa:0", usable_bytes=next(COUNTER)),)


@detector("test_says_where_it_knows_it_from")
class NoSources(ReferenceDetector):
    def detect(self) -> Any:
        return attrs.evolve(super().detect(), sources=())


@detector("test_reports_its_own_hardware", "test_links_join_what_is_there")
class Disorderly(ReferenceDetector):
    def detect(self) -> Any:
        links = (LinkProfile(source="toy:0", target="toy:7", kind="pcie"),)
        return attrs.evolve(super().detect(), accelerators=(device(1), device(0)), links=links)


@detector("test_reports_its_own_hardware")
class ReportsOthers(ReferenceDetector):
    def detect(self) -> Any:
        return attrs.evolve(super().detect(), accelerators=(device(0, "other"),))


@detector("test_missing_tools_are_no_crash")
class NeedsItsTool(ReferenceDetector):
    def detect(self) -> Any:
        import shutil

        if shutil.which("sh") is None:
            raise FileNotFoundError("toy-smi")
        return super().detect()


@detector("test_leaves_no_trace")
class SetsVariables(ReferenceDetector):
    def detect(self) -> Any:
        os.environ["TOY_VISIBLE_DEVICES"] = str(next(COUNTER))
        return super().detect()


@detector("test_stays_on_this_machine")
class AsksTheCloud(ReferenceDetector):
    def detect(self) -> Any:
        try:
            with socket.socket() as connection:
                connection.connect(("127.0.0.1", 9))
        except OSError:
            pass
        return super().detect()


@detector("test_loads_no_engine")
class ImportsAnEngine(ReferenceDetector):
    def detect(self) -> Any:
        sys.modules.setdefault("cupy", types.ModuleType("cupy"))
        return super().detect()


@detector("test_profile_survives_json", "test_has_the_shape_of_its_protocol")
class AsyncDetector(ReferenceDetector):
    async def detect(self) -> Any:  # type: ignore[override]
        return super().detect()


@detector("test_measuring_only_adds_figures")
class MeasuresWhatItIs(ReferenceDetector):
    def measure(self, profile: Any, progress: Any) -> Any:
        return attrs.evolve(profile, memory_tiers=())


@detector("test_measuring_only_adds_figures")
class MeasuresAlone(ReferenceDetector):
    def measure(self) -> Any:
        return self.detect()

"""All detectors asked, each on its own; and recordings read by the vendor's reader."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sage_infer.errors import InvalidRequest, SchemaError, ToolOutputError
from sage_infer.schemas import HardwareProfile, MemoryTierSpec
from sage_infer.schemas.codec import to_json
from sage_infer_hal import detect_machine, find_detectors, machine, read_recordings

if TYPE_CHECKING:
    from conftest import Site

PLUGIN = """
from sage_infer import DetectorSpec, hookimpl
from sage_infer.errors import SageInferError
from sage_infer.schemas import AcceleratorDescriptor, HardwareProfile, MemoryTierSpec

@hookimpl
def sage_infer_detectors():
    return [DetectorSpec(name={name!r}, factory="{name}_module:Detector", hardware={{{hardware!r}}}, **{extra})]

def device(**facts):
    return AcceleratorDescriptor(hardware_backend={hardware!r}, vendor="V", model="M", index=0, **facts)

class Detector:
    {body}
"""


def add(site: Site, name: str, body: str, hardware: str = "npu", **extra: object) -> None:
    site.add(name, PLUGIN.format(name=name, body=body, hardware=hardware, extra=repr(extra)))


GOOD = "detect = lambda self: HardwareProfile(accelerators=[device()], sources=['good'])"


def test_profiles_are_merged_and_failures_are_notes(site: Site) -> None:
    add(site, "good", GOOD)
    add(site, "refusing", "def detect(self): raise SageInferError('the driver\\nhangs')", hardware="b")
    add(site, "buggy", "def detect(self): return 1 / 0", hardware="c")
    add(site, "wrong", "detect = lambda self: {}", hardware="d")
    add(site, "needy", GOOD, hardware="e", requires={"no-such-distribution": ">=2"})
    found = detect_machine(registry=site.registry())
    assert [a.hardware_backend for a in found.accelerators] == ["npu"]
    assert set(found.notes) == {
        "detector refusing (refusing-dist): the driver hangs",
        "detector buggy (buggy-dist): ZeroDivisionError: division by zero",
        "detector wrong (wrong-dist): detect() returned a dict, not a HardwareProfile",
        "detector needy (needy-dist): needs no-such-distribution>=2 (not installed): "
        "pip install 'no-such-distribution>=2'",
    }


def test_a_name_that_two_claim_is_a_note_and_no_plugin_goes_down(site: Site) -> None:
    add(site, "good", GOOD)
    site.add("again", PLUGIN.format(name="good", body=GOOD, hardware="npu", extra="{}"))
    found = detect_machine(registry=site.registry())
    assert found.accelerators == ()
    assert len(found.notes) == 2
    assert all("is claimed by" in note for note in found.notes)


def test_a_detector_that_hangs_does_not_keep_the_others(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "release_for_test", threading.Event(), raising=False)
    add(site, "good", GOOD)
    add(
        site,
        "hanging",
        "def detect(self):\n        import sage_infer_hal.machine as m\n        m.release_for_test.wait(300)",
        hardware="b",
    )
    for limit_s in (0.2, 5.0, 100.0):  # until the machine was quick enough for the other one
        monkeypatch.setattr(machine, "TIME_LIMIT_S", limit_s)
        found = detect_machine(registry=site.registry())
        if found.accelerators:
            break
    machine.release_for_test.set()  # type: ignore[attr-defined]
    assert len(found.accelerators) == 1
    assert found.notes == (
        f"detector hanging (hanging-dist): no answer within {limit_s:g} s; the driver may hang, see dmesg",
    )


def test_detectors_that_contradict_each_other_are_a_note(site: Site) -> None:
    add(site, "one", "detect = lambda self: HardwareProfile(accelerators=[device(uuid='a')])")
    add(site, "two", "detect = lambda self: HardwareProfile(accelerators=[device(uuid='b')])")
    found = detect_machine(registry=site.registry())
    assert [a.uuid for a in found.accelerators] == ["a"]
    assert "detector two (two-dist): npu:0 has the uuid a and b" in found.notes[0]


METER = """
    detect = lambda self: HardwareProfile(memory_tiers=[MemoryTierSpec(tier="hbm", name="npu:0")], sources=["s"])
    def measure(self, profile, progress):
        progress("measuring", 1.0)
        {body}
"""


def test_only_detectors_that_can_measure_do(site: Site) -> None:
    add(site, "good", GOOD)
    body = "import attrs; return attrs.evolve(profile, sources=('measured',))"
    add(site, "meter", METER.format(body=body).strip(), hardware="b")
    add(site, "failing", METER.format(body="raise OSError('disk full')").strip(), hardware="c")
    add(site, "wrong", METER.format(body="return None").strip(), hardware="d")
    stages: list[str] = []
    found = detect_machine(measure=lambda stage, share: stages.append(stage), registry=site.registry())
    assert "measured" in found.sources
    assert stages == ["measuring"] * 3
    assert set(found.notes) == {
        "detector failing (failing-dist): could not measure: disk full",
        "detector wrong (wrong-dist): measure() returned a NoneType, not a HardwareProfile",
    }
    assert "measured" not in detect_machine(registry=site.registry()).sources


# --- recordings

READER = """
from sage_infer.errors import ToolOutputError

def read(text, *, name):
    if "smi" not in text:
        raise ToolOutputError(f"{name}: line 1 is no output of npu-smi")
    return HardwareProfile(accelerators=[device(uuid=text.split()[1])], sources=[name]) if "list" not in text else []
"""


@pytest.fixture
def reader(site: Site) -> Site:
    add(site, "vendor", GOOD, read_recording="vendor_module:read")
    module = site.folder / "vendor_module.py"
    module.write_text(module.read_text() + READER)
    add(site, "other", GOOD, hardware="b")
    return site


@pytest.mark.parametrize("vendor", ["vendor", "npu"])
def test_a_recording_goes_to_the_vendors_reader(reader: Site, tmp_path: Path, vendor: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("smi GPU-1".encode("utf-16"))  # as PowerShell writes it
    found = read_recordings([path], vendor=vendor, registry=reader.registry())
    assert [a.uuid for a in found.accelerators] == ["GPU-1"]
    assert found.sources == ("a.txt",)


def test_a_profile_needs_no_vendor_and_merges_with_recordings(reader: Site, tmp_path: Path) -> None:
    host, smi = tmp_path / "host.json", tmp_path / "smi.txt"
    tier = MemoryTierSpec(tier="dram", name="host", capacity_bytes=1)
    host.write_text("\ufeff" + to_json(HardwareProfile(memory_tiers=[tier], sources=["host"])), "utf-8")
    smi.write_text("smi GPU-1")
    registry = reader.registry()
    assert read_recordings([host], registry=registry).memory_tiers == (tier,)
    assert read_recordings([host, smi], vendor="npu", registry=registry).sources == ("host", "smi.txt")
    host.write_text(json.dumps({"schema_version": "1.1", "accelerators": [], "acelerators": 1}))
    with pytest.raises(SchemaError, match="acelerators"):
        read_recordings([host], registry=registry)


@pytest.mark.parametrize(
    ("vendor", "expected"),
    [
        (None, r"is not a profile in JSON; name the vendor of the tool with --vendor \(npu, vendor\)"),
        ("intel", "no installed detector reads recordings of 'intel'; available: npu, vendor"),
        ("b", "no installed detector reads recordings of 'b'"),
    ],
)
def test_a_vendor_that_is_missing_or_unknown(
    reader: Site, tmp_path: Path, vendor: str | None, expected: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("smi")
    with pytest.raises(InvalidRequest, match=expected):
        read_recordings([path], vendor=vendor, registry=reader.registry())


def test_two_readers_of_one_hardware_name_must_be_told_apart(reader: Site, tmp_path: Path) -> None:
    add(reader, "vendor2", GOOD, read_recording="vendor_module:read")
    path = tmp_path / "a.txt"
    path.write_text("smi GPU-1")
    with pytest.raises(InvalidRequest, match="choose one: vendor, vendor2"):
        read_recordings([path], vendor="npu", registry=reader.registry())
    assert read_recordings([path], vendor="vendor2", registry=reader.registry()).accelerators


def test_files_that_cannot_be_read_or_understood(reader: Site, tmp_path: Path) -> None:
    registry = reader.registry()
    with pytest.raises(InvalidRequest, match=r"cannot read .*nowhere: No such file"):
        read_recordings([tmp_path / "nowhere"], vendor="npu", registry=registry)
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xff\x00\x01")
    with pytest.raises(ToolOutputError, match=r"a\.txt: line 1"):
        read_recordings([path], vendor="npu", registry=registry)
    path.write_text("smi list")
    with pytest.raises(InvalidRequest, match="returned a list for"):
        read_recordings([path], vendor="npu", registry=registry)


def test_detectors_are_found_by_name(site: Site) -> None:
    add(site, "b", GOOD)
    add(site, "a", GOOD)
    assert [entry.name for entry in find_detectors(site.registry())] == ["a", "b"]

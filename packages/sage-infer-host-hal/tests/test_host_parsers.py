"""Parsers of /proc and /sys: other processors, and whatever else may stand there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from sage_infer_host.cpu import parse_cpuinfo

ARM = """\
processor	: 0
BogoMIPS	: 200.00
Features	: fp asimd asimdhp asimddp sve bf16 i8mm
CPU implementer	: 0x48
CPU architecture: 8
CPU part	: 0xd02

processor	: 1
Features	: fp asimd sve sve2 svebf16
CPU implementer	: 0x41
CPU part	: 0xd4f

processor	: 2
CPU implementer	: 0x99
CPU part	: 0x123

processor	: 3
CPU implementer	: nonsense
"""
POWER = """\
processor	: 0
cpu		: POWER10 (architected), altivec supported

processor	: 1
cpu		: POWER10 (architected), altivec supported

timebase	: 512000000
machine		: CHRP IBM
"""


def test_arm_processors_by_implementer_and_part() -> None:
    found = parse_cpuinfo(ARM)
    assert [(info.vendor, info.model) for info in found] == [
        ("HiSilicon", "part 0xd02"), ("ARM", "Neoverse-V2"), ("implementer 0x99", "part 0x123"),
        ("unknown", "unknown"),
    ]  # fmt: skip
    assert found[0].isa == {"asimd", "asimdhp", "asimddp", "sve", "bf16", "i8mm"}
    assert found[1].isa == {"asimd", "sve", "sve2", "svebf16"}


def test_power_processors() -> None:
    (info,) = parse_cpuinfo(POWER)
    assert info.model == "POWER10 (architected), altivec supported"
    assert info.cpus == {0, 1}


def test_sockets_and_cores_without_sysfs() -> None:
    text = "\n\n".join(
        f"processor: {n}\nvendor_id: A\nmodel name: B\nphysical id: {n // 2}\ncore id: 0" for n in range(4)
    )
    (info,) = parse_cpuinfo(text)
    assert info.places == {("0", "0"), ("1", "0")}


@given(st.text())
def test_any_text_is_read_without_a_crash(text: str) -> None:
    parse_cpuinfo(text)

"""``sage infer hal …``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from sage_infer.cli.output import AsJson, note, print_json, print_table

if TYPE_CHECKING:
    from sage_infer.schemas import HardwareProfile

__all__ = ["plot", "profile", "show"]

Recordings = Annotated[
    list[Path] | None,
    typer.Option(
        "--from-file", "-f", metavar="RECORDING",
        help="Recorded output of a vendor's tool, or a profile in JSON, instead of this machine; repeatable.",
    ),
]  # fmt: skip
Vendor = Annotated[
    str | None,
    typer.Option("--vendor", help="Vendor of the recorded tool: name of a detector or of its hardware."),
]
Measure = Annotated[
    bool,
    typer.Option(
        "--measure", help="Measure memory and disks: seconds of load, up to 1 GiB written temporarily."
    ),
]


def show(
    from_file: Recordings = None, vendor: Vendor = None, measure: Measure = False, as_json: AsJson = False
) -> None:
    """Show devices as a tree, links as a matrix, and memory tiers."""
    from sage_infer_hal.drawing import text

    found = _profile(from_file, vendor, measure)
    if as_json:
        _print_profile(found)
        return
    for line in text.tree(found):
        print(line)
    numa = text.numa_table(found)
    if numa is not None:
        print("\nNUMA distances")
        print_table(*numa)
    links = text.link_table(found)
    if links is not None:
        (columns, rows), meanings = links
        print("\nlinks, from the row to the column")
        print_table(columns, rows)
        for meaning in meanings:
            print(meaning)
    if found.memory_tiers:
        print("\nmemory tiers")
        print_table(*text.tier_table(found))
    _print_notes(found)


def profile(
    from_file: Recordings = None, vendor: Vendor = None, measure: Measure = False, as_json: AsJson = False
) -> None:
    """Show every figure with its source; --json prints the whole profile, which --from-file reads back."""
    from sage_infer_hal.drawing import text

    found = _profile(from_file, vendor, measure)
    if as_json:
        _print_profile(found)
        return
    for line in text.tree(found):
        print(line)
    rows = text.figures(found)
    if rows:
        print()
        print_table(("OF", "WHAT", "VALUE", "CONFIDENCE", "SOURCE"), rows)
    for source in found.sources:
        print(f"source: {source}")
    _print_notes(found)


def plot(
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, in SVG.")],
    from_file: Recordings = None,
    vendor: Vendor = None,
    measure: Measure = False,
) -> None:
    """Draw the machine: NUMA nodes, accelerators, links and memory tiers."""
    from sage_infer.errors import InvalidRequest

    from sage_infer_hal.drawing.svg import draw

    if output.suffix.lower() != ".svg":
        raise InvalidRequest(f"--output must end in .svg, the only supported format; got {output}")
    found = _profile(from_file, vendor, measure)
    try:
        output.write_text(draw(found), "utf-8")
    except OSError as error:
        raise InvalidRequest(f"cannot write {output}: {error.strerror or error}") from None
    _print_notes(found)
    print(f"wrote {output}")


def _profile(recordings: list[Path] | None, vendor: str | None, measure: bool) -> HardwareProfile:
    from sage_infer.cli.output import progress_bar
    from sage_infer.errors import InvalidRequest

    from sage_infer_hal import detect_machine, find_detectors, read_recordings

    if recordings:
        if measure:
            raise InvalidRequest("--measure measures this machine and cannot be combined with --from-file")
        return read_recordings(recordings, vendor=vendor)
    if vendor is not None:
        raise InvalidRequest("--vendor names the vendor of a recording; use it with --from-file")
    if not find_detectors():
        note("no detector is installed; try: pip install sage-infer-host-hal")
    if not measure:
        return detect_machine()
    with progress_bar() as progress:
        return detect_machine(measure=progress)


def _print_profile(found: HardwareProfile) -> None:
    from sage_infer.schemas.codec import to_dict

    print_json(to_dict(found))


def _print_notes(found: HardwareProfile) -> None:
    for text in found.notes:
        note(f"note: {text}")

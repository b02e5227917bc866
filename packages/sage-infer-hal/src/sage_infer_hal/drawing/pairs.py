"""Links between accelerators prepared for drawing: a matrix of codes, and fully connected groups of one kind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from attrs import frozen
from sage_infer.schemas import Figure, HardwareProfile, LinkProfile

__all__ = ["Fabric", "Matrix", "code_of", "fabrics", "link_matrix", "single_links"]

_RANK = {"pcie": 1, "network": 1, "other": 0}
"""Of two links between the same ends the faster kind is shown; unlisted kinds come first."""


@frozen
class Matrix:
    """Accelerators by name, and link endpoints; ``cells`` has the link from a row to a column."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[tuple[str, str], LinkProfile]


@frozen
class Fabric:
    """Accelerators that are all joined to each other by the same kind of link."""

    members: tuple[str, ...]
    kind: str
    code: str
    figure: Figure | None


def code_of(link: LinkProfile) -> str:
    """The label of the link: the vendor's code, else its kind."""
    return link.vendor_code or link.kind


def link_matrix(profile: HardwareProfile) -> Matrix:
    """Links between accelerators, and from them to network cards."""
    names = [f"{a.hardware_backend}:{a.index}" for a in profile.accelerators]
    cells: dict[tuple[str, str], LinkProfile] = {}
    others: dict[str, None] = {}
    for link in profile.links:
        if link.source not in names or link.target.partition(":")[0] in ("host", "numa"):
            continue
        if link.target not in names:
            others[link.target] = None
        ends = (link.source, link.target)
        if ends not in cells or _rank(link) > _rank(cells[ends]):
            cells[ends] = link
    rows = tuple(name for name in names if any(name in ends for ends in cells))
    return Matrix(rows, (*rows, *sorted(others)), cells)


def fabrics(matrix: Matrix) -> list[Fabric]:
    """Fully connected groups of three or more, joined by links faster than PCIe.

    Two members may have an even faster link, as the two dies of one package have; it is drawn as a single link.
    """
    joined: dict[tuple[str, str], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    near: dict[str, set[str]] = defaultdict(set)
    for (one, other), link in matrix.cells.items():
        back = matrix.cells.get((other, one))
        if link.kind == "pcie" or back is None or back.kind == "pcie":
            continue
        near[one].add(other)
        if (back.kind, code_of(back)) == (link.kind, code_of(link)):
            joined[link.kind, code_of(link)][one].add(other)
    found = []
    for (kind, code), neighbours in joined.items():
        left = [row for row in matrix.rows if row in neighbours]
        while left:
            group = _reached(left[0], neighbours)
            left = [row for row in left if row not in group]
            if len(group) > 2 and all(near[member] >= group - {member} for member in group):
                members = tuple(row for row in matrix.rows if row in group)
                link = next(
                    matrix.cells[members[0], other] for other in members if other in neighbours[members[0]]
                )
                found.append(Fabric(members, kind, code, link.measured_gbs or link.nominal_gbs))
    return found


def _reached(start: str, neighbours: Mapping[str, set[str]]) -> set[str]:
    found, waiting = {start}, [start]
    while waiting:
        new = neighbours[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def single_links(matrix: Matrix, groups: Iterable[Fabric]) -> list[tuple[LinkProfile, LinkProfile | None]]:
    """Pairs in no group that are joined by a link faster than PCIe: the link, and the one that leads back."""
    inside = {(a, b, group.code) for group in groups for a in group.members for b in group.members}
    pairs = []
    for (one, other), link in matrix.cells.items():
        back = matrix.cells.get((other, one))
        first = back is None or matrix.columns.index(one) < matrix.columns.index(other)
        if (
            other in matrix.rows
            and first
            and link.kind != "pcie"
            and (one, other, code_of(link)) not in inside
        ):
            pairs.append((link, back))
    return pairs


def _rank(link: LinkProfile) -> int:
    return _RANK.get(link.kind, 2)

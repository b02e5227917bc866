"""Draw a machine as SVG: NUMA nodes, accelerators, links and memory tiers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from xml.sax.saxutils import escape

from attrs import define, field
from sage_infer.schemas import UNKNOWN_MODEL, AcceleratorDescriptor, HardwareProfile, MemoryTierSpec

from sage_infer_hal.drawing.pairs import Fabric, Matrix, code_of, fabrics, link_matrix, single_links
from sage_infer_hal.drawing.words import gigabytes, rate, size

__all__ = ["draw"]

_MARGIN, _GAP = 28, 20
_TILE_WIDTH, _TILE_HEIGHT = 172, 86
_MOST_IN_ROW = 4  # tiles of one node beside each other
_CELL = 54
_EM = 0.62  # average width of a letter, as a fraction of the font size

_KIND_COLOURS: Mapping[str, str] = {
    "nvlink": "#4c8c2b", "hccs": "#c0392b", "sio": "#d35400", "mlu-link": "#2471a3", "xgmi": "#b7590a",
    "xpu-link": "#6c3483", "pcie": "#7f8c8d", "network": "#16a085", "numa": "#34495e", "other": "#566573",
}  # fmt: skip
_TIER_COLOURS: Mapping[str, str] = {
    "hbm": "#4c8c2b",
    "dram": "#2471a3",
    "ssd": "#b7590a",
    "remote": "#6c3483",
}
_INK, _QUIET, _PAPER, _BOX = "#1b2631", "#5d6d7e", "#ffffff", "#f4f6f7"


@define
class _Drawing:
    """Shapes on a page that grows with them; lines are above boxes and below shapes in ``front``."""

    shapes: list[str] = field(factory=list)
    front: list[str] = field(factory=list)
    width: float = 0
    height: float = 0

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        edge: str = "none",
        front: bool = False,
    ) -> None:
        (self.front if front else self.shapes).append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" fill="{fill}" stroke="{edge}"/>'
        )
        self._reach(x + width, y + height)

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 2) -> None:
        path = " ".join(f"{'M' if n == 0 else 'L'}{x:g} {y:g}" for n, (x, y) in enumerate(points))
        self._path(path, colour, width)
        for x, y in points:
            self._reach(x, y)

    def arc(self, start: tuple[float, float], end: tuple[float, float], depth: float, colour: str) -> None:
        """A curve that hangs down towards ``depth`` and reaches three quarters of it."""
        path = (
            f"M{start[0]:g} {start[1]:g} C{start[0]:g} {depth:g} {end[0]:g} {depth:g} {end[0]:g} {end[1]:g}"
        )
        self._path(path, colour, 2)
        self._reach(max(start[0], end[0]), depth)

    def text(
        self, x: float, y: float, text: str, *, size: int = 12, colour: str = _INK, bold: bool = False,
        anchor: str = "start", room: float | None = None,
    ) -> None:  # fmt: skip
        """Text vertically centred at ``y``, truncated to the width ``room``."""
        most = len(text) if room is None else max(2, int(room / (size * _EM)))
        shown = text if len(text) <= most else text[: most - 1] + "…"
        weight = ' font-weight="600"' if bold else ""
        title = f"<title>{escape(text)}</title>" if shown != text else ""
        self.front.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}"{weight} '
            f'dominant-baseline="central">{escape(shown)}{title}</text>'
        )
        if anchor == "start":
            self._reach(x + len(shown) * size * _EM, y)

    def _path(self, path: str, colour: str, width: float) -> None:
        self.shapes.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"/>')

    def _reach(self, x: float, y: float) -> None:
        self.width, self.height = max(self.width, x), max(self.height, y)

    def document(self, title: str) -> str:
        width, height = self.width + _MARGIN, self.height + _MARGIN
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
            f'viewBox="0 0 {width:g} {height:g}" font-family="system-ui, Segoe UI, Helvetica, Arial, sans-serif">\n'
            f'<title>{escape(title)}</title>\n<rect width="100%" height="100%" fill="{_PAPER}"/>\n'
            + "\n".join([*self.shapes, *self.front])
            + "\n</svg>\n"
        )


def draw(profile: HardwareProfile) -> str:
    """The profile as an SVG document of plain text, rectangles and lines, which any viewer shows."""
    page = _Drawing()
    title = _title(profile)
    page.text(_MARGIN, _MARGIN, title, size=17, bold=True)
    tiles = _nodes(page, profile, _MARGIN + 28)
    matrix = link_matrix(profile)
    _joins(page, matrix, tiles)
    top = page.height + 2 * _GAP
    right = _table(page, matrix, _MARGIN, top) if matrix.cells else _MARGIN
    _tiers(page, profile, right, top)
    return page.document(title)


def _title(profile: HardwareProfile) -> str:
    counts: dict[str, int] = {}
    for device in profile.accelerators:
        counts[device.model] = counts.get(device.model, 0) + 1
    parts = [
        f"{count} × {model if model != UNKNOWN_MODEL else 'device of unknown model'}"
        for model, count in counts.items()
    ]
    parts += [f"{cpu.model} ({cpu.threads or '?'} threads)" for cpu in profile.cpus]
    return " · ".join(parts) or "an unknown machine"


# --- NUMA nodes and their contents


def _nodes(page: _Drawing, profile: HardwareProfile, top: float) -> dict[str, tuple[float, float]]:
    """Draw the boxes; returns the middle of each tile's lower edge."""
    nodes = {node.index: node for node in profile.numa_nodes}
    groups: list[tuple[str, str, list[AcceleratorDescriptor]]] = []
    for index in sorted(
        nodes.keys() | {a.numa_node for a in profile.accelerators if a.numa_node is not None}
    ):
        node = nodes.get(index)
        facts = [f"CPUs {node.cpus}" if node.cpus else "", size(node.memory_bytes)] if node else []
        groups.append(
            (
                f"numa:{index}",
                " · ".join(fact for fact in facts if fact not in ("", "-")),
                [a for a in profile.accelerators if a.numa_node == index],
            )
        )
    strangers = [a for a in profile.accelerators if a.numa_node is None]
    if strangers:
        groups.append(("NUMA node unknown" if groups else "devices", "", strangers))
    distances = {(x.source, x.target): x.distance for x in profile.links if x.kind == "numa"}
    rows = max((-(-len(devices) // _MOST_IN_ROW) for *_, devices in groups), default=0)
    height = 54 + max(rows, 0) * (_TILE_HEIGHT + 12)
    places: dict[str, tuple[float, float]] = {}
    x: float = _MARGIN
    for number, (name, facts_text, devices) in enumerate(groups):
        wide = max(1, min(_MOST_IN_ROW, len(devices)))
        width = max(260, 24 + wide * (_TILE_WIDTH + 12) - 12)
        page.box(x, top, width, height, _BOX, "#ccd1d1")
        page.text(x + 12, top + 17, name, bold=True, room=width - 24)
        page.text(x + 12, top + 35, facts_text, size=11, colour=_QUIET, room=width - 24)
        for place, device in enumerate(devices):
            tile_x = x + 12 + place % _MOST_IN_ROW * (_TILE_WIDTH + 12)
            tile_y = top + 50 + place // _MOST_IN_ROW * (_TILE_HEIGHT + 12)
            _tile(page, device, tile_x, tile_y)
            end = f"{device.hardware_backend}:{device.index}"
            places[end] = (tile_x + _TILE_WIDTH / 2, tile_y + _TILE_HEIGHT)
        x += width + _GAP
        if number + 1 < len(groups) and (name, groups[number + 1][0]) in distances:
            distance = distances[name, groups[number + 1][0]]
            page.line([(x - _GAP, top + 17), (x, top + 17)], _KIND_COLOURS["numa"])
            page.text(x - _GAP / 2, top + 8, str(distance), size=10, colour=_QUIET, anchor="middle")
    return places


def _tile(page: _Drawing, device: AcceleratorDescriptor, x: float, y: float) -> None:
    page.box(x, y, _TILE_WIDTH, _TILE_HEIGHT, _PAPER, "#aab7b8", front=True)
    page.box(x, y, _TILE_WIDTH, 22, "#d5dbdb", front=True)
    page.text(x + 8, y + 11, f"{device.hardware_backend}:{device.index}", bold=True)
    if device.partitions:
        page.text(
            x + _TILE_WIDTH - 8,
            y + 11,
            f"{len(device.partitions)} parts",
            size=10,
            colour=_QUIET,
            anchor="end",
        )
    lines = [
        device.model if device.model != UNKNOWN_MODEL else "",
        f"{size(device.memory_bytes)}" if device.memory_bytes is not None else "",
        device.pci_address or "",
    ]
    for number, line in enumerate(line for line in lines if line):
        page.text(x + 8, y + 36 + 18 * number, line, size=11, room=_TILE_WIDTH - 16)


# --- links


def _joins(page: _Drawing, matrix: Matrix, tiles: Mapping[str, tuple[float, float]]) -> None:
    """Draw single pairs as arcs below the tiles, and groups as bars below the arcs."""
    groups = fabrics(matrix)
    pairs = single_links(matrix, groups)
    for link, back in pairs:
        (x1, y1), (x2, y2) = sorted((tiles[link.source], tiles[link.target]))
        bottom, depth = max(y1, y2), 26 + abs(x2 - x1) * 0.16
        page.arc((x1, y1), (x2, y2), bottom + depth, _KIND_COLOURS[link.kind])
        label = code_of(link)
        if back is None or code_of(back) != label:
            label += f" ⇄ {'?' if back is None else code_of(back)}"
        y = bottom + depth * 0.75 + 8
        page.text((x1 + x2) / 2, y, label, size=10, colour=_KIND_COLOURS[link.kind], anchor="middle")
    bottom = page.height + (16 if pairs else 0)
    for group in groups:
        bottom += _GAP
        _bar(page, group, tiles, bottom)
        bottom += 26


def _bar(page: _Drawing, group: Fabric, tiles: Mapping[str, tuple[float, float]], y: float) -> None:
    colour = _KIND_COLOURS[group.kind]
    places = [tiles[member] for member in group.members]
    left, right = min(x for x, _ in places) - 24, max(x for x, _ in places) + 24
    for x, bottom in places:
        page.line([(x, bottom), (x, y)], colour)
    page.box(left, y, right - left, 26, colour)
    known = f", {gigabytes(group.figure)} each way per pair" if group.figure is not None else ""
    text = f"{group.code}: {len(group.members)} devices, fully connected{known}"
    page.text(
        (left + right) / 2, y + 13, text, colour=_PAPER, bold=True, anchor="middle", room=right - left - 12
    )


def _table(page: _Drawing, matrix: Matrix, left: float, top: float) -> float:
    """Draw the link matrix in colours; returns where the next block to its right begins."""
    page.text(left, top, "Links, from the row to the column", bold=True)
    cell = max(_CELL, max(len(column) for column in matrix.columns) * 10 * _EM + 8)
    head = max(len(row) for row in matrix.rows) * 7 + 12
    for column, name in enumerate(matrix.columns):
        page.text(
            left + head + (column + 0.5) * cell,
            top + 24,
            name,
            size=10,
            colour=_QUIET,
            anchor="middle",
            room=cell,
        )
    for row, name in enumerate(matrix.rows):
        y = top + 38 + row * 26
        page.text(left, y + 12, name, size=11)
        for column, other in enumerate(matrix.columns):
            link = matrix.cells.get((name, other))
            x = left + head + column * cell
            if link is None:
                page.box(x, y, cell - 4, 22, "#eaeded" if name == other else _PAPER, "#d5dbdb")
                continue
            page.box(x, y, cell - 4, 22, _shade(link.kind, code_of(link)))
            page.text(
                x + cell / 2 - 2,
                y + 11,
                code_of(link),
                size=10,
                colour=_PAPER,
                anchor="middle",
                room=cell - 6,
            )
    return left + head + len(matrix.columns) * cell + 2 * _GAP


def _shade(kind: str, code: str) -> str:
    """The kind's colour; PCIe paths are paler the farther they lead, by the codes that most vendors share."""
    far = {"SYS": "#b2babb", "NODE": "#99a3a4", "PHB": "#85929e", "PXB": "#707b7c", "PIX": "#4d5656"}
    return far.get(code, _KIND_COLOURS[kind]) if kind == "pcie" else _KIND_COLOURS[kind]


# --- memory


def _tiers(page: _Drawing, profile: HardwareProfile, left: float, top: float) -> None:
    if not profile.memory_tiers:
        return
    page.text(left, top, "Memory tiers", bold=True)
    y = top + 16
    for tiers in _alike(profile.memory_tiers):
        tier = tiers[0]
        page.box(left, y, 8, 34, _TIER_COLOURS[tier.tier])
        names = tier.name if len(tiers) == 1 else f"{tier.name} … {tiers[-1].name}"
        amount = (
            size(tier.capacity_bytes) if len(tiers) == 1 else f"{len(tiers)} × {size(tier.capacity_bytes)}"
        )
        usable = ""
        if tier.usable_bytes is not None and tier.usable_bytes != tier.capacity_bytes:
            usable = f", {size(tier.usable_bytes)} usable"
        page.text(left + 18, y + 9, f"{tier.tier}  {names}  {amount}{usable}", size=12)
        page.text(left + 18, y + 26, _speed(tier), size=11, colour=_QUIET)
        y += 44


def _alike(tiers: Iterable[MemoryTierSpec]) -> list[list[MemoryTierSpec]]:
    """Merge consecutive tiers that differ in name only, such as the memory of equal devices."""
    groups: list[list[MemoryTierSpec]] = []
    for tier in tiers:
        last = groups[-1][0] if groups else None
        if last and (last.tier, last.capacity_bytes, last.nominal_gbs) == (
            tier.tier,
            tier.capacity_bytes,
            tier.nominal_gbs,
        ):
            groups[-1].append(tier)
        else:
            groups.append([tier])
    return groups


def _speed(tier: MemoryTierSpec) -> str:
    parts = [
        f"{what} {gigabytes(figure)}"
        for what, figure in (
            ("read", tier.measured_read_gbs),
            ("write", tier.measured_write_gbs),
            ("copy", tier.measured_copy_gbs),
            ("nominal", tier.nominal_gbs),
        )
        if figure is not None
    ]
    if tier.measured_random_read_iops is not None:
        parts.append(f"4 KiB {rate(tier.measured_random_read_iops)}")
    return ", ".join(parts) or "not measured"

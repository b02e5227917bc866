"""A machine as text: devices as a tree, links as a matrix, memory as a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from attrs import frozen
from sage_infer.schemas import (
    AcceleratorDescriptor,
    CpuDescriptor,
    Figure,
    HardwareProfile,
    LinkProfile,
    MemoryTierSpec,
    NumaNode,
)
from sage_infer.system.files import cpu_list

from sage_infer_hal.drawing.pairs import Matrix, code_of, link_matrix
from sage_infer_hal.drawing.words import gigabytes, rate, size

__all__ = ["figures", "link_table", "numa_table", "tier_table", "tree"]

Table = tuple[Sequence[str], Sequence[Sequence[str]]]


@frozen
class _Branch:
    line: str
    below: Sequence[_Branch] = ()


def tree(profile: HardwareProfile) -> Iterator[str]:
    """Lines of the tree: processors, then NUMA nodes with their accelerators."""
    branches = [_Branch(_cpu(cpu)) for cpu in profile.cpus]
    left = list(profile.accelerators)
    nodes = {node.index: node for node in profile.numa_nodes}
    for index in sorted(nodes.keys() | {a.numa_node for a in left if a.numa_node is not None}):
        here = [_device(profile, a) for a in left if a.numa_node == index]
        branches.append(_Branch(_node(index, nodes.get(index)), here))
    strangers = [_device(profile, a) for a in left if a.numa_node is None]
    branches += [_Branch("NUMA node unknown", strangers)] if strangers and nodes else strangers
    yield "machine" if branches else "machine: no hardware found"
    yield from _branches(branches, "")


def _branches(branches: Sequence[_Branch], indent: str) -> Iterator[str]:
    for number, branch in enumerate(branches, 1):
        last = number == len(branches)
        yield f"{indent}{'└─' if last else '├─'} {branch.line}"
        yield from _branches(branch.below, indent + ("   " if last else "│  "))


def _cpu(cpu: CpuDescriptor) -> str:
    parts = [f"{cpu.model} ({cpu.vendor}, {cpu.architecture})"]
    for count, what in ((cpu.sockets, "socket"), (cpu.cores, "core"), (cpu.threads, "thread")):
        if count is not None:
            parts.append(f"{count} {what}{'s' if count != 1 else ''}")
    if cpu.usable_threads is not None and cpu.usable_threads != cpu.threads:
        parts.append(f"{cpu.usable_threads} usable")
    if cpu.quota_cpus is not None:
        parts.append(f"time of {cpu.quota_cpus:g} CPUs granted")
    return f"cpu: {', '.join(parts)}" + (f"; {' '.join(cpu.isa)}" if cpu.isa else "")


def _node(index: int, node: NumaNode | None) -> str:
    if node is None:
        return f"numa:{index}"
    parts = [f"CPUs {node.cpus}" if node.cpus else "no CPUs"]
    if node.usable_cpus != node.cpus:
        parts.append(f"usable {node.usable_cpus or 'none'}")
    if node.memory_bytes is not None:
        parts.append(size(node.memory_bytes))
    return f"numa:{index}: {', '.join(parts)}"


def _device(profile: HardwareProfile, device: AcceleratorDescriptor) -> _Branch:
    name = f"{device.hardware_backend}:{device.index}"
    parts = [device.model]
    if device.memory_bytes is not None:
        parts.append(size(device.memory_bytes))
    if device.pci_address is not None:
        parts.append(device.pci_address)
    if device.compute_capability is not None:
        parts.append(device.compute_capability)
    if device.board is not None:
        parts.append(f"board {device.board}")
    host = next((link for link in profile.links if (link.source, link.target) == ("host", name)), None)
    if host is not None and host.nominal_gbs is not None:
        parts.append(f"{host.kind} {gigabytes(host.measured_gbs or host.nominal_gbs)}")
    if device.cpu_affinity is not None and not profile.numa_nodes:
        parts.append(f"CPUs {device.cpu_affinity}")
    partitions = [
        _Branch(
            f"part {part.index}: {', '.join(filter(None, (part.profile, size(part.memory_bytes), part.uuid)))}"
        )
        for part in device.partitions
    ]
    return _Branch(f"{name}: {', '.join(parts)}", partitions)


def link_table(profile: HardwareProfile) -> tuple[Table, list[str]] | None:
    """The matrix of links, from row to column, and the known bandwidth of each code."""
    matrix = link_matrix(profile)
    if not matrix.cells:
        return None
    rows = [[row, *(_cell(matrix, row, column) for column in matrix.columns)] for row in matrix.rows]
    meanings: dict[str, None] = {}
    for link in matrix.cells.values():
        for figure, how in ((link.measured_gbs, "measured"), (link.nominal_gbs, "nominal")):
            if figure is not None:
                meanings[f"{code_of(link)}: {gigabytes(figure)} each way, {how} ({figure.source})"] = None
    return (("", *matrix.columns), rows), list(meanings)


def _cell(matrix: Matrix, row: str, column: str) -> str:
    if row == column:
        return "X"
    link = matrix.cells.get((row, column))
    return "-" if link is None else code_of(link)


def numa_table(profile: HardwareProfile) -> Table | None:
    """Distances between NUMA nodes; None for a machine with fewer than two nodes."""
    distances = {(x.source, x.target): x.distance for x in profile.links if x.kind == "numa"}
    names = [f"numa:{node.index}" for node in profile.numa_nodes]
    if not distances:
        return None
    rows = [[a, *("X" if a == b else str(distances.get((a, b)) or "-") for b in names)] for a in names]
    return ("", *names), rows


def tier_table(profile: HardwareProfile) -> Table:
    """Memory tiers that can hold KV, nearest first."""
    order = ("hbm", "dram", "ssd", "remote")
    rows = [
        [
            tier.tier,
            tier.name,
            size(tier.capacity_bytes),
            size(tier.usable_bytes),
            gigabytes(tier.nominal_gbs),
            gigabytes(tier.measured_read_gbs),
            gigabytes(tier.measured_write_gbs),
            gigabytes(tier.measured_copy_gbs),
            rate(tier.measured_random_read_iops),
            rate(tier.measured_random_write_iops),
            " on ".join(filter(None, (tier.filesystem, tier.device))) or "-",
        ]
        for tier in sorted(profile.memory_tiers, key=lambda tier: order.index(tier.tier))
    ]
    columns = [
        "TIER",
        "NAME",
        "CAPACITY",
        "USABLE",
        "NOMINAL",
        "READ",
        "WRITE",
        "COPY",
        "4K READ",
        "4K WRITE",
        "WHERE",
    ]
    kept = [i for i, _ in enumerate(columns) if i < 3 or any(row[i] != "-" for row in rows)]
    return [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


def figures(profile: HardwareProfile) -> list[Sequence[str]]:
    """Every figure with its subject, value, confidence and source; equal devices share rows."""
    rows: list[tuple[str, tuple[str, ...]]] = []
    for device in profile.accelerators:
        rows += _device_figures(device)
    for link in profile.links:
        rows += [(f"{link.source} → {link.target}", row) for row in _part_figures(link)]
    for tier in profile.memory_tiers:
        rows += [(f"{tier.tier} {tier.name}", row) for row in _part_figures(tier)]
    return _alike(rows)


def _part_figures(part: LinkProfile | MemoryTierSpec) -> Iterator[tuple[str, ...]]:
    for field, what in _FIELDS:
        figure = getattr(part, field, None)
        if figure is not None:
            shown = rate(figure) if field.endswith("iops") else gigabytes(figure)
            yield _row(what, f"{figure.value:g} µs" if field == "latency_us" else shown, figure)


def _device_figures(device: AcceleratorDescriptor) -> Iterator[tuple[str, tuple[str, ...]]]:
    name = f"{device.hardware_backend}:{device.index}"
    for precision, figure in device.peak_tflops.items():
        unit = "OP" if precision.startswith("int") else "FLOP"
        yield name, _row(f"peak {precision}", f"{figure.value:g} T{unit}/s", figure)
    if device.memory_bandwidth_gbs is not None:
        bandwidth = device.memory_bandwidth_gbs
        yield name, _row("memory bandwidth", gigabytes(bandwidth), bandwidth)


def _alike(rows: Iterable[tuple[str, tuple[str, ...]]]) -> list[Sequence[str]]:
    """Merge equal rows of ``kind:0``, ``kind:1``, … into one, in the place of the first."""
    found: list[tuple[str, tuple[str, ...], list[int]]] = []
    numbered: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for name, row in rows:
        kind, colon, number = name.rpartition(":")
        if not colon or not number.isdecimal() or "→" in name:
            found.append((name, row, []))
        elif (kind, row) in numbered:
            numbered[kind, row].append(int(number))
        else:
            numbered[kind, row] = [int(number)]
            found.append((kind, row, numbered[kind, row]))
    return [(f"{name}:{cpu_list(where)}" if where else name, *row) for name, row, where in found]


_FIELDS: Iterable[tuple[str, str]] = (
    ("nominal_gbs", "nominal bandwidth"),
    ("measured_gbs", "bandwidth"),
    ("measured_read_gbs", "read"),
    ("measured_write_gbs", "write"),
    ("measured_copy_gbs", "copy, bytes read and written"),
    ("measured_random_read_iops", "random 4 KiB reads"),
    ("measured_random_write_iops", "random 4 KiB writes"),
    ("latency_us", "latency"),
)


def _row(what: str, value: str, figure: Figure) -> tuple[str, str, str, str]:
    return (what, value, figure.confidence, figure.source)

"""NUMA nodes and the distances between them, from /sys/devices/system/node."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from attrs import frozen
from sage_infer.schemas import LinkProfile, NumaNode
from sage_infer.system.files import cpu_list, cpus_in, text_in

__all__ = ["Numa", "read_numa"]


@frozen(kw_only=True)
class Numa:
    """Nodes by index, the links between them in both directions, and notes on contradictions."""

    nodes: tuple[NumaNode, ...] = ()
    links: tuple[LinkProfile, ...] = ()
    notes: tuple[str, ...] = ()


def read_numa(root: Path, usable: Collection[int], total_bytes: int | None) -> Numa:
    """The nodes of the machine below ``root``; empty if the kernel reports none.

    A single node has all of the machine's memory, ``total_bytes``: in a virtual machine that returns memory to its
    host, the node's own figure changes by the second.
    """
    folder = root / "sys/devices/system/node"
    indices = sorted(
        int(match[1])
        for path in folder.glob("node[0-9]*")
        if (match := re.fullmatch(r"node(\d+)", path.name))
    )
    nodes, links, notes = [], [], []
    for index in indices:
        place = folder / f"node{index}"
        cpus = cpus_in(text_in(place / "cpulist"))
        nodes.append(
            NumaNode(
                index=index,
                cpus=cpu_list(cpus),
                usable_cpus=cpu_list(cpus & frozenset(usable)),
                memory_bytes=total_bytes if len(indices) == 1 else _memory(text_in(place / "meminfo") or ""),
            )
        )
        # A row has a distance for each online node, in the order of their numbers.
        row = (text_in(place / "distance") or "").split()
        if len(row) != len(indices) or not all(word.isdecimal() and int(word) for word in row):
            if row:
                notes.append(
                    f"node{index}/distance has {len(row)} entries for {len(indices)} nodes; left out"
                )
            continue
        links += [
            LinkProfile(source=f"numa:{index}", target=f"numa:{other}", kind="numa", distance=int(distance))
            for other, distance in zip(indices, row, strict=True)
            if other != index
        ]
    return Numa(nodes=tuple(nodes), links=tuple(links), notes=tuple(notes))


def _memory(meminfo: str) -> int | None:
    match = re.search(r"MemTotal:\s+([1-9]\d*) kB", meminfo)
    return int(match[1]) * 1024 if match else None

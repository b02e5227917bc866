"""Stand-ins for a vendor's machine: a tool that replays recorded output, PCI devices in a simulated sysfs, and
installed distributions."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from attrs import field, frozen

__all__ = ["Replay", "add_distribution", "add_pci_device", "calls_of", "stand_in_tool"]

_SCRIPT = """#!{python} -SE
import json, os, sys
folder = os.path.dirname(os.path.abspath(__file__))
name = os.path.basename(__file__)
call = " ".join(sys.argv[1:])
with open(os.path.join(folder, name + ".calls"), "a") as log:
    log.write(call + "\\n")
with open(os.path.join(folder, name + ".json"), encoding="utf-8") as file:
    answer = json.load(file).get(call)
if answer is None:
    sys.exit(f"{{name}}: this stand-in has no recording of '{{name}} {{call}}'")
for path, content in answer["writes"].items():
    with open(path, "w", encoding="utf-8") as file:
        file.write(content)
sys.stdout.reconfigure(encoding="utf-8")
sys.stdout.write(answer["prints"])
sys.exit(answer["exit_code"])
"""


@frozen(kw_only=True)
class Replay:
    """Response of a stand-in to one command line.

    Attributes:
        prints: its standard output.
        exit_code: its exit code.
        writes: names and contents of files that it writes into its working directory.
    """

    prints: str = ""
    exit_code: int = 0
    writes: Mapping[str, str] = field(factory=dict)


def stand_in_tool(folder: Path, name: str, answers: Mapping[str, str | Replay]) -> Path:
    """Create an executable that replays recorded output of a vendor's tool.

    The keys of ``answers`` are command lines without the tool's name (``info -t topo``); a text value is the standard
    output. Any other command line fails, as the tool does for an unknown option. ``calls_of`` returns the received
    command lines.
    """
    replays = {
        call: answer if isinstance(answer, Replay) else Replay(prints=answer)
        for call, answer in answers.items()
    }
    data = {
        call: {"prints": replay.prints, "exit_code": replay.exit_code, "writes": dict(replay.writes)}
        for call, replay in replays.items()
    }
    (folder / f"{name}.json").write_text(json.dumps(data), "utf-8")
    tool = folder / name
    tool.write_text(_SCRIPT.format(python=sys.executable), "utf-8")
    tool.chmod(0o755)
    return tool


def calls_of(tool: Path) -> list[str]:
    """Return the command lines that a stand-in was called with, in order."""
    log = tool.with_name(f"{tool.name}.calls")
    return log.read_text("utf-8").splitlines() if log.exists() else []


def add_pci_device(
    sysfs: Path, address: str, *, vendor: int, device: int, class_code: int = 0x120000, **files: object
) -> None:
    """Add a device to a simulated sysfs; ``files`` are additional files of its folder, such as ``numa_node``."""
    folder = sysfs / "bus/pci/devices" / address
    folder.mkdir(parents=True)
    ids = {"vendor": f"{vendor:#06x}", "device": f"{device:#06x}", "class": f"{class_code:#08x}"}
    for name, content in {**ids, **files}.items():
        (folder / name).write_text(f"{content}\n", "utf-8")


def add_distribution(
    folder: Path, name: str, version: str, entry_points: Mapping[str, str] | None = None
) -> None:
    """Add the metadata of a distribution, without modules, to a folder in ``sys.path``.

    ``entry_points`` are values by ``group:name``.
    """
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "utf-8")
    lines = []
    for key, value in (entry_points or {}).items():
        group, _, entry = key.partition(":")
        lines.append(f"[{group}]\n{entry} = {value}\n")
    (info / "entry_points.txt").write_text("".join(lines), "utf-8")

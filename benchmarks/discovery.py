"""Cost of listing backends, compared with a bare typer program and ``llm plugins``, and cost per plug-in.

    hatch run bench:discovery [--rounds 10] [--json results.json]

Every round runs each command once, as a whole process, and reads the CPU time (user + system) from the
operating system. Ratios are taken per round, so that noise affects both sides equally.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HELLO = """
import typer
app = typer.Typer()
@app.command()
def main(name: str = "you"):
    print("hello", name)
app()
"""
PLUGIN = """
from sage_infer import BackendSpec, hookimpl

@hookimpl
def sage_infer_backends():
    return [BackendSpec(name="fake-{i}", factory="fake_{i}.engine:Backend", serves={{"llm"}}, summary="fake")]
"""
COUNTS = (0, 10, 100, 1000)


def cpu_seconds(command: list[str], **environment: str) -> float:
    """CPU time of one run of a command."""
    with open(os.devnull, "w") as quiet:
        process = subprocess.Popen(command, stdout=quiet, env={**os.environ, **environment})
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def make_plugins(folder: Path, count: int) -> Path:
    """A folder that simulates ``count`` installed plug-in wheels on PYTHONPATH."""
    site = folder / f"plugins-{count}"
    site.mkdir()
    for i in range(count):
        info = site / f"fake_{i}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fake-{i}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[sage_infer.backends]\nfake{i} = fake_{i}.plugin\n")
        package = site / f"fake_{i}"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "plugin.py").write_text(PLUGIN.format(i=i))
        (package / "engine.py").write_text("class Backend: ...\n")
    compileall.compile_dir(site, quiet=2)  # as pip does when it installs
    return site


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):7.2f}  ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write all readings here")
    options = parser.parse_args()
    bin_folder = Path(sys.executable).parent
    listing = [str(bin_folder / "sage"), "infer", "backend", "list"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "hello.py").write_text(HELLO)
        commands = {
            "typer hello": [sys.executable, str(folder / "hello.py")],
            "sage infer backend list": listing,
            "llm plugins": [str(bin_folder / "llm"), "plugins"],
        }
        sites = {count: str(make_plugins(folder, count)) for count in COUNTS}
        home = {"XDG_CONFIG_HOME": name}
        readings: dict[str, list[float]] = {label: [] for label in commands}
        by_count: dict[int, list[float]] = {count: [] for count in COUNTS}
        for round_number in range(-1, options.rounds):  # round -1 is an uncounted warm-up
            for label, command in commands.items():
                seconds = cpu_seconds(command, **home)
                if round_number >= 0:
                    readings[label].append(seconds)
            for count, site in sites.items():
                seconds = cpu_seconds(listing, PYTHONPATH=site, **home)
                if round_number >= 0:
                    by_count[count].append(seconds)

    ours = readings["sage infer backend list"]
    print(f"CPU ms of a whole process, median (min to max) of {options.rounds} alternating rounds")
    for label, values in readings.items():
        print(f"  {label:<26}{spread([1000 * v for v in values])}")
    print("\nsage infer backend list, as a ratio, round by round")
    ratios = {}
    for label in ("typer hello", "llm plugins"):
        ratios[label] = [a / b for a, b in zip(ours, readings[label], strict=True)]
        print(f"  to {label:<23}{spread(ratios[label])}")
    print("\nwith further plug-ins installed, CPU ms per plug-in")
    marginal = {}
    for count in COUNTS[1:]:
        marginal[count] = [1000 * (a - b) / count for a, b in zip(by_count[count], by_count[0], strict=True)]
        print(f"  {count:>5} more{'':<16}{spread(marginal[count])}")
    if options.json:
        result = {
            "cpu_s": readings,
            "ratios": ratios,
            "cpu_s_by_plugins": by_count,
            "ms_per_plugin": marginal,
        }
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

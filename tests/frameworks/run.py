"""Runs agent frameworks and their test suites, as they come, against ``sage infer serve``, and prints a table.

    hatch run frameworks:test [--json FILE] [langchain litellm …]

Each ``check_NAME.py`` is a pytest file that reads the server's address from ``SAGE_URL``. Tests that a model of this
size cannot pass are expected failures with the reason. Exits with 1 where another test fails.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
SAGE = [os.environ.get("SAGE_PYTHON", sys.executable), "-m", "sage_infer.cli.main"]
WHEELS = {
    "langchain": ("langchain-openai", "langchain-tests"),
    "openai_agents": ("openai-agents",),
    "pydantic_ai": ("pydantic-ai-slim",),
    "instructor": ("instructor",),
    "litellm": ("litellm",),
}
CONFIG = """\
serve:
  models:
    - {model: smollm2-135m, options: {kv_cache_gb: 0.3}}
    - {model: minilm}
"""


@contextmanager
def serving() -> Iterator[str]:
    """The address of a server with both sample models, or that of ``SAGE_URL``."""
    if url := os.environ.get("SAGE_URL"):
        yield url
        return
    for name in ("smollm2-135m", "minilm"):
        subprocess.run([*SAGE, "infer", "model", "add", name], check=True, capture_output=True)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sage_infer.yaml").write_text(CONFIG)
        process = subprocess.Popen(
            [*SAGE, "infer", "serve", "--port", "0", "--json"], cwd=folder, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line == "}\n":
                break
        try:
            yield json.loads("".join(lines))["url"]
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()


class Results:
    """Outcome of each test, as a pytest plug-in."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("::")[2]
        if hasattr(report, "wasxfail"):
            outcome = "passed" if report.outcome == "passed" else "expected failure"
            self.found[name] = outcome, report.wasxfail.removeprefix("reason: ")
        elif report.when == "call" or report.outcome != "passed":
            self.found[name] = report.outcome, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*WHEELS, []], help="frameworks; all by default")
    parser.add_argument("--json", type=Path, help="write every test's outcome to this file")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    with serving() as url:
        os.environ["SAGE_URL"] = url
        for name in arguments.names or WHEELS:
            plugin = Results()
            pytest.main(
                [
                    str(HERE / f"check_{name}.py"), f"--rootdir={HERE}", "-c", str(HERE / "pytest.ini"), "-v",
                    "--no-header", "--tb=short", "-p", "no:cacheprovider", "-W", "ignore",
                ],
                plugins=[plugin],
            )  # fmt: skip
            results[name] = plugin.found
    print("\n| wheels | passed | expected failures | skipped | failed |\n|---|---:|---:|---:|---:|")
    for name, found in results.items():
        versions = ", ".join(f"{wheel} {importlib.metadata.version(wheel)}" for wheel in WHEELS[name])
        count = Counter(outcome for outcome, _ in found.values())
        kinds = ("passed", "expected failure", "skipped", "failed")
        print(f"| {versions} | " + " | ".join(str(count[kind]) for kind in kinds) + " |")
    for name, found in results.items():
        for test, (outcome, reason) in found.items():
            if outcome in ("failed", "expected failure"):
                print(f"{name}: {test}: {outcome}{reason and ': ' + reason}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))
    is_failed = any(outcome == "failed" for found in results.values() for outcome, _ in found.values())
    return 1 if is_failed or not all(results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

"""The soak of `benchmarks/soak.py`, shortened: real engines, real sockets, and no resource that keeps growing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_half_a_minute_of_mixed_traffic_leaves_nothing_behind(tmp_path: Path) -> None:
    results = tmp_path / "soak.json"
    command = [sys.executable, ROOT / "benchmarks" / "soak.py", "--minutes", "0.5", "--load", "0.5"]
    command += ["--growth-mb", "64"]  # in so short a time memory is still being used for the first time
    done = subprocess.run([*map(str, command), "--json", str(results)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(results.read_text())
    assert set(result["ends"]) == {"answered"}
    assert result["ends"]["answered"] > 10
    assert len(result["samples"]) > 10

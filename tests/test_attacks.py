"""`benchmarks/attacks.py`, shortened: five attacks on real engines are refused, and others get their answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from sage_infer.discovery import model_specs
from sage_infer.models import add_model

ROOT = Path(__file__).resolve().parents[1]


def test_five_attacks_are_refused_and_the_server_lives(tmp_path: Path) -> None:
    for name in ("smollm2-135m", "minilm"):
        add_model(model_specs()[name])
    results = tmp_path / "attacks.json"
    command = [sys.executable, ROOT / "benchmarks" / "attacks.py", "--short", "--seconds", "2"]
    done = subprocess.run([*map(str, command), "--json", str(results)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    attacks = json.loads(results.read_text())["attacks"]
    assert len(attacks) == 5
    for figures in attacks.values():
        assert figures["alive"]
        assert figures["outcomes"]
        assert figures["attacked"]["answered"] > 0

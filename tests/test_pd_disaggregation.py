"""Prefill in one process and decode in another, as examples/pd_disaggregation.py shows it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "pd_disaggregation.py"


@pytest.mark.parametrize("transport", ["tcp", "shm"])
def test_a_request_is_handed_over_to_another_process(transport: str) -> None:
    """The KV of the child's prefill, moved and imported, continues with the text of one instance."""
    before = {path.name for path in Path("/dev/shm").glob("sage-room-*")}
    done = subprocess.run(
        [sys.executable, EXAMPLE, "--transport", transport, "--prompts", "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("same text as one instance") == 2
    assert {path.name for path in Path("/dev/shm").glob("sage-room-*")} <= before, "segments are left"

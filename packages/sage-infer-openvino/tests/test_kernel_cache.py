"""Kernels are cached for the sizes in use, and for a limited number of others (decision 0032)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from encoder_toy import write_encoder
from family_models import CASES, write_gguf
from sage_infer_openvino.models.prepare import prepare_decoder

STEPS = {
    "decoder": """
from sage_infer_openvino.engine.paged_runner import PagedRunner, SequenceSlice
runner = PagedRunner(sys.argv[1], 64)
def step(rows):
    runner.step([SequenceSlice([1] * rows, 0, list(range(-(-rows // runner.block_size))))])
""",
    "encoder": """
from sage_infer_openvino.encoder.encoder import Encoder, EncoderInput
encoder = Encoder(sys.argv[1])
def step(rows):
    encoder.compute([EncoderInput([1] * 3)] * rows)
""",
}
# In a process of its own: oneDNN reads its limit and whether to log once. It logs a line for each primitive that the
# compiled model's own cache does not hold, on the process's standard output, which is a file here.
CHILD = """
import json, os, sys
log = open(sys.argv[2], "w+")
output = os.dup(1)
os.dup2(log.fileno(), 1)
{step}
assert "ONEDNN_PRIMITIVE_CACHE_CAPACITY" not in os.environ, "other libraries would obey it"
def primitives(rows):
    at = os.fstat(1).st_size
    step(rows)
    log.seek(at)
    lines = log.read().splitlines()
    return [sum(",create:cache_" + kind in line for line in lines) for kind in ("hit", "miss")]
def new(first, at_least):
    made, rows = 0, first
    while made < at_least and rows < 1000:
        made += primitives(rows)[1]
        rows += 1
    return made, rows
few = range(1, 9)
for rows in few:
    step(rows)
report = {{"few": [sum(column) for column in zip(*map(primitives, few))]}}
made, rows = new(9, 160)
report["made"] = made
report["after 160"] = primitives(1)
report["made"] += new(rows, 440)[0]
report["after 600"] = primitives(2)
os.write(output, json.dumps(report).encode())
"""


def a_decoder(folder: Path) -> Path:
    return prepare_decoder(write_gguf(CASES["llama"], folder / "m.gguf"), cache_dir=folder / "cache").xml


def an_encoder(folder: Path) -> Path:
    return write_encoder(folder / "encoder", family="bert")


@pytest.mark.parametrize(("kind", "write"), [("decoder", a_decoder), ("encoder", an_encoder)])
def test_kernels_are_kept_for_a_limited_number_of_sizes(
    kind: str, write: Callable[[Path], Path], tmp_path: Path
) -> None:
    child = subprocess.run(
        [sys.executable, "-c", CHILD.format(step=STEPS[kind]), str(write(tmp_path)), str(tmp_path / "log")],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "ONEDNN_VERBOSE": "profile_create"},
    )
    assert child.returncode == 0, child.stderr[-2000:]
    report = json.loads(child.stdout)
    assert report["few"] == [0, 0], "a few sizes that alternate are kept by the compiled model"
    assert report["made"] >= 600, f"too few primitives to exceed oneDNN's limit: {report}"
    # Beyond the model's 128 entries, but within oneDNN's 256: the model asks again, and oneDNN still has them.
    hits, misses = report["after 160"]
    assert hits > 0, f"CPU_RUNTIME_CACHE_CAPACITY is not in force: {report}"
    assert misses == 0, f"oneDNN keeps fewer primitives than it was set to: {report}"
    # Beyond 256, but within oneDNN's default of 1,024.
    assert report["after 600"][1] > 0, f"oneDNN's limit is not in force: {report}"

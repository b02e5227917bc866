"""A process that goes on meeting new sizes of steps does not go on growing (decision 0032)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from encoder_toy import write_encoder
from family_models import CASES, write_gguf
from sage_infer_openvino.prepare import prepare_decoder

# In a process of its own, whose memory is of these steps alone.
STEPS = {
    "decoder": """
from sage_infer_openvino.paged_runner import PagedRunner, SequenceSlice
runner = PagedRunner(sys.argv[1], 64)
def step(rows):
    runner.step([SequenceSlice([1] * rows, 0, list(range(-(-rows // runner.block_size))))])
""",
    "encoder": """
from sage_infer_openvino.encoder import Encoder, EncoderInput
encoder = Encoder(sys.argv[1])
def step(rows):
    encoder.compute([EncoderInput([1] * 3)] * rows)
""",
}
CHILD = """
import os, re, sys
from pathlib import Path
{step}
held = []
step(700)
for rows in range(1, 701):
    step(rows)
    if rows in (400, 700):
        held.append(int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]))
assert "ONEDNN_PRIMITIVE_CACHE_CAPACITY" not in os.environ, "other libraries would obey it"
print(held[1] - held[0])
"""


def a_decoder(folder: Path) -> Path:
    return prepare_decoder(write_gguf(CASES["llama"], folder / "m.gguf"), cache_dir=folder / "cache").xml


def an_encoder(folder: Path) -> Path:
    return write_encoder(folder / "encoder", family="bert")


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs what Linux says of a process's memory"
)
@pytest.mark.parametrize(("kind", "write"), [("decoder", a_decoder), ("encoder", an_encoder)])
def test_new_sizes_of_steps_cost_no_memory_for_good(
    kind: str, write: Callable[[Path], Path], tmp_path: Path
) -> None:
    child = subprocess.run(
        [sys.executable, "-c", CHILD.format(step=STEPS[kind]), str(write(tmp_path))],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    # Without limits 300 MiB and more; with them what the allocator makes of ever larger steps.
    assert int(child.stdout) < 100 * 1024, "KiB more after 300 new sizes"

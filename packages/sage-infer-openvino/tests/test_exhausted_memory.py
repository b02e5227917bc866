"""A step for which the system has no more memory fails; OpenVINO would return the output of the step before."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from sage_infer.errors import OutOfMemory
from sage_infer_openvino.device import infer
from sage_infer_openvino.models.prepare import PreparedDecoder

SCRIPT = """
import json, resource, sys
import numpy as np
from sage_infer.errors import OutOfMemory
from sage_infer_openvino.engine.paged_runner import PagedRunner, SequenceSlice
runner = PagedRunner(sys.argv[1], 64)
runner.warm_up()
def step(count):
    return runner.step([SequenceSlice(list(range(7, 7 + count)), 0, range(count // runner.block_size + 1))]).copy()
limit = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (2**20, limit[1]))
found = {}
for count in (3, 5, 9, 100, 16, 16):
    try:
        found[count] = step(count)
    except Exception as error:
        found[count] = type(error).__name__
resource.setrlimit(resource.RLIMIT_AS, limit)
print(json.dumps([one if isinstance(one, str) else bool(np.array_equal(one, step(n))) for n, one in found.items()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space")
def test_a_step_without_memory_is_right_or_fails(prepared: PreparedDecoder) -> None:
    """Also after the memory has returned."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(prepared.xml)], capture_output=True, text=True, check=True
    )
    for one in json.loads(done.stdout.splitlines()[-1]):
        assert one is True or isinstance(one, str), "the step returned another step's logits"


class Request:
    """An infer request that may do nothing."""

    def __init__(self, *results: np.ndarray | None) -> None:
        self.results, self.data = list(results), np.zeros((0, 3), np.float32)

    def get_tensor(self, name: str) -> Request:
        assert name == "logits"
        return self

    def infer(self, inputs: object) -> None:
        result = self.results.pop(0)
        if result is not None:
            self.data = result


def test_an_output_that_was_not_written_is_an_error() -> None:
    first, second = np.ones((2, 3), np.float32), np.full((2, 3), 5, np.float32)
    request = Request(None, first, None, second)
    for wanted in (None, first, None, second):
        if wanted is None:
            with pytest.raises(OutOfMemory, match="OpenVINO computed nothing"):
                infer(request, "logits")
        else:
            assert np.array_equal(infer(request, "logits"), wanted)

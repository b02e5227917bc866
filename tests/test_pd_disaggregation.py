"""Prefill in one process and decode in another, as examples/pd_disaggregation.py shows it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
from sage_infer import open_backend
from sage_infer.discovery import model_specs
from sage_infer.errors import CapabilityMismatch
from sage_infer.models import add_model
from sage_infer.schemas import SamplingParams, TransportSettings
from sage_infer_transport import TCPEndpoint, TCPTransport, fetch_state, publish_state

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "pd_disaggregation.py"


PIDS = "import os\nwith open({!r}, 'a') as file:\n    print(os.getpid(), file=file)\n"


@pytest.mark.parametrize("transport", ["tcp", "local"])
def test_a_request_is_handed_over_to_another_process(transport: str, tmp_path: Path) -> None:
    """The KV of the child's prefill, moved and imported, continues with the text of one instance."""
    # Segments have the pid of their process in their names; other tests may have some at the same time.
    (tmp_path / "sitecustomize.py").write_text(PIDS.format(str(tmp_path / "pids")))
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, EXAMPLE, "--transport", transport, "--prompts", "2"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("same text as one instance") == 2
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) >= 2
    left = [path.name for path in Path("/dev/shm").glob("sage-room-*") if path.name.split("-")[2] in pids]
    assert not left, "segments are left"


def test_a_state_of_other_weights_is_refused_before_its_bytes_move() -> None:
    """Its source has gone: moving it would be another error."""

    async def main() -> None:
        model = str(add_model(model_specs()["smollm2-135m"]))
        params = SamplingParams(temperature=0.0, max_tokens=4)
        here, there = TCPEndpoint(), TCPEndpoint()
        transport = TCPTransport(settings=TransportSettings())
        async with open_backend("openvino", model=model, kv_cache_gb=0.1) as engine:
            result = await engine.prefill("The capital of France is", request_id="other", params=params)
            state = await publish_state(result.states[0], source=engine, endpoint=here)
            here.close()
            other = attrs.evolve(state, weights_id="0" * 32)
            with pytest.raises(CapabilityMismatch, match="with the weights 0000"):
                await fetch_state(other, target=engine, endpoint=there, transport=transport)
        await transport.close()
        there.close()

    asyncio.run(main())

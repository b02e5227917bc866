"""Every policy decides in a running control plane, and wrong names end `sage llm serve` before it starts anything."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import plane
import pytest
from plane import read, running_plane
from sage_infer.schemas import RequestOptions, SamplingParams
from sage_llm.policies import POLICIES
from toy_engine import ToyExecutor, toy_model


@pytest.mark.parametrize(
    ("policy", "order"),
    [
        *((name, "balanced") for name in POLICIES["placement"]),
        *(("kv-cost", name) for name in POLICIES["order"]),
    ],
)
def test_requests_are_served_by_every_policy(policy: str, order: str) -> None:
    async def main() -> None:
        settings = plane.ControlPlaneSettings(policy=policy, order=order)
        async with running_plane([toy_model()], ToyExecutor(), settings) as manager:
            params = SamplingParams(temperature=0.0, max_tokens=4)

            async def ask(number: int) -> None:
                options = RequestOptions(session=f"s{number % 2}")
                (stream,) = await manager.generate(
                    f"hello {number}", params, request_id=f"r{number}", options=options
                )
                await read(stream)

            await asyncio.gather(*map(ask, range(6)))
            receipts = manager.dispatcher.placement.receipts
            assert len(receipts) == 6
            for receipt in receipts.values():
                assert receipt.replay() == receipt.decision

    asyncio.run(asyncio.wait_for(main(), plane.GUARD_S))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--policy", "kvcost"], "no placement policy 'kvcost'; did you mean 'kv-cost'?"),
        (["--order", "fifo:age=3"], "order policy 'fifo' has no parameter 'age'; its parameters: ageing_s"),
    ],
)
def test_a_wrong_policy_is_an_error_of_the_command(flags: list[str], message: str, smollm2: str) -> None:
    command = [sys.executable, "-m", "sage_infer.cli.main", "llm", "serve", "-m", smollm2, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert message in done.stderr

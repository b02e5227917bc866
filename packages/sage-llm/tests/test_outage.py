"""All instances of a model are down for a while: its requests wait for them, over HTTP, and none is refused."""

from __future__ import annotations

import asyncio
import json

import plane
from plane import running_plane, until
from sage_infer_serve import GatewaySettings, running_gateway
from sage_infer_serve.http.client import Client, Server
from sage_llm.manager.restarts import RestartLimits
from sage_llm.manager.settings import ControlPlaneSettings
from toy_engine import ToyExecutor, toy_model

TARGET_S = 0.001  # any wait that is predicted from the time without instances is longer
REQUESTS = 40  # more than may always wait


def test_requests_wait_for_instances_to_return() -> None:
    async def ask(url: str, number: int) -> int:
        client = Client(Server.parse(url))
        try:
            body = {"model": "toy", "prompt": [1, 2, number], "max_tokens": 4}
            return (await client.post("/v1/completions", json.dumps(body).encode())).status
        finally:
            client.close()

    async def main() -> None:
        settings = ControlPlaneSettings(
            restarts=RestartLimits(first_s=0.01, longest_s=0.05, most=1_000_000), target_wait_s=TARGET_S
        )
        executor = ToyExecutor()
        async with (
            running_plane([toy_model(2)], executor, settings) as manager,
            running_gateway(manager, GatewaySettings(port=0, target_wait_s=TARGET_S)) as running,
        ):
            assert await ask(running.url, 0) == 200
            placement = manager.dispatcher.placement
            executor.failing = 1_000_000
            for engine in executor.engines:
                engine.crash()
            await until(lambda: not placement.instances("toy"))
            asking = [asyncio.create_task(ask(running.url, number)) for number in range(REQUESTS)]
            await until(lambda: len(placement.waiting()) == REQUESTS)
            executor.failing = 0
            assert set(await asyncio.gather(*asking)) == {200}
            assert manager.dispatcher.ends["refused"] == 0

    asyncio.run(asyncio.wait_for(main(), plane.GUARD_S))

"""Requests that end before they run, and replicas that are stopped before they serve."""

from __future__ import annotations

import asyncio
from typing import Any

import plane
import pytest
from plane import read, running_plane, until
from sage_infer.errors import InvalidRequest, ModelNotFound, RequestCancelled
from sage_infer.schemas import ReplicaSpec, SamplingParams
from sage_infer.sdk import BackendReplica
from sage_llm import ControlPlaneSettings
from sage_llm.manager import fleet
from sage_llm.manager.restarts import RestartLimits
from toy_engine import ToyExecutor, toy_model

GREEDY = SamplingParams(temperature=0.0, max_tokens=40)


@pytest.mark.parametrize(
    ("prompts", "aborted"),
    [(["slow"], "a"), (["quick", "slow"], "a"), (["quick", "slow"], "a/0"), (["slow", "quick"], "a")],
)
def test_requests_that_are_cancelled_while_a_prompt_is_tokenized(prompts: list[str], aborted: str) -> None:
    """Their own prompt, or another one of their call."""

    async def main() -> None:
        executor = ToyExecutor()
        async with running_plane([toy_model()], executor) as manager:
            texts = manager._texts["toy"]
            usual, asked, may_go_on = texts.prompt, asyncio.Event(), asyncio.Event()

            async def slow(prompt: Any) -> Any:
                if prompt.text == "slow":
                    asked.set()
                    await may_go_on.wait()
                return await usual(prompt)

            texts.prompt = slow  # type: ignore[method-assign]
            asking = asyncio.ensure_future(manager.generate(prompts, GREEDY, request_id="a"))
            await asked.wait()
            await manager.abort(aborted)
            may_go_on.set()
            with pytest.raises(RequestCancelled):
                await asking
            assert not manager.dispatcher.open
            (stream,) = await manager.generate(["quick"], GREEDY, request_id="a")
            assert len((await read(stream))[0]) == GREEDY.max_tokens
            await until(lambda: not any(len(engine.requests) for engine in executor.engines))

    asyncio.run(asyncio.wait_for(main(), plane.GUARD_S))


def test_a_prompt_that_is_refused_ends_the_others_of_its_call() -> None:
    async def main() -> None:
        async with running_plane([toy_model()], ToyExecutor()) as manager:
            texts = manager._texts["toy"]
            usual = texts.prompt

            async def choosy(prompt: Any) -> Any:
                if prompt.text == "refused":
                    raise InvalidRequest("as the test wants")
                return await usual(prompt)

            texts.prompt = choosy  # type: ignore[method-assign]
            with pytest.raises(InvalidRequest, match="as the test wants"):
                await manager.generate(["good", "refused"], GREEDY)
            assert not manager.dispatcher.open

    asyncio.run(asyncio.wait_for(main(), plane.GUARD_S))


def test_a_replica_that_is_drained_while_it_is_connected_stays_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        executor = ToyExecutor()
        async with running_plane([toy_model()], executor) as manager:
            usual, connecting, may_go_on = fleet.connect, asyncio.Event(), asyncio.Event()

            async def slow(handle: Any) -> Any:
                connecting.set()
                await may_go_on.wait()
                return await usual(handle)

            monkeypatch.setattr(fleet, "connect", slow)
            scaling = asyncio.ensure_future(manager.scale("toy", 3))
            await connecting.wait()
            assert (await manager.drain("toy/2")).open == 0
            may_go_on.set()
            await scaling
            with pytest.raises(ModelNotFound, match="toy/2"):
                manager.fleet.find("toy/2")
            assert (await executor.engines[2].health()).status == "dead", "it runs without an owner"
            assert len(manager.dispatcher.placement.instances("toy")) == 2

    asyncio.run(asyncio.wait_for(main(), plane.GUARD_S))


class Slow(ToyExecutor):
    """Its starts wait until ``gate`` is set; one that is cancelled ends its process before it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()

    async def launch(self, spec: ReplicaSpec) -> BackendReplica:
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
            raise
        return await super().launch(spec)


def test_a_replica_that_was_drained_while_it_restarted_can_be_started_again() -> None:
    async def main() -> None:
        executor = Slow()
        settings = ControlPlaneSettings(restarts=RestartLimits(first_s=0.01))
        async with running_plane([toy_model()], executor, settings) as manager:
            executor.gate.clear()
            executor.engines[0].crash()
            await until(lambda: manager.fleet.replicas["toy/0"].word == "starting")
            assert await manager.restart("toy/0") == []
            assert manager.fleet.replicas["toy/0"].word == "starting", "it is left alone"
            await manager.drain("toy/0")
            executor.gate.set()
            assert await manager.scale("toy", 2) == ["toy/0"]
            assert [replica.word for replica in manager.fleet.of("toy")] == ["running", "running"]

    asyncio.run(asyncio.wait_for(main(), plane.GUARD_S))


def test_a_replica_that_waits_for_its_restart_leaves_no_process_when_it_is_drained() -> None:
    async def main() -> None:
        executor = ToyExecutor()
        async with running_plane([toy_model()], executor) as manager:
            lost = manager.fleet.replicas["toy/0"].instance
            assert lost is not None
            manager.fleet.lose(lost, "as the test wants")
            await manager.drain("toy/0")
            await until(lambda: list(executor.replicas) == ["toy/1"])

    asyncio.run(asyncio.wait_for(main(), plane.GUARD_S))

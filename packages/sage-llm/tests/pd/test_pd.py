"""Requests whose prompt one instance computes and another one continues: failures at every point, toy engines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import plane
import pytest
from plane import read, running_plane, until
from sage_infer.errors import BackendUnavailable, Overloaded, RequestCancelled, UnsupportedFeature
from sage_infer.schemas import ReplicaSpec, RequestOptions, SamplingParams
from sage_infer.sdk import BackendReplica
from sage_llm.commands.tables import decision_lines
from sage_llm.manager.manager import ControlPlaneManager
from sage_llm.manager.pd import HandOverSettings
from sage_llm.manager.restarts import RestartLimits
from sage_llm.manager.settings import ControlPlaneSettings
from toy_engine import ToyExecutor
from toy_pd import STAGES, Stage, Steps, ToyPDExecutor, pd_model

PROMPT = "the quick brown fox jumps over the lazy dog"
PARAMS = SamplingParams(temperature=0.0, max_tokens=24)
SETTINGS = ControlPlaneSettings(
    policy="pd:min_tokens=8,delay_s=1000", restarts=RestartLimits(first_s=0.01, most=100)
)
PREFILL, DECODE = "toy/p0", "toy/0"

Test = Callable[[ControlPlaneManager, ToyPDExecutor, Any], Awaitable[None]]


def side(stage: Stage) -> str:
    """The replica that performs a stage."""
    return PREFILL if stage in ("prefill", "export_kv") else DECODE


def with_pd(test: Test, *, prefill: int = 1, decode: int = 1) -> None:
    """Run a test on toy engines. Whatever happened, nothing is held or counted as open afterwards."""

    async def main() -> None:
        executor = ToyPDExecutor()
        async with running_plane([pd_model(prefill, decode)], executor, SETTINGS) as manager:
            (whole,) = await executor.by_id[DECODE].generate([PROMPT], PARAMS)
            await test(manager, executor, await read(whole))
            await until(lambda: not any(engine.held for engine in executor.engines))
            live = [r.instance for r in manager.fleet.replicas.values() if r.instance is not None]
            await until(lambda: not any(instance.attempts for instance in live))
            snapshot = manager.dispatcher.placement.builder.snapshot(time.monotonic())
            assert not any(view.open for view in snapshot.instances if view is not None)

    asyncio.run(asyncio.wait_for(main(), plane.GUARD_S))


async def ask(manager: ControlPlaneManager, **changes: Any) -> Any:
    (stream,) = await manager.generate([PROMPT], PARAMS, request_id="r", **changes)
    return stream


def test_a_transport_that_is_not_there_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    settings = attrs.evolve(SETTINGS, hand_over=HandOverSettings(transport="pigeon"))
    model = attrs.evolve(pd_model(1, 1), server="somewhere:server")

    class Executor(ToyPDExecutor):
        honours = ("server",)

    async def main() -> None:
        async with running_plane([model], Executor(), settings) as manager:
            assert manager.dispatcher.hand_overs.given_up == 0

    asyncio.run(asyncio.wait_for(main(), plane.GUARD_S))
    (record,) = caplog.records
    assert "no KV moves between replicas" in record.message
    assert "pigeon" in record.message


def test_a_prompt_is_computed_apart() -> None:
    async def test(manager: ControlPlaneManager, executor: ToyPDExecutor, expected: Any) -> None:
        assert await read(await ask(manager)) == expected
        assert executor.by_id[DECODE].seen[1:] == ["decode r"]
        assert executor.by_id[PREFILL].seen == []
        hand_overs = manager.dispatcher.hand_overs
        assert (hand_overs.done, hand_overs.given_up, hand_overs.nbytes) == (1, 0, 2)
        receipt = manager.dispatcher.placement.receipts["r"].to_json()
        assert (receipt["instance"], receipt["prefill_instance"]) == (DECODE, PREFILL)
        text = "\n".join(decision_lines(receipt))
        assert f"prefill on {PREFILL} in" in text
        assert "chosen for the prefill" in text
        metrics = {(m.name, *m.labels.values()): m.value for m in manager.metrics()}
        assert metrics["sage_llm_hand_overs_total", "done"] == 1
        assert metrics["sage_llm_hand_over_bytes_total",] == 2
        roles = {row["instance"]: row["role"] for row in manager.cluster()["replicas"]}
        assert roles == {PREFILL: "prefill", DECODE: "decode"}

    with_pd(test)


class PagedExecutor(ToyPDExecutor):
    """Starts toys whose KV is in pages of 32 tokens, and on prefill replicas of 16."""

    async def launch(self, spec: ReplicaSpec) -> BackendReplica:
        replica = await super().launch(spec)
        size = 16 if spec.role == "prefill" else 32
        capability = replica.descriptor.capability
        assert capability.kv_schema is not None
        schema = attrs.evolve(capability.kv_schema, page_size=size)
        replica.descriptor = attrs.evolve(
            replica.descriptor,
            key_space=f"{size:032x}",
            capability=attrs.evolve(capability, kv_schema=schema),
        )
        return replica


def test_a_store_with_pages_of_two_sizes_is_not_used() -> None:
    """The decode replica would not find the pages, so nothing is computed for it."""

    async def main() -> None:
        settings = attrs.evolve(SETTINGS, hand_over=HandOverSettings(transport="store"))
        executor = PagedExecutor()
        async with running_plane([pd_model()], executor, settings) as manager:
            (whole,) = await executor.by_id[DECODE].generate([PROMPT], PARAMS)
            expected = await read(whole)
            executor.by_id[PREFILL].stops_at = "prefill"
            assert await read(await ask(manager)) == expected
            hand_overs = manager.dispatcher.hand_overs
            assert (hand_overs.done, hand_overs.given_up) == (0, 1)
            text = "\n".join(decision_lines(manager.dispatcher.placement.receipts["r"].to_json()))
            assert f"{DECODE} does not find the KV that {PREFILL} stores" in text
            assert "they differ in page_size; the transports local and tcp convert pages" in text

    asyncio.run(asyncio.wait_for(main(), plane.GUARD_S))


def test_short_prompts_stay() -> None:
    async def test(manager: ControlPlaneManager, executor: ToyPDExecutor, expected: Any) -> None:
        (short,) = await manager.generate(["short"], PARAMS)
        await read(short)
        assert manager.dispatcher.hand_overs.done == 0
        assert executor.by_id[PREFILL].seen == []

    with_pd(test)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("victim", [PREFILL, DECODE])
def test_either_side_is_lost_at_any_point(stage: Stage, victim: str) -> None:
    async def test(manager: ControlPlaneManager, executor: ToyPDExecutor, expected: Any) -> None:
        engine = executor.by_id[side(stage)]
        engine.stops_at = stage
        asking = asyncio.ensure_future(ask(manager))
        await engine.stopped.wait()
        executor.by_id[victim].crash()
        if victim != side(stage):
            engine.stops_at = None
            manager.fleet.lose(manager.fleet.find(victim).instance, "killed by the test")  # type: ignore[arg-type]
        assert await read(await asking) == expected
        assert manager.dispatcher.ends["finished"] == 1
        assert manager.dispatcher.retries == (victim == DECODE)

    with_pd(test)


@pytest.mark.parametrize("stage", STAGES)
def test_a_request_is_cancelled_at_any_point(stage: Stage) -> None:
    async def test(manager: ControlPlaneManager, executor: ToyPDExecutor, expected: Any) -> None:
        engine = executor.by_id[side(stage)]
        engine.stops_at = stage
        asking = asyncio.ensure_future(ask(manager))
        await engine.stopped.wait()
        await manager.abort("r")
        with pytest.raises(RequestCancelled):
            await asking
        assert manager.dispatcher.ends["cancelled"] == 1
        engine.stops_at = None
        assert await read(await ask(manager)) == expected

    with_pd(test)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "error", [Overloaded("no room", retry_after=0.01), UnsupportedFeature("no"), ValueError("a bug")]
)
def test_an_error_at_any_point_is_not_the_requests(stage: Stage, error: Exception) -> None:
    async def test(manager: ControlPlaneManager, executor: ToyPDExecutor, expected: Any) -> None:
        engine = executor.by_id[side(stage)]
        engine.stops_at, engine.raises = stage, error
        assert await read(await ask(manager)) == expected
        hand_overs = manager.dispatcher.hand_overs
        assert (hand_overs.done, hand_overs.given_up) == (0, 1)
        receipt = manager.dispatcher.placement.receipts["r"].to_json()
        assert "instead: " in "\n".join(decision_lines(receipt))

    with_pd(test)


def test_a_deadline_passes_during_the_prefill() -> None:
    async def test(manager: ControlPlaneManager, executor: ToyPDExecutor, expected: Any) -> None:
        executor.by_id[PREFILL].stops_at = "prefill"
        with pytest.raises(RequestCancelled) as caught:
            await ask(manager, options=RequestOptions(deadline=0.05))
        assert caught.value.by == "deadline"

    with_pd(test)


def test_a_model_is_unloaded_during_a_prefill() -> None:
    async def test(manager: ControlPlaneManager, executor: ToyPDExecutor, expected: Any) -> None:
        engine, replica = executor.by_id[PREFILL], manager.fleet.find(PREFILL)
        engine.stops_at = "prefill"
        asking = asyncio.ensure_future(ask(manager))
        await engine.stopped.wait()
        unloading = asyncio.ensure_future(manager.unload_model("toy"))
        await until(lambda: replica.word == "stopping")
        engine.stops_at = None
        assert await read(await asking) == expected
        await unloading
        assert replica.word == "gone"

    with_pd(test)


def test_the_decode_instance_is_lost_while_it_streams() -> None:
    """The stream continues on the prefill instance, which then serves whole requests, until the other one returns."""

    async def test(manager: ControlPlaneManager, executor: ToyPDExecutor, expected: Any) -> None:
        first = executor.by_id[DECODE]
        first.gate = Steps(3)  # type: ignore[assignment]
        stream = await ask(manager)
        await until(lambda: manager.dispatcher.open["r"].ledger.tokens == 3)
        first.crash()
        assert await read(stream) == expected
        assert manager.dispatcher.migrations == 1
        await until(lambda: executor.by_id[DECODE] is not first)
        (again,) = await manager.generate([PROMPT], PARAMS, request_id="again")
        assert await read(again) == expected

    with_pd(test)


def test_prefill_replicas_are_drained_and_decode_replicas_scaled() -> None:
    async def test(manager: ControlPlaneManager, executor: ToyPDExecutor, expected: Any) -> None:
        assert await manager.scale("toy", 2) == ["toy/1"]
        assert manager.fleet.find("toy/1").spec.role == "decode"
        await manager.drain(PREFILL)
        assert await read(await ask(manager)) == expected
        assert manager.dispatcher.hand_overs.done == 0
        await manager.restart("toy")

    with_pd(test)


def test_an_engine_that_cannot_hand_over_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(
            (UnsupportedFeature, BackendUnavailable), match="prefill_decode and kv_export; leave --pd"
        ):
            async with running_plane([pd_model()], ToyExecutor(), SETTINGS):
                pass

    asyncio.run(asyncio.wait_for(main(), plane.GUARD_S))

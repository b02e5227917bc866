"""Scaling of toy replicas: from zero and back, under streams, failed and late starts, status and metrics."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
from plane import read, running_plane, until
from sage_infer.errors import InvalidRequest, Overloaded
from sage_infer.schemas import ReplicaSpec, SamplingParams
from sage_infer.sdk import BackendReplica
from sage_llm import ControlPlaneManager, ControlPlaneSettings
from sage_llm.commands.tables import status_lines
from sage_llm.manager.models import JoinedServer
from sage_llm.manager.restarts import RestartLimits
from sage_llm.scaling.settings import parse_autoscale
from toy_engine import ToyEngine, ToyExecutor, toy_model
from toy_pd import ToyPD

PARAMS = SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True)
FAST = "interval_s=0.01,up_s=0.02,down_s=0.05,idle_s=0.05,smooth_s=0.02"
QUICK = RestartLimits(first_s=0.01, longest_s=0.02)


class Gated(ToyExecutor):
    """Its starts wait until ``gate`` is set."""

    def __init__(self, make: Callable[[], ToyEngine] | None = None) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = self.cancelled = 0
        self._make = make

    async def launch(self, spec: ReplicaSpec) -> BackendReplica:
        self.begun += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self._make is None:
            return await super().launch(spec)
        engine = self._make()
        await engine.start()
        self.engines.append(engine)
        return BackendReplica(spec, engine)


@asynccontextmanager
async def scaled(
    bounds: str, executor: ToyExecutor | None = None, *, prefill: int = 0, **settings: Any
) -> AsyncIterator[tuple[ControlPlaneManager, ToyExecutor]]:
    model = attrs.evolve(
        toy_model(1), autoscale=parse_autoscale(f"{bounds},{FAST}"), prefill_replicas=prefill
    )
    used = executor or Gated()
    limits = ControlPlaneSettings(restarts=QUICK, drain_s=0.0, **settings)
    async with running_plane([model], used, limits) as manager:
        yield manager, used


def row(manager: ControlPlaneManager) -> dict[str, Any]:
    (found,) = manager.cluster()["scaling"]
    return found


def kinds(manager: ControlPlaneManager) -> list[str]:
    return [event["kind"] for event in row(manager)["events"]]


async def asleep(manager: ControlPlaneManager) -> None:
    await until(lambda: not manager.fleet.of("toy"))
    await until(lambda: row(manager)["events"][-1]["kind"] == "stopped")


def test_to_zero_and_back() -> None:
    async def main() -> None:
        async with scaled("0:2") as (manager, executor):
            await asleep(manager)
            assert (row(manager)["desired"], row(manager)["actual"]) == (0, 0)
            assert manager.get_model_status("toy").state == "sleeping"
            assert (await manager.health()).status == "ok"
            executor.gate.clear()
            first = asyncio.ensure_future(manager.generate("ab", PARAMS))
            await until(lambda: row(manager)["starting"] == 1)
            assert manager.get_model_status("toy").state == "sleeping"
            assert (await manager.health()).ok
            second = asyncio.ensure_future(manager.generate("ab", PARAMS))
            await asyncio.sleep(0)
            executor.gate.set()
            texts = [(await read((await asked)[0]))[1] for asked in (first, second)]
            assert texts[0] == texts[1]
            assert len(texts[0]) == 200
            await asleep(manager)
            assert len(executor.engines) >= 2, "another replica than the one of the start"
            assert manager.dispatcher.ends["failed"] == 0
            assert "a request waits and no replica runs" in str(row(manager)["events"])
            assert row(manager)["replica_hours"] > 0

    asyncio.run(main())


def test_waiting_requests_add_replicas_and_idle_ones_are_stopped() -> None:
    async def main() -> None:
        async with scaled("1:3,ttft_s=0.05") as (manager, executor):
            (expected,) = await manager.generate("ab", PARAMS)
            expected_text = (await read(expected))[1]
            executor.engines[0].gate.clear()
            streams = [(await manager.generate("ab", PARAMS))[0] for _ in range(3)]
            reading = [asyncio.ensure_future(read(stream)) for stream in streams]
            await until(lambda: row(manager)["actual"] == 3)
            assert any("wait" in event["text"] for event in row(manager)["events"])
            executor.engines[0].gate.set()
            assert [text for _, text, _, _ in await asyncio.gather(*reading)] == [expected_text] * 3
            await until(lambda: row(manager)["actual"] == 1 and not row(manager)["starting"])
            assert manager.dispatcher.ends["failed"] == 0

    asyncio.run(main())


def test_a_drain_under_streams_loses_nothing() -> None:
    async def main() -> None:
        async with scaled("2:2") as (manager, executor):
            await until(lambda: row(manager)["actual"] == 2)
            (expected,) = await manager.generate("ab", PARAMS)
            expected_text = (await read(expected))[1]
            for engine in executor.engines:
                engine.gate.clear()
            streams = [(await manager.generate("ab", PARAMS))[0] for _ in range(4)]
            reading = [asyncio.ensure_future(read(stream)) for stream in streams]
            await until(lambda: all(i.attempts for i in manager.dispatcher.placement.instances("toy")))
            manager.autoscale("toy", parse_autoscale(f"1:1,{FAST}"))
            await until(lambda: "stopped" in kinds(manager))
            assert re.search(r": 0 requests ended, [1-3] migrated", row(manager)["events"][-1]["text"])
            for engine in executor.engines:
                engine.gate.set()
            assert [text for _, text, _, _ in await asyncio.gather(*reading)] == [expected_text] * 4
            assert (row(manager)["max"], row(manager)["actual"]) == (1, 1)

    asyncio.run(main())


def test_failed_starts_pause_and_are_said() -> None:
    async def main() -> None:
        async with scaled("0:2") as (manager, executor):
            await asleep(manager)
            executor.failing = 3
            (stream,) = await manager.generate("ab", PARAMS)
            assert len((await read(stream))[1]) == 200
            assert kinds(manager).count("failed") == 3
            events = row(manager)["events"]
            failed = next(event["text"] for event in events if event["kind"] == "failed")
            assert "did not start, as the test wants; the plan is withdrawn, next start in 0.01 s" in failed
            await until(lambda: row(manager)["retry_s"] is None)  # a success ends the pauses
            metrics = {
                (metric.name, metric.labels.get("kind", "")): metric.value for metric in manager.metrics()
            }
            assert metrics["sage_llm_scale_events_total", "failed"] == 3
            assert ("sage_llm_scale_desired_replicas", "") in metrics

    asyncio.run(main())


def test_a_failing_start_is_seen_and_refuses_with_the_time_of_the_next_one() -> None:
    async def main() -> None:
        slow = RestartLimits(first_s=40.0)
        model = attrs.evolve(toy_model(1), autoscale=parse_autoscale(f"0:1,{FAST},wait_s=20"))
        executor = Gated()
        async with running_plane([model], executor, ControlPlaneSettings(restarts=slow)) as manager:
            await asleep(manager)
            executor.failing = 1
            with pytest.raises(Overloaded, match=r"did not start.*one is expected in \d+ s") as caught:
                await manager.generate("ab", PARAMS)
            assert 30 < caught.value.retry_after < 80
            assert (
                manager.get_model_status("toy").state == "failed"
                or (await manager.health()).status == "degraded"
            )
            assert not executor.failing
            shown = "\n".join(status_lines({"url": "u", "policy": "p", "order": "o", **manager.cluster()}))
            assert "scaling toy 0:1: 0 wanted, 0 ready" in shown
            assert "next start in 40 s" in shown
            assert "failed" in shown.splitlines()[1]

    asyncio.run(main())


def test_a_request_may_wait_less_than_a_second_for_a_start_that_is_shorter() -> None:
    async def main() -> None:
        async with scaled("0:1,wait_s=0.9") as (manager, _):
            await asleep(manager)
            scaler = manager.scaling.models["toy"]
            scaler.start_s = 0.2
            assert scaler.stranded(0.0) is None
            refused = scaler.stranded(0.8)
            assert isinstance(refused, Overloaded)
            assert refused.retry_after == 1.0  # whole seconds

    asyncio.run(main())


def test_a_late_start_is_withdrawn() -> None:
    async def main() -> None:
        async with scaled("0:1,deadline_s=0.05,wait_s=0.3") as (manager, executor):
            await asleep(manager)
            executor.gate.clear()
            with pytest.raises(Overloaded, match="send it again") as caught:
                await manager.generate("ab", PARAMS)
            assert caught.value.retry_after >= 1
            await until(lambda: "withdrawn" in kinds(manager))
            assert executor.cancelled >= 1
            assert "not ready within 0.05 s; the plan is withdrawn" in str(row(manager)["events"])
            # With more time, the start succeeds.
            executor.gate.set()
            manager.autoscale("toy", parse_autoscale(f"0:1,{FAST}"))
            (stream,) = await manager.generate("ab", PARAMS)
            assert len((await read(stream))[1]) == 200

    asyncio.run(main())


def test_a_start_that_is_no_longer_needed_is_withdrawn() -> None:
    async def main() -> None:
        async with scaled("1:2") as (manager, executor):
            executor.gate.clear()
            manager.autoscale("toy", parse_autoscale(f"2:2,{FAST}"))
            await until(lambda: executor.begun == 2)
            assert row(manager)["starting"] == 1
            manager.autoscale("toy", parse_autoscale(f"1:1,{FAST}"))
            await until(lambda: row(manager)["starting"] == 0)
            assert "toy/1: no longer needed" in row(manager)["events"][-1]["text"]
            assert executor.cancelled == 1
            assert [replica.replica_id for replica in manager.fleet.of("toy")] == ["toy/0"]
            executor.gate.set()
            manager.autoscale("toy", parse_autoscale(f"2:2,{FAST}"))
            await until(lambda: row(manager)["actual"] == 2)
            # A fixed number ends scaling.
            assert await manager.scale("toy", 1) == ["toy/1"]
            assert manager.cluster()["scaling"] == []

    asyncio.run(main())


def test_a_replica_that_has_just_become_ready_is_drained() -> None:
    async def main() -> None:
        async with scaled("1:2") as (manager, executor):
            executor.gate.clear()
            manager.autoscale("toy", parse_autoscale(f"2:2,{FAST}"))
            await until(lambda: row(manager)["starting"] == 1)
            executor.gate.set()
            while row(manager)["actual"] < 2:  # noqa: ASYNC110 - each turn of the loop, to meet the first one in which it is open
                await asyncio.sleep(0)
            assert row(manager)["starting"] == 1, "its start has not returned yet"
            assert await manager.scale("toy", 1) == ["toy/1"]
            assert [replica.replica_id for replica in manager.fleet.of("toy")] == ["toy/0"]

    asyncio.run(main())


def test_a_replica_that_is_not_restarted_any_more_is_replaced() -> None:
    async def main() -> None:
        limits = RestartLimits(first_s=0.01, longest_s=0.02, most=1)
        model = attrs.evolve(toy_model(1), autoscale=parse_autoscale(f"1:2,{FAST}"))
        executor = Gated()
        async with running_plane([model], executor, ControlPlaneSettings(restarts=limits)) as manager:
            executor.engines[0].crash()
            await until(lambda: len(executor.engines) == 2 and row(manager)["actual"] == 1)
            (stream,) = await manager.generate("ab", PARAMS)
            assert len((await read(stream))[1]) == 200
            assert "failed" in kinds(manager)

    asyncio.run(main())


def test_decode_replicas_are_added_beside_prefill_replicas() -> None:
    async def main() -> None:
        executor = Gated(ToyPD)
        async with scaled("2:4,ttft_s=0.05", executor, prefill=1, policy="pd") as (manager, _):
            assert {replica.spec.role for replica in manager.fleet.of("toy")} == {"prefill", "decode"}
            for engine in executor.engines:
                engine.gate.clear()
            reading = [
                asyncio.ensure_future(read((await manager.generate("ab", PARAMS))[0])) for _ in range(3)
            ]
            await until(lambda: row(manager)["actual"] == 4)
            assert (row(manager)["prefill"], row(manager)["desired"]) == (1, 4)
            assert any("1:1 → 1:2" in event["text"] for event in row(manager)["events"])
            for engine in executor.engines:
                engine.gate.set()
            assert len({text for _, text, _, _ in await asyncio.gather(*reading)}) == 1
            await until(lambda: row(manager)["actual"] == 2 and row(manager)["desired"] == 2)
            assert row(manager)["prefill"] == 1

    asyncio.run(main())


def test_scaling_continues_after_a_fault() -> None:
    async def main() -> None:
        async with scaled("1:2") as (manager, _):
            scaler, faults = manager.scaling.models["toy"], []
            usual = scaler.look

            def sometimes(now: float) -> None:
                if len(faults) < 3:
                    faults.append(now)
                    raise ZeroDivisionError("a fault of this test")
                usual(now)

            scaler.look = sometimes  # type: ignore[method-assign]
            manager.autoscale("toy", parse_autoscale(f"2:2,{FAST}"))
            await until(lambda: row(manager)["actual"] == 2)
            assert len(faults) == 3

    asyncio.run(main())


def test_models_that_cannot_be_scaled() -> None:
    async def main() -> None:
        async with running_plane([toy_model(1)], Gated()) as manager:
            bounds = parse_autoscale("0:1")
            for changes, wanted in (
                ({"joined": (JoinedServer(url="http://host"),)}, "joined servers"),
                ({"backend": "openai"}, "server of others"),
                ({"prefill_replicas": 1}, "at least 2"),
            ):
                manager.served["toy"] = attrs.evolve(toy_model(1), **changes)
                with pytest.raises(InvalidRequest, match=wanted):
                    manager.autoscale("toy", bounds)

    asyncio.run(main())

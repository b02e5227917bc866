"""Every accepted request ends exactly once, whatever happens to its instances."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import attrs
import plane
import pytest
from plane import read, running_plane, until
from sage_infer.errors import EngineDead, InvalidRequest, Overloaded, PluginFailed, RequestCancelled
from sage_infer.schemas import RequestOptions, SamplingParams
from sage_llm import policies
from sage_llm.commands.tables import decision_lines
from sage_llm.manager.health import HealthLimits
from sage_llm.manager.live_instance import LiveInstance
from sage_llm.manager.manager import ControlPlaneManager
from sage_llm.manager.migration import NotMigratable, PoisonRequest, RecoveryLimits
from sage_llm.manager.request import ManagedRequest
from sage_llm.manager.restarts import RestartLimits
from sage_llm.manager.settings import ControlPlaneSettings
from sage_llm.receipts import find_receipt
from sage_llm.types import Decision, RequestView, Snapshot
from toy_engine import POISON, ToyExecutor, busy, toy_model

GREEDY = SamplingParams(temperature=0.0, max_tokens=40)
QUICK = ControlPlaneSettings(restarts=RestartLimits(first_s=0.01, most=50))
SOON_SUSPECT = attrs.evolve(QUICK, health=HealthLimits(suspect_s=0.3, lost_s=0.6, revive_s=plane.GUARD_S))
# No instance seems to be lost on a busy machine.
CALM = attrs.evolve(QUICK, health=HealthLimits(suspect_s=plane.GUARD_S, lost_s=plane.GUARD_S))


class Cluster:
    """A control plane over toy engines."""

    def __init__(self, manager: ControlPlaneManager, executor: ToyExecutor) -> None:
        self.manager, self.executor = manager, executor

    async def streams(self, count: int = 8, params: SamplingParams = GREEDY) -> list[Any]:
        return [(await self.manager.generate(f"prompt {n}", params))[0] for n in range(count)]

    async def undisturbed(self, count: int = 8, params: SamplingParams = GREEDY) -> list[Any]:
        return list(await asyncio.gather(*map(read, await self.streams(count, params))))

    @property
    def ends(self) -> dict[str, int]:
        return self.manager.dispatcher.ends

    def close_gates(self) -> None:
        for engine in self.executor.engines:
            engine.gate.clear()

    def open_gates(self) -> None:
        for engine in self.executor.engines:
            engine.gate.set()


def on_cluster(
    test: Callable[[Cluster], Coroutine[Any, Any, None]],
    *,
    replicas: int = 2,
    settings: ControlPlaneSettings = QUICK,
    **options: Any,
) -> None:
    async def main() -> None:
        executor = ToyExecutor(**options)
        async with running_plane([toy_model(replicas)], executor, settings) as manager:
            await test(Cluster(manager, executor))
        assert not manager.dispatcher.open

    asyncio.run(asyncio.wait_for(main(), plane.GUARD_S))


async def after_some_tokens(cluster: Cluster, streams: list[Any]) -> list[Any]:
    """Start reading, and stop all engines once each stream has a token."""
    reading = [asyncio.ensure_future(read(stream)) for stream in streams]
    await until(lambda: all(r.ledger.has_started for r in cluster.manager.dispatcher.open.values()))
    cluster.close_gates()
    return reading


def running_on(cluster: Cluster, replica_id: str) -> tuple[LiveInstance, list[str]]:
    """A replica's instance, and the ids of the requests that run there."""
    instance = cluster.manager.fleet.find(replica_id).instance
    assert instance is not None
    found = [request.request_id for request in cluster.manager.dispatcher.on(instance)]
    assert found, "all streams ended before"
    return instance, found


def test_streams_continue_after_a_crash() -> None:
    async def test(cluster: Cluster) -> None:
        expected = await cluster.undisturbed()
        reading = await after_some_tokens(cluster, await cluster.streams())
        assert cluster.manager.dispatcher.open, "all streams ended before the crash"
        cluster.executor.engines[0].crash()
        cluster.open_gates()
        assert await asyncio.gather(*reading) == expected
        assert cluster.ends == {"finished": 16, "cancelled": 0, "refused": 0, "failed": 0}

    on_cluster(test)


def test_the_only_instance_returns() -> None:
    """Requests wait for the restart, those with tokens and those without."""

    async def test(cluster: Cluster) -> None:
        expected = await cluster.undisturbed(4)
        cluster.close_gates()
        reading = [asyncio.ensure_future(read(stream)) for stream in await cluster.streams(4)]
        cluster.executor.engines[0].crash()
        assert await asyncio.gather(*reading) == expected
        (replica,) = cluster.manager.fleet.replicas.values()
        assert replica.restarts.total == 1
        assert cluster.manager.dispatcher.retries == 4

    on_cluster(test, replicas=1)


def test_engines_without_resume_replay_where_that_is_exact() -> None:
    async def test(cluster: Cluster) -> None:
        expected = await cluster.undisturbed(4)
        exact = await cluster.streams(4)
        penalized = await cluster.streams(
            4, SamplingParams(temperature=0.0, max_tokens=40, presence_penalty=1.0)
        )
        reading = await after_some_tokens(cluster, [*exact, *penalized])
        for engine in list(cluster.executor.engines):
            engine.crash()
        found = await asyncio.gather(*reading, return_exceptions=True)
        assert found[:4] == expected
        for error in found[4:]:
            assert isinstance(error, NotMigratable)
            assert "presence_penalty" in error.message

    on_cluster(test, claims_resume=False)


def test_a_request_is_not_blamed_for_an_instance_that_crashed_with_its_own() -> None:
    """Nothing is sent to an instance whose crash is seen a moment later."""

    async def test(cluster: Cluster) -> None:
        expected = await cluster.undisturbed(4)
        reading = await after_some_tokens(cluster, await cluster.streams(4))
        first, second = cluster.executor.engines
        first.crash()
        await until(lambda: cluster.manager.dispatcher.migrations)
        for _ in range(4):
            await asyncio.sleep(0)
        cluster.manager.dispatcher.limits = RecoveryLimits(settle_s=0.0)
        second.crash()
        assert await asyncio.gather(*reading) == expected
        assert not [request_id for request_id in second.seen if "~" in request_id]

    settings = attrs.evolve(QUICK, recovery=RecoveryLimits(settle_s=plane.GUARD_S))
    on_cluster(test, settings=settings)


def test_a_poison_request_ends_alone() -> None:
    async def test(cluster: Cluster) -> None:
        expected = await cluster.undisturbed(6)

        async def send(prompt: list[int]) -> None:
            (stream,) = await cluster.manager.generate(prompt, GREEDY)
            await read(stream)

        good = [asyncio.ensure_future(read(stream)) for stream in await cluster.streams(6)]
        with pytest.raises(PoisonRequest, match="crashed"):
            await send([POISON, 1])
        assert await asyncio.gather(*good) == expected
        assert sum(engine.crashes for engine in cluster.executor.engines) == 3
        with pytest.raises(PoisonRequest, match="within the last hour"):
            await cluster.manager.generate([POISON, 1], GREEDY)
        await until(lambda: len(cluster.manager.dispatcher.placement.instances("toy")) == 2)
        assert await cluster.undisturbed(6) == expected

    on_cluster(test)


def test_the_request_that_got_least_far_is_tried_first() -> None:
    async def test(cluster: Cluster) -> None:
        expected = await cluster.undisturbed(6)
        dispatcher = cluster.manager.dispatcher
        tried: list[str] = []
        isolated = dispatcher.placement.isolated

        def note(request: ManagedRequest, instance: LiveInstance, now: float) -> None:
            tried.append(request.request_id)
            isolated(request, instance, now)

        dispatcher.placement.isolated = note  # type: ignore[method-assign]
        good = await after_some_tokens(cluster, await cluster.streams(6))
        (bad,) = await cluster.manager.generate([POISON, 1], GREEDY, request_id="bad")
        cluster.open_gates()
        with pytest.raises(PoisonRequest, match="crashed"):
            await read(bad)
        assert await asyncio.gather(*good) == expected
        assert tried[0] == "bad"
        assert not dispatcher.trials.waiting
        assert not any(i.is_isolated for i in dispatcher.placement.instances("toy"))

    on_cluster(test, settings=CALM)


def test_suspects_are_tried_on_busy_instances() -> None:
    """Two crashes without a culprit, and load under which no instance is ever idle."""

    async def test(cluster: Cluster) -> None:
        expected = await cluster.undisturbed(6)
        dispatcher, stop = cluster.manager.dispatcher, asyncio.Event()
        reading = await after_some_tokens(cluster, await cluster.streams(6))
        instance, moved = running_on(cluster, "toy/0")
        (other,) = [engine for engine in cluster.executor.engines if engine is not instance.backend]
        instance.backend.crash()
        await until(lambda: {f"{name}~2" for name in moved} <= set(other.seen))
        other.crash()

        async def load() -> None:
            while not stop.is_set():
                await cluster.undisturbed(1)

        loads = [asyncio.ensure_future(load()) for _ in range(6)]
        assert await asyncio.gather(*reading) == expected
        stop.set()
        await asyncio.gather(*loads)
        assert not dispatcher.trials.waiting
        assert not any(i.is_isolated for i in dispatcher.placement.instances("toy"))
        assert cluster.ends["failed"] == 0

    # The requests of the first instance shall reach the second one, and not the first one's successor.
    on_cluster(test, settings=attrs.evolve(CALM, recovery=RecoveryLimits(settle_s=0.0)))


def test_a_silent_instance_loses_its_requests_and_returns() -> None:
    """What it says later is dropped: no token twice."""

    async def test(cluster: Cluster) -> None:
        expected = await cluster.undisturbed()
        reading = await after_some_tokens(cluster, await cluster.streams())
        silent, other = cluster.executor.engines
        instance = next(
            r.instance
            for r in cluster.manager.fleet.replicas.values()
            if r.instance and r.instance.backend is silent
        )
        assert instance.attempts
        silent.answering.clear()
        await until(lambda: instance.word == "lost")
        assert not instance.attempts
        other.gate.set()
        silent.gate.set()
        assert await asyncio.gather(*reading) == expected
        silent.answering.set()
        await until(lambda: instance.word in ("probation", "ready"))
        assert await cluster.undisturbed() == expected
        while instance.word != "ready":  # some of the requests go to the other one
            await cluster.undisturbed()

    on_cluster(test, settings=SOON_SUSPECT)


def test_a_busy_instance_is_avoided_and_a_full_cluster_refuses() -> None:
    async def test(cluster: Cluster) -> None:
        first, second = cluster.executor.engines
        first.refuses = busy(retry_after=60.0)
        await cluster.undisturbed(4)
        assert len(second.seen) == 4
        second.refuses = first.refuses
        with pytest.raises(Overloaded):
            await cluster.manager.generate("full", GREEDY)
        assert cluster.ends["refused"] == 1

    on_cluster(test)


def test_faults_are_retried_elsewhere_and_open_the_breaker() -> None:
    async def test(cluster: Cluster) -> None:
        first, second = cluster.executor.engines
        first.refuses = ValueError("as the test wants")
        expected = await cluster.undisturbed(12)
        assert len(second.seen) == 12
        broken = next(i for i in cluster.manager.dispatcher.placement.instances("toy") if i.backend is first)
        assert broken.breaker.is_open
        second.refuses = ValueError("as the test wants")
        with pytest.raises((PluginFailed, EngineDead)):
            await cluster.manager.generate("nowhere", GREEDY)
        first.refuses = second.refuses = None
        await until(lambda: broken.has_room(asyncio.get_running_loop().time()))
        assert await cluster.undisturbed(12) == expected

    on_cluster(test)


def test_invalid_requests_are_not_retried() -> None:
    async def test(cluster: Cluster) -> None:
        with pytest.raises(InvalidRequest, match="vocabulary"):
            await cluster.manager.generate([1, 2, 1000], GREEDY)
        cluster.close_gates()
        await cluster.manager.generate("one", GREEDY, request_id="same")
        with pytest.raises(InvalidRequest, match="in use"):
            await cluster.manager.generate("two", GREEDY, request_id="same")
        assert cluster.manager.dispatcher.retries == 0

    on_cluster(test)


def test_cancel_abort_and_deadline_end_a_request_once() -> None:
    async def test(cluster: Cluster) -> None:
        cluster.close_gates()
        (left,) = await cluster.manager.generate("left", GREEDY)
        left.cancel()
        (aborted,) = await cluster.manager.generate("aborted", GREEDY, request_id="a")
        await cluster.manager.abort("a")
        for stream in (left, aborted):
            with pytest.raises(RequestCancelled) as found:
                await read(stream)
            assert found.value.by == "caller"

        async def late() -> None:
            options = RequestOptions(deadline=0.2)
            (stream,) = await cluster.manager.generate("late", GREEDY, options=options)
            await read(stream)

        with pytest.raises(RequestCancelled) as found:
            await late()
        assert found.value.by == "deadline"
        assert cluster.ends == {"finished": 0, "cancelled": 3, "refused": 0, "failed": 0}
        await until(lambda: not any(len(engine.requests) for engine in cluster.executor.engines))

    on_cluster(test)


def test_a_fault_in_what_is_learned_from_a_request_does_not_keep_it_open() -> None:
    async def test(cluster: Cluster) -> None:
        expected = await cluster.undisturbed(4)

        def broken(request: Any, usage: Any) -> None:
            raise ZeroDivisionError("a fault of this test")

        cluster.manager.dispatcher.placement.finished = broken  # type: ignore[method-assign]
        assert await cluster.undisturbed(4) == expected
        assert cluster.ends == {"finished": 8, "cancelled": 0, "refused": 0, "failed": 0}
        await until(
            lambda: not any(i.attempts for i in cluster.manager.dispatcher.placement.instances("toy"))
        )

    on_cluster(test)


def test_a_fault_on_arrival_does_not_keep_a_request_open() -> None:
    async def test(cluster: Cluster) -> None:
        placement = cluster.manager.dispatcher.placement
        usual = placement.arrive

        def broken(*arguments: Any, **options: Any) -> None:
            raise ZeroDivisionError("a fault of this test")

        placement.arrive = broken  # type: ignore[method-assign]
        with pytest.raises(ZeroDivisionError):
            await cluster.manager.generate("prompt", GREEDY)
        placement.arrive = usual  # type: ignore[method-assign]
        assert not cluster.manager.dispatcher.open
        assert cluster.ends["cancelled"] == 1
        await cluster.undisturbed(4)

    on_cluster(test)


class OddPolicy:
    """The default placement, which fails for some requests."""

    name = "odd"

    def __init__(self) -> None:
        self.fails: set[str] = set()
        self.usual = policies.placement()

    def place(self, request: RequestView, snapshot: Snapshot) -> Decision:
        if request.id in self.fails:
            raise ZeroDivisionError("a fault of this test")
        return self.usual.place(request, snapshot)


def test_a_fault_of_the_policy_ends_its_request_only() -> None:
    """On arrival, and while the request waits for an instance to return."""

    async def test(cluster: Cluster) -> None:
        policy = cluster.manager.dispatcher.placement.policy = OddPolicy()
        policy.fails = {"bad"}
        with pytest.raises(
            PluginFailed, match="placement policy 'odd' failed: ZeroDivisionError: a fault of"
        ):
            await cluster.manager.generate("prompt", GREEDY, request_id="bad")
        (good,) = await cluster.undisturbed(1)
        (first,) = await cluster.manager.generate("prompt 0", GREEDY, request_id="first")
        (second,) = await cluster.manager.generate("prompt 0", GREEDY, request_id="second")
        reading = await after_some_tokens(cluster, [first, second])
        policy.fails = {"first"}
        cluster.executor.engines[0].crash()
        await until(lambda: len(cluster.executor.engines) > 1)
        cluster.open_gates()
        with pytest.raises(PluginFailed, match="placement policy 'odd' failed"):
            await reading[0]
        assert await reading[1] == good

    on_cluster(test, replicas=1)


def test_the_replicas_are_watched_after_a_fault() -> None:
    async def test(cluster: Cluster) -> None:
        dispatcher, calls = cluster.manager.dispatcher, []
        usual = dispatcher.refuse_stranded

        def sometimes(now: float) -> None:
            calls.append(now)
            if len(calls) < 3:
                raise ZeroDivisionError("a fault of this test")
            usual(now)

        dispatcher.refuse_stranded = sometimes  # type: ignore[method-assign]
        await until(lambda: len(calls) > 3)
        cluster.executor.engines[0].answering.clear()
        instance = dispatcher.placement.instances("toy")[0]
        await until(lambda: instance.word in ("suspect", "lost"))
        cluster.executor.engines[0].answering.set()
        await until(lambda: instance.word == "ready" or instance.word == "probation")

    on_cluster(test, settings=SOON_SUSPECT)


def test_drain_moves_long_streams() -> None:
    async def test(cluster: Cluster) -> None:
        expected = await cluster.undisturbed()
        reading = await after_some_tokens(cluster, await cluster.streams())
        replica = cluster.manager.fleet.find("toy/0")
        result = await cluster.manager.drain("toy/0", deadline_s=0.0)
        assert result.migrated == result.open > 0
        assert replica.word == "gone"
        cluster.open_gates()
        assert await asyncio.gather(*reading) == expected
        with pytest.raises(InvalidRequest, match="sage llm scale"):
            await cluster.manager.drain("toy/1")
        assert await cluster.manager.scale("toy", 2) == ["toy/0"]
        assert await cluster.undisturbed() == expected

    on_cluster(test)


def test_requests_of_a_drained_replica_move_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at a time are computed again on the other instance; the rest continues where it is."""
    monkeypatch.setattr("sage_llm.manager.fleet._HASTY_S", plane.GUARD_S)

    async def test(cluster: Cluster) -> None:
        expected = await cluster.undisturbed()
        reading = await after_some_tokens(cluster, await cluster.streams())
        instance, there = running_on(cluster, "toy/0")
        (other,) = [engine for engine in cluster.executor.engines if engine is not instance.backend]
        draining = asyncio.ensure_future(cluster.manager.drain("toy/0", deadline_s=0.0))
        await until(lambda: len([name for name in other.seen if name.endswith("~2")]) == 2)
        instance.backend.gate.set()
        result = await draining
        assert (result.open, result.migrated, result.ended) == (len(there), 2, len(there) - 2)
        cluster.open_gates()
        assert await asyncio.gather(*reading) == expected

    on_cluster(test, settings=CALM)


def test_rolling_restart_under_load() -> None:
    async def test(cluster: Cluster) -> None:
        expected = await cluster.undisturbed()
        stop = asyncio.Event()

        async def load() -> int:
            rounds = 0
            while not stop.is_set() or not rounds:
                assert await cluster.undisturbed() == expected
                rounds += 1
            return rounds

        loading = asyncio.ensure_future(load())
        before = list(cluster.executor.engines)
        results = await cluster.manager.restart()
        stop.set()
        await loading
        assert [result.replica_id for result in results] == ["toy/0", "toy/1"]
        assert not set(before) & {i.backend for i in cluster.manager.dispatcher.placement.instances("toy")}
        assert cluster.ends["failed"] == cluster.ends["refused"] == 0

    on_cluster(test)


def test_a_replica_that_an_operator_restarts_is_not_in_probation() -> None:
    """Else the requests of the next one that is restarted would wait for it."""

    async def test(cluster: Cluster) -> None:
        await cluster.manager.restart()
        instances = cluster.manager.dispatcher.placement.instances("toy")
        assert [instance.word for instance in instances] == ["ready", "ready"]
        cluster.executor.engines[-1].crash()
        await until(lambda: any(i.word == "probation" for i in instances))

    on_cluster(test)


def test_a_move_is_explained_and_counted() -> None:
    async def test(cluster: Cluster) -> None:
        reading = await after_some_tokens(cluster, await cluster.streams())
        manager = cluster.manager
        instance, moved = running_on(cluster, "toy/0")
        instance.backend.crash()
        cluster.open_gates()
        await asyncio.gather(*reading)
        kept = manager.dispatcher.placement.receipts
        receipts = [find_receipt(kept, f"chatcmpl-{one}").to_json() for one in moved]
        moves = [move for receipt in receipts for move in receipt["moves"]]
        assert [move["instance"] for move in moves] == [instance.instance_id] * len(moved)
        assert all(move["wait_s"] > 0 < move["restore_s"] for move in moves)
        for receipt in receipts:
            (line,) = [line for line in decision_lines(receipt) if "next token" in line]
            assert f"left {instance.instance_id} (" in line
        values = {metric.name: metric.value for metric in manager.metrics()}
        assert values["sage_llm_interruptions_total"] == len(moved)
        for part in ("wait", "restore"):
            found = values[f"sage_llm_interruption_{part}_seconds_total"]
            assert found == pytest.approx(sum(move[f"{part}_s"] for move in moves))

    on_cluster(test, settings=CALM)


def test_a_replica_starts_again_after_moved_requests_have_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then, its start would take CPU time from the instance that computes them again."""
    monkeypatch.setattr("sage_llm.manager.fleet._CATCH_UP_S", plane.GUARD_S)
    monkeypatch.setattr("sage_llm.manager.fleet._AT_ONCE", len(plane.QUESTIONS))

    async def test(cluster: Cluster) -> None:
        reading = await after_some_tokens(cluster, await cluster.streams())
        instance, moved = running_on(cluster, "toy/0")
        (other,) = [engine for engine in cluster.executor.engines if engine is not instance.backend]
        restarting = asyncio.ensure_future(cluster.manager.restart("toy/0"))
        await until(lambda: {f"{name}~2" for name in moved} <= set(other.seen))
        await until(lambda: cluster.manager.fleet.replicas["toy/0"].word == "starting")
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(cluster.executor.engines) == 2
        cluster.open_gates()
        await restarting
        assert len(cluster.executor.engines) == 3
        await asyncio.gather(*reading)

    on_cluster(test, settings=CALM)


def test_a_replica_that_fails_again_and_again_is_given_up() -> None:
    async def test(cluster: Cluster) -> None:
        cluster.executor.failing = 50
        cluster.executor.engines[0].crash()
        (replica,) = cluster.manager.fleet.replicas.values()
        await until(lambda: replica.word == "failed")
        with pytest.raises(EngineDead, match="sage llm status"):
            await cluster.manager.generate("nowhere", GREEDY)
        assert (await cluster.manager.health()).status == "dead"
        assert cluster.manager.get_model_status("toy").state == "failed"

    limits = RestartLimits(first_s=0.001, most=4)
    on_cluster(test, replicas=1, settings=ControlPlaneSettings(restarts=limits))


def test_a_request_moves_only_so_often() -> None:
    async def test(cluster: Cluster) -> None:
        cluster.close_gates()
        (stream,) = await cluster.manager.generate("moved", GREEDY)
        (request,) = cluster.manager.dispatcher.open.values()
        assert request.attempt is not None
        request.attempt.instance.backend.crash()
        with pytest.raises(EngineDead, match="moved 0 times"):
            await read(stream)

    on_cluster(test, settings=ControlPlaneSettings(recovery=RecoveryLimits(migrations=0)))

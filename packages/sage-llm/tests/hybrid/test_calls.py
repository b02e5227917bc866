"""Embedding and reranking requests: batches, exact accounts, and exactly one end each."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from plane import until
from sage_infer.errors import EngineDead, InvalidRequest, Overloaded, RequestCancelled
from sage_infer.schemas import RequestOptions
from sage_llm.commands.tables import status_lines
from sage_llm.manager.calls.batch import BatchLimits
from sage_llm.manager.manager import ControlPlaneManager
from toy_encoder import PATIENT_S, MixedExecutor, on_encoders, quick
from toy_engine import busy


def start(manager: ControlPlaneManager, *texts: Any, **keywords: Any) -> asyncio.Task[Any]:
    return asyncio.ensure_future(manager.embed(list(texts), "vectors", **keywords))


async def first(manager: ControlPlaneManager, executor: MixedExecutor) -> asyncio.Task[Any]:
    """A request that keeps the only encoder busy, after another one has shown that it counts tokens."""
    (encoder,) = executor.encoders
    await manager.embed(["warm"], "vectors")
    encoder.gate.clear()
    running = start(manager, "first")
    await until(lambda: encoder.calls[-1] == ("first",))
    return running


def test_requests_that_wait_together_form_one_call() -> None:
    async def test(manager: ControlPlaneManager, executor: MixedExecutor) -> None:
        running = await first(manager, executor)
        (encoder,) = executor.encoders
        together = [start(manager, "aa", "b"), start(manager, "cccc"), start(manager, "d", "ee", "f")]
        await until(lambda: len(manager.dispatcher.calls.open) == 4)
        encoder.gate.set()
        results = await asyncio.gather(*together)
        assert encoder.calls == [("warm",), ("first",), ("aa", "b", "cccc", "d", "ee", "f")]
        assert [len(result) for result in results] == [2, 1, 3]
        assert [result.usage.prompt_tokens for result in results] == [3, 4, 4]
        assert [vector[1] for result in results for vector in result.vectors] == [2, 1, 4, 1, 2, 1]
        await running
        status = {"url": "u", "policy": "p", "order": "o", **manager.cluster()}
        assert status_lines(status)[-2] == "calls: 0 open; embed 5 finished; 3 batches"
        found = {
            (m.name, m.labels.get("outcome")): m.value
            for m in manager.metrics()
            if m.labels.get("kind") != "rerank"
        }
        assert found["sage_llm_calls_total", "finished"] == 5
        assert found["sage_llm_batches_total", None] == 3

    on_encoders(test)


def test_a_batch_ends_at_its_token_budget() -> None:
    async def test(manager: ControlPlaneManager, executor: MixedExecutor) -> None:
        running = await first(manager, executor)
        (encoder,) = executor.encoders
        several = [start(manager, f"{n}" * 40) for n in range(4)]  # 11 tokens each, as estimated
        large = start(manager, *("x" * 40 for _ in range(9)))
        await until(lambda: len(manager.dispatcher.calls.open) == 6)
        encoder.gate.set()
        await asyncio.gather(running, large, *several)
        sizes = [len(texts) for texts in encoder.calls[2:]]
        assert sorted(sizes) == [2, 2, 9]

    on_encoders(test, settings=quick(batches=BatchLimits(tokens=25, window_s=PATIENT_S)))


def test_the_window_ends_while_the_instance_is_busy() -> None:
    async def test(manager: ControlPlaneManager, executor: MixedExecutor) -> None:
        running = await first(manager, executor)
        (encoder,) = executor.encoders
        second = start(manager, "second")
        await until(lambda: encoder.calls[-1] == ("second",))  # although the first one still runs
        encoder.gate.set()
        await asyncio.gather(running, second)

    on_encoders(test, settings=quick(batches=BatchLimits(window_s=0.002)))


def test_a_bad_text_harms_no_other_request_of_its_batch() -> None:
    async def test(manager: ControlPlaneManager, executor: MixedExecutor) -> None:
        running = await first(manager, executor)
        (encoder,) = executor.encoders
        good, bad, other = start(manager, "good"), start(manager, "ok", "x" * 65), start(manager, "other")
        await until(lambda: len(manager.dispatcher.calls.open) == 4)
        encoder.gate.set()
        assert (await good).vectors[0][1] == 4
        with pytest.raises(InvalidRequest, match="text 1 has 65"):
            await bad
        assert (await other).usage.prompt_tokens == 5
        await running
        assert encoder.calls[2] == ("good", "ok", "x" * 65, "other")
        with pytest.raises(InvalidRequest, match="text 1 is empty"):
            await manager.embed(["a", ""], "vectors")

    on_encoders(test)


def test_cancellation_of_one_request_leaves_the_others() -> None:
    async def test(manager: ControlPlaneManager, executor: MixedExecutor) -> None:
        running = await first(manager, executor)
        (encoder,) = executor.encoders
        left = start(manager, "left")
        aborted, stays = start(manager, "aborted", request_id="a"), start(manager, "stays")
        await until(lambda: len(manager.dispatcher.calls.open) == 4)
        left.cancel()
        await until(lambda: len(manager.dispatcher.calls.open) == 3)
        (batch,) = manager.dispatcher.placement.instances("vectors")[0].forming.values()
        batch.close()
        await until(lambda: encoder.calls[-1] == ("aborted", "stays"))
        await manager.abort("a")
        with pytest.raises(RequestCancelled) as found:
            await aborted
        assert found.value.by == "caller"
        encoder.gate.set()
        assert (await stays).usage.prompt_tokens == 5
        await running
        assert encoder.cancelled == 0
        encoder.gate.clear()
        alone = start(manager, "alone", request_id="b")
        await until(lambda: encoder.calls[-1] == ("alone",))
        await manager.abort("b")
        await asyncio.gather(alone, return_exceptions=True)
        await until(lambda: encoder.cancelled == 1)
        encoder.gate.set()
        with pytest.raises(RequestCancelled) as late:
            await manager.embed(["x"], "vectors", options=RequestOptions(deadline=0.0))
        assert late.value.by == "deadline"
        assert manager.dispatcher.calls.ends["embed"] == {
            "finished": 3, "cancelled": 4, "refused": 0, "failed": 0,
        }  # fmt: skip

    on_encoders(test)


def test_without_counts_the_usage_of_a_batch_is_divided_by_estimates() -> None:
    async def test(manager: ControlPlaneManager, executor: MixedExecutor) -> None:
        (encoder,) = executor.encoders
        encoder.counts = False
        running = await first(manager, executor)
        three = [start(manager, "a" * 7), start(manager, "b" * 39, "cc"), start(manager, "d" * 3)]
        await until(lambda: len(manager.dispatcher.calls.open) == 4)
        encoder.gate.set()
        found = [await one for one in three]  # estimated: 2, 11 and 1 tokens
        assert [result.usage.prompt_tokens for result in found] == [7, 40, 4]
        assert [result.text_tokens for result in found] == [None] * 3
        assert [vector[1] for result in found for vector in result.vectors] == [7, 39, 2, 3]
        await running
        assert encoder.calls[2:] == [("a" * 7, "b" * 39, "cc", "d" * 3)]

    on_encoders(test)


def test_requests_of_a_lost_instance_are_repeated() -> None:
    async def test(manager: ControlPlaneManager, executor: MixedExecutor) -> None:
        for encoder in executor.encoders:
            encoder.gate.clear()
        embeds = [start(manager, f"text {n}") for n in range(8)]
        ranks = [asyncio.ensure_future(manager.rerank("q", ["a", f"{n}" * 3], "ranks")) for n in range(4)]
        await until(lambda: len(manager.dispatcher.calls.open) == 12)
        await until(lambda: sum(bool(encoder.calls) for encoder in executor.encoders) == 4)
        for lost in (executor.encoders[0], executor.encoders[2]):
            lost.crash()
        await until(lambda: manager.dispatcher.calls.retries > 0)
        for encoder in executor.encoders:
            encoder.gate.set()
        assert [r.vectors[0][1] for r in await asyncio.gather(*embeds)] == [6] * 8
        assert [[hit.index for hit in r.hits] for r in await asyncio.gather(*ranks)] == [[1, 0]] * 4
        calls = manager.dispatcher.calls
        assert (calls.ends["embed"]["finished"], calls.ends["rerank"]["finished"]) == (8, 4)

    on_encoders(test, embedding=2, reranker=2)


def test_a_text_that_crashes_encoders_ends_alone() -> None:
    async def test(manager: ControlPlaneManager, executor: MixedExecutor) -> None:
        await manager.embed(["warm"], "vectors")
        good = [start(manager, f"good {n}") for n in range(4)]
        with pytest.raises(EngineDead, match="crashed by a text"):
            await manager.embed(["crash"], "vectors")
        assert [len(await one) for one in good] == [1] * 4

    on_encoders(test, embedding=2)


def test_busy_and_faulty_encoders_are_avoided() -> None:
    async def test(manager: ControlPlaneManager, executor: MixedExecutor) -> None:
        one, two = executor.encoders
        one.refuses = busy()
        assert len(await manager.embed(["a"], "vectors")) == 1
        two.refuses = busy()
        with pytest.raises(Overloaded):
            await manager.embed(["b"], "vectors")
        one.refuses, two.refuses = ValueError("as the test wants"), None
        for _ in range(8):
            assert len(await manager.embed(["c"], "vectors")) == 1
        one.refuses = None
        assert len(await manager.embed(["d"], "vectors")) == 1  # at the first attempt, whichever it is
        receipt = list(manager.dispatcher.placement.receipts.values())[-1]
        assert receipt.request.kind == "embed"
        assert receipt.ttft is not None
        assert receipt.replay() == receipt.decision

    on_encoders(test, embedding=2)


def test_calls_wait_for_the_only_encoder_to_return() -> None:
    async def test(manager: ControlPlaneManager, executor: MixedExecutor) -> None:
        running = await first(manager, executor)
        executor.encoders[0].crash()
        assert len(await running) == 1
        assert len(executor.encoders) == 2
        assert manager.dispatcher.calls.retries == 1

    on_encoders(test)

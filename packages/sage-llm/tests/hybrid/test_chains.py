"""Chains of requests: one deadline and class, learned steps, refusal at the first step, and priority by slack."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_cluster import MODEL, any_speed, cluster, instance, request
from plane import read
from sage_infer.errors import Overloaded, RequestCancelled
from sage_infer.schemas import RequestOptions, SamplingParams
from sage_llm.chains import ChainTable
from sage_llm.commands.tables import decision_lines
from sage_llm.policies import admission, order
from sage_llm.queue import WaitingQueue
from sage_llm.tenants import TenantTable
from sage_llm.types import Decision, RequestView
from toy_encoder import on_encoders, quick

STEPS = (("e", 1.0), ("r", 2.0), ("g", 4.0))


def run_chain(table: ChainTable, name: str, now: float = 0.0) -> None:
    """A chain that takes 1 + 2 + 4 seconds, with 0.5 s of the client between two steps."""
    for model, took in STEPS:
        step = table.begin("t", name, model, now, deadline=now + 100)
        now += took
        table.ended(step, now, took)
        now += 0.5


def test_a_pipeline_is_learned_from_its_chains() -> None:
    table = ChainTable()
    first = table.begin("t", "rag/0", "e", 0.0)
    assert (first.index, first.left_s, first.later) == (0, 0.0, ())
    for n in range(1, 4):
        run_chain(table, f"rag/{n}")
    step = table.begin("t", "rag/9", "e", 50.0, deadline=58.0, service_class="interactive", priority=3)
    assert step.expected_s == pytest.approx(8.0)
    assert step.later == ("r", "g")
    table.ended(step, 51.0, 1.0)
    second = table.begin("t", "rag/9", "r", 51.5, service_class="batch")
    assert (second.index, second.since, second.deadline) == (1, 50.0, 58.0)
    assert (second.service_class, second.priority) == ("interactive", 3)
    assert second.expected_s == pytest.approx(6.5)
    sooner = table.begin("t", "rag/9", "g", 52.0, deadline=55.0)
    assert sooner.deadline == 55.0
    assert table.begin("t", "other/1", "e", 0.0).left_s == 0.0
    assert table.begin("u", "rag/1", "e", 0.0).left_s == 0.0


def test_steps_that_are_rare_are_not_expected() -> None:
    table = ChainTable()
    run_chain(table, "rag/1")
    for n in range(60):
        step = table.begin("t", f"rag/s{n}", "e", float(n))
        table.ended(step, n + 1.0, 1.0)
    last = table.begin("t", "rag/x", "e", 99.0)
    assert last.later == ()
    assert last.expected_s == pytest.approx(1.0, abs=0.2)


def test_a_refused_chain_can_begin_again() -> None:
    table = ChainTable()
    refused = table.begin("t", "rag/1", "e", 0.0, deadline=1.0)
    table.ended(refused, 0.1, None)
    again = table.begin("t", "rag/1", "e", 5.0, deadline=9.0)
    assert (again.index, again.deadline, again.since) == (0, 9.0, 5.0)
    assert table.begin("t", "rag/1", "e", 1000.0).index == 0  # forgotten


@any_speed(60)
@given(st.data())
def test_tables_stay_consistent(data: st.DataObject) -> None:
    """Whatever arrives and ends: steps count up, deadlines only come nearer, and expectations are never negative."""
    table, now, running = ChainTable(), 0.0, []
    seen: dict[tuple[str, float], Any] = {}
    for _ in range(data.draw(st.integers(1, 40))):
        now += data.draw(st.floats(0.001, 5))
        if running and data.draw(st.booleans()):
            step = running.pop(data.draw(st.integers(0, len(running) - 1)))
            table.ended(step, now, data.draw(st.one_of(st.none(), st.floats(0, 10))))
            continue
        deadline = data.draw(st.one_of(st.none(), st.floats(0, 50)))
        step = table.begin(
            "t",
            data.draw(st.sampled_from(["p/1", "p/2", "q"])),
            "m",
            now,
            deadline=None if deadline is None else now + deadline,
        )
        assert 0 <= step.expected_s <= step.left_s + 1e-9
        assert step.since <= now
        before = seen.get((step.chain, step.since))
        if before is not None:
            assert step.index >= before.index
            if before.deadline is not None:
                assert step.deadline is not None
                assert step.deadline <= before.deadline
        seen[step.chain, step.since] = step
        running.append(step)


def test_later_steps_are_ordered_by_the_slack_of_their_chain() -> None:
    def go(view: RequestView) -> Decision:
        return Decision("dispatch", view.id, 0)

    snapshot = cluster(instance(0))
    for name, wanted in (
        ("slo", ["tight", "chain", "alone"]),
        ("balanced", ["tight", "chain", "alone"]),
        ("shortest-uncached", ["chain", "tight", "alone"]),
    ):
        queue = WaitingQueue(order(name), TenantTable())
        queue.push(request(id="alone", keys=(), arrived=9.0, deadline=30.0), snapshot)
        queue.push(
            request(id="chain", keys=(), arrived=10.0, deadline=30.0, chain_since=2.0, left_s=20.0), snapshot
        )
        queue.push(
            request(id="tight", keys=(), arrived=10.0, deadline=20.0, chain_since=3.0, left_s=19.0), snapshot
        )
        found = [queue.take(10.0, go) for _ in range(3)]
        assert [taken[0].id for taken in found if taken is not None] == wanted, name


def test_a_chain_passes_requests_with_more_time_but_not_old_ones() -> None:
    snapshot = cluster(instance(0))
    chain = request(arrived=20.0, deadline=21.0, chain_since=20.0, left_s=99.0, keys=())
    key = order("balanced").key
    assert key(chain, snapshot) < key(request(arrived=15.0, keys=()), snapshot)
    assert key(chain, snapshot) > key(request(arrived=5.0, keys=()), snapshot)


def test_a_chain_is_refused_at_its_first_step() -> None:
    policy = admission()
    snapshot = cluster(instance(0), now=10.0)
    first = request(arrived=10.0, deadline=15.0, chain="rag/1", expected_s=6.0, later=(MODEL,))
    refused = policy.admit(first, snapshot)
    assert (refused.kind, refused.reason) == ("refuse", "overloaded")
    assert refused.retry_after == pytest.approx(1.0)
    assert "rag/1" in refused.message
    assert (
        policy.admit(request(arrived=10.0, deadline=17.0, expected_s=6.0, later=(MODEL,)), snapshot).kind
        == "wait"
    )
    later = request(arrived=10.0, deadline=11.0, chain_step=1, expected_s=6.0)
    assert policy.admit(later, snapshot).kind == "wait"


def test_instances_get_the_priority_of_class_and_chain() -> None:
    async def test(manager: Any, executor: Any) -> None:
        (engine,) = executor.engines
        for options in (
            RequestOptions(service_class="batch"),
            RequestOptions(service_class="batch", priority=-3),
            RequestOptions(chain="rag/1", deadline=300.0),
            RequestOptions(chain="rag/2"),
            RequestOptions(),
        ):
            (stream,) = await manager.generate("p", SamplingParams(max_tokens=1), "toy", options=options)
            await read(stream)
        assert engine.priorities == [2, -1, -1, 0, 0]

    on_encoders(test, settings=quick(), embedding=0, llm=1)


def test_a_chain_through_the_control_plane() -> None:
    """Deadline and class of the first request apply to all; an impossible chain is refused, and can begin again."""

    async def test(manager: Any, executor: Any) -> None:
        async def chain(name: str, deadline: float | None) -> None:
            first = RequestOptions(chain=name, deadline=deadline, tenant="t", service_class="interactive")
            await manager.embed(["question"], "vectors", options=first)
            rest = RequestOptions(chain=name, tenant="t")
            await manager.rerank("question", ["one", "two"], "ranks", options=rest)
            params = SamplingParams(temperature=0.0, max_tokens=4)
            (stream,) = await manager.generate("prompt", params, "toy", request_id=name, options=rest)
            await read(stream)

        await chain("rag/1", 300.0)
        view = manager.dispatcher.placement.receipts["rag/1"].request
        assert (view.chain_step, view.service_class) == (2, "interactive")
        assert view.deadline is not None
        assert view.deadline - view.since == pytest.approx(300.0, abs=0.01)
        shown = decision_lines(manager.dispatcher.placement.receipts["rag/1"].to_json())
        assert any(line.startswith("chain rag/1, step 2: deadline in") for line in shown)
        hopeless = RequestOptions(chain="rag/2", deadline=1e-6, tenant="t")
        with pytest.raises(Overloaded, match="rag/2"):
            await manager.embed(["question"], "vectors", options=hopeless)
        await chain("rag/2", 300.0)
        executor.encoders[1].gate.clear()
        now = time.monotonic()
        manager.chains.begin("t", "rag/3", "vectors", now, deadline=now + 0.05)
        with pytest.raises(RequestCancelled) as found:  # its second step, which has no deadline of its own
            await manager.rerank("q", ["one"], "ranks", options=RequestOptions(chain="rag/3", tenant="t"))
        assert found.value.by == "deadline"

    on_encoders(test, settings=quick(target_wait_s=30.0), embedding=1, reranker=1, llm=1)

"""KV quotas in a control plane: a ceiling holds its tenant's requests back, and nobody else's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from plane import read, until
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import RequestOptions, SamplingParams
from sage_llm.commands.tables import decision_lines, status_lines
from sage_llm.quota_tree import KVQuota
from toy_encoder import on_encoders, quick

PARAMS = SamplingParams(temperature=0.0, max_tokens=16)
TOKENS = 20 + 16  # characters of a prompt, and output tokens: what a request of the class batch reserves
MANY = 200  # more than the queue tries


async def one(manager: Any, tenant: str, number: int, order: list[str]) -> None:
    options = RequestOptions(tenant=tenant, service_class="batch")
    (stream,) = await manager.generate(f"{tenant} {number}".ljust(20), PARAMS, "toy", options=options)
    await read(stream)
    order.append(tenant)


@pytest.mark.parametrize("policy", ["balanced", "priority"])
def test_a_ceiling_holds_back_one_tenant_only(policy: str) -> None:
    """200 requests of a tenant at its ceiling wait; that of another one is dispatched past them."""

    async def test(manager: Any, executor: Any) -> None:
        (engine,) = executor.engines
        engine.gate.clear()
        placement, order = manager.dispatcher.placement, []
        tasks = [asyncio.ensure_future(one(manager, "greedy", n, order)) for n in range(MANY)]
        await until(lambda: len(manager.dispatcher.open) == MANY)
        tasks.append(asyncio.ensure_future(one(manager, "modest", 0, order)))
        await until(lambda: any(r.options.tenant == "modest" for r in manager.dispatcher.open.values()))
        assert {request.options.tenant for request in placement.waiting()} == {"greedy"}
        assert len(placement.waiting()) == MANY - 2
        quotas = manager.cluster()["quotas"]
        assert quotas["greedy"] == {
            "reserved": 0, "ceiling": 2 * TOKENS, "used": 2 * TOKENS, "waiting": (MANY - 2) * TOKENS,
            "borrowed": 0, "taken_back": 0,
        }  # fmt: skip
        assert quotas["greedy/toy/batch"]["used"] == 2 * TOKENS
        status = {"url": "", "policy": "", "order": "", **manager.cluster()}
        (line,) = [line for line in status_lines(status) if line.startswith("greedy ")]
        assert line.split() == ["greedy", "-", "72", "72", "0", f"{(MANY - 2) * TOKENS:,}", "-"]
        with pytest.raises(InvalidRequest, match="the quota of 'greedy' is 72"):
            await manager.generate("x" * 60, PARAMS, "toy", options=RequestOptions(tenant="greedy"))
        engine.gate.set()
        await asyncio.gather(*tasks)
        assert all(row["used"] == row["waiting"] == 0 for row in manager.cluster()["quotas"].values())
        last = list(placement.receipts)[-1]
        shown = decision_lines(placement.receipts[last].to_json())
        (quota,) = [line for line in shown if "quota" in line]
        assert "quota greedy/toy/batch: its KV is not reserved; held back by a ceiling for" in quota

    settings = quick(order=policy, quotas={"greedy": KVQuota(ceiling=2 * TOKENS)})
    on_encoders(test, settings=settings, embedding=0, llm=1)

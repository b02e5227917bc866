"""Tenants of a control plane: equal service beside a greedy one, and quotas."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from plane import read, until
from sage_infer.errors import Overloaded
from sage_infer.schemas import RequestOptions, SamplingParams
from sage_llm.quotas import TenantQuota
from toy_encoder import on_encoders, quick

PARAMS = SamplingParams(temperature=0.0, max_tokens=16)
LARGEST = 20.0 + 16  # characters of a prompt, and output tokens


async def one(manager: Any, tenant: str, number: int, order: list[str]) -> None:
    prompt = f"{tenant} {number}".ljust(20)
    options = RequestOptions(tenant=tenant)
    (stream,) = await manager.generate(prompt, PARAMS, "toy", options=options)
    await read(stream)
    order.append(tenant)


def test_a_greedy_tenant_gets_no_more_than_others() -> None:
    """60 requests of one tenant are open before 10 of another arrive: they share the engine equally."""

    async def test(manager: Any, executor: Any) -> None:
        (engine,) = executor.engines
        engine.gate.clear()
        order: list[str] = []
        tasks = [asyncio.ensure_future(one(manager, "greedy", n, order)) for n in range(60)]
        await until(lambda: len(manager.dispatcher.open) == 60)
        running = 60 - len(manager.dispatcher.placement.waiting())
        tasks += [asyncio.ensure_future(one(manager, "modest", n, order)) for n in range(10)]
        await until(lambda: len(manager.dispatcher.open) == 70)
        tenants, gaps = manager.dispatcher.placement.tenants, []
        pump = manager.dispatcher.placement.next

        def watched(now: float) -> Any:
            found = pump(now)
            both = [tenants[name] for name in ("greedy", "modest") if name in tenants]
            if len(both) == 2 and all(view.queued for view in both):
                gaps.append(abs(both[0].service - both[1].service))
            return found

        manager.dispatcher.placement.next = watched
        engine.gate.set()
        await asyncio.gather(*tasks)
        last = max(position for position, tenant in enumerate(order) if tenant == "modest")
        assert last <= running + 2 * 10 + engine.max_batch_size + 2
        assert gaps
        assert max(gaps) <= 2 * LARGEST

    on_encoders(test, embedding=0, llm=1)


def test_a_tenant_above_its_quota_is_refused_alone() -> None:
    async def test(manager: Any, executor: Any) -> None:
        (engine,) = executor.engines
        engine.gate.clear()
        order: list[str] = []
        tasks = [asyncio.ensure_future(one(manager, "small", n, order)) for n in range(2)]
        await until(lambda: len(manager.dispatcher.open) == 2)
        assert manager.cluster()["tenants"]["small"]["requests"] == 2
        with pytest.raises(Overloaded, match="tenant 'small' has 2 open requests") as found:
            await one(manager, "small", 2, order)
        assert found.value.retry_after > 0
        tasks.append(asyncio.ensure_future(one(manager, "other", 0, order)))
        await until(lambda: len(manager.dispatcher.open) == 3)
        engine.gate.set()
        await asyncio.gather(*tasks)
        await one(manager, "small", 3, order)
        assert order.count("small") == 3
        assert manager.dispatcher.ends == {"finished": 4, "cancelled": 0, "refused": 1, "failed": 0}

    quotas = {"small": TenantQuota(max_requests=2)}
    on_encoders(test, settings=quick(tenants=quotas), embedding=0, llm=1)


def test_a_reserved_place_is_free_for_its_tenant() -> None:
    async def test(manager: Any, executor: Any) -> None:
        (engine,) = executor.engines
        engine.gate.clear()
        order: list[str] = []
        most = engine.max_batch_size
        tasks = [asyncio.ensure_future(one(manager, "greedy", n, order)) for n in range(2 * most)]
        await until(lambda: len(manager.dispatcher.open) == 2 * most)
        tasks.append(asyncio.ensure_future(one(manager, "gold", 0, order)))
        await until(lambda: len(manager.dispatcher.open) == 2 * most + 1)
        waiting = [request.options.tenant for request in manager.dispatcher.placement.waiting()]
        assert waiting == ["greedy"] * (most + 1)
        engine.gate.set()
        await asyncio.gather(*tasks)

    on_encoders(test, settings=quick(tenants={"gold": TenantQuota(reserved_requests=1)}), embedding=0, llm=1)

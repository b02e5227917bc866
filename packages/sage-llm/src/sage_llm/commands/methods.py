"""Methods of the control socket."""

from __future__ import annotations

import asyncio
from typing import Any

import attrs
from sage_infer.errors import InvalidRequest

from sage_llm.commands.autoscale_flags import at_most
from sage_llm.commands.control import Handler
from sage_llm.commands.memory import machine_devices, with_memory
from sage_llm.manager.manager import ControlPlaneManager
from sage_llm.manager.replica import Drained
from sage_llm.receipts import find_receipt
from sage_llm.replicas.local import SERVER
from sage_llm.scaling.settings import parse_autoscale

__all__ = ["methods"]


def methods(
    manager: ControlPlaneManager, url: str, drain_s: float, *, may_autoscale: bool = True
) -> dict[str, Handler]:
    """The coroutine functions by name; their results are JSON-ready."""

    async def status() -> dict[str, Any]:
        return {
            "url": url,
            "policy": manager.settings.policy,
            "order": manager.settings.order,
            **manager.cluster(),
        }

    async def drain(replica: str, deadline_s: float | None = None) -> dict[str, Any]:
        return _drained(await manager.drain(replica, drain_s if deadline_s is None else deadline_s))

    async def restart(name: str | None = None) -> list[dict[str, Any]]:
        return [_drained(result) for result in await manager.restart(name)]

    async def scale(model: str, replicas: int | str) -> dict[str, Any]:
        if isinstance(replicas, str):
            settings = parse_autoscale(replicas, "the number of replicas")
            await asyncio.to_thread(_check_memory, manager, model, settings.affordable)
            if not may_autoscale:
                raise InvalidRequest(
                    "with several gateways, the number of replicas cannot follow the load; give a number"
                )
            manager.autoscale(model, settings)
            return {"model": model, "replicas": settings.bounds, "changed": []}
        await asyncio.to_thread(_check_memory, manager, model, replicas)
        return {"model": model, "replicas": replicas, "changed": await manager.scale(model, replicas)}

    async def explain(request: str | None = None) -> dict[str, Any]:
        return find_receipt(manager.dispatcher.placement.receipts, request).to_json()

    return {"status": status, "drain": drain, "restart": restart, "scale": scale, "explain": explain}


def _check_memory(manager: ControlPlaneManager, model: str, replicas: int) -> None:
    """Refuse further replicas in processes of their own on this machine if the machine's memory does not suffice."""
    found = manager.served.get(model)
    if found is not None and found.server == SERVER and replicas > found.replicas:
        others = at_most([served for name, served in manager.served.items() if name != model])
        with_memory([attrs.evolve(found, replicas=replicas), *others], machine_devices())


def _drained(result: Drained) -> dict[str, Any]:
    return attrs.asdict(result)

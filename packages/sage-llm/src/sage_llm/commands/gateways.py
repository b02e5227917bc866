"""``sage llm serve --gateways N``: this process owns the replicas, and others answer the requests."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from sage_infer.cli.output import note, print_json
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import TransportSettings
from sage_infer_serve.gateway_command import settle
from sage_infer_serve.http.auth import APIKey
from sage_infer_serve.settings import GatewaySettings
from sage_infer_serve.watch.loading import start_with_progress

from sage_llm.commands.config import LLM
from sage_llm.commands.control import ControlServer, Handler, control_path
from sage_llm.commands.executors import make_executor
from sage_llm.commands.methods import methods
from sage_llm.commands.serving import manager_settings, print_ready
from sage_llm.gateways.messages import Order
from sage_llm.gateways.owner import Gateways
from sage_llm.gateways.shares import kv_shares, shared_keys, tenant_shares
from sage_llm.manager.manager import ControlPlaneManager
from sage_llm.manager.models import ServedModel
from sage_llm.manager.restarts import RestartLimits

__all__ = ["serve_gateways"]

_FOLLOWS = RestartLimits(first_s=0.05, longest_s=0.05, most=2**31)  # the owner decides about restarts


async def serve_gateways(
    settings: LLM,
    gateway: GatewaySettings,
    keys: Sequence[APIKey],
    reserved: socket.socket,
    models: Sequence[ServedModel],
    as_json: bool,
    transport: TransportSettings,
) -> None:
    """Start the replicas, then the gateways, and run until SIGTERM or SIGINT."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    port = reserved.getsockname()[1]
    own = manager_settings(settings, gateway.target_wait_s, transport, tracing=gateway.tracing)
    manager = ControlPlaneManager(models, make_executor(settings), own)
    share = attrs.evolve(
        own,
        restarts=_FOLLOWS,
        tenants=tenant_shares(own.tenants, settings.gateways),
        quotas=kv_shares(own.quotas, settings.gateways),
    )

    def order(number: int) -> Order:
        return Order(
            number=number,
            models=tuple(manager.served.values()),
            settings=share,
            gateway=attrs.evolve(gateway, port=port),
            keys=shared_keys(keys, settings.gateways),
            drain_s=settings.drain_s,
        )

    gateways = Gateways(manager.fleet, order, settings.gateways)

    def stopped() -> None:
        if gateways.pids:
            note("stopping; repeat to cancel open requests")
        gateways.signal_all()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped)
    control: list[ControlServer] = []

    async def load() -> None:
        await start_with_progress(manager)
        await gateways.start()
        settle()
        url = f"http://{gateway.host}:{port}"
        owned = methods(manager, url, settings.drain_s, may_autoscale=False)
        control.append(ControlServer(control_path(port), owned | _of_all(gateways, owned["status"])))
        await control[0].start()
        if as_json:
            print_json({"url": url, **manager.cluster(), "gateways": gateways.pids})
        else:
            print_ready(manager, url, keys)
            print(f"gateways: {', '.join(map(str, gateways.pids))}")
        sys.stdout.flush()

    try:
        loading, stopping = asyncio.ensure_future(load()), asyncio.ensure_future(stop.wait())
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            await stopping
        else:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
        await gateways.stopped()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        gateways.kill()
        await gateways.stopped()
        for server in control:
            await server.close()
        await manager.close()


def _of_all(gateways: Gateways, owner_status: Handler) -> dict[str, Handler]:
    """Methods of the control socket whose answers are in the gateways."""

    async def status() -> dict[str, Any]:
        clusters = [answer.result for answer in (await gateways.ask("cluster")).values()]
        rows = [{"pid": cluster["pid"], "open": cluster["requests"]["open"]} for cluster in clusters]
        return {**summed(await owner_status(), clusters), "gateways": rows}

    async def explain(request: str | None = None) -> dict[str, Any]:
        answers = list((await gateways.ask("explain", request=request)).values())
        found = [answer.result for answer in answers if not answer.error]
        if not found:
            raise InvalidRequest(answers[0].error if answers else "no gateway answers")
        return dict(found[0])

    return {"status": status, "explain": explain}


def summed(own: Mapping[str, Any], clusters: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The state of the cluster: words of the replicas from their owner, numbers of requests from the gateways."""
    result = dict(own)
    for name in ("requests", "calls", "tenants", "quotas"):
        result[name] = _sum([cluster[name] for cluster in clusters]) or own[name]
    rows = [{row["instance"]: row for row in cluster["replicas"]} for cluster in clusters]
    result["replicas"] = []
    for row in own["replicas"]:
        seen = [found[row["instance"]] for found in rows if row["instance"] in found]
        counts = ("running", "queued_tokens", "migrated_in", "migrated_out", "served")
        sums = {name: sum(one.get(name, 0) for one in seen) for name in counts if name in row}
        result["replicas"].append({**row, **sums})
    return result


def _sum(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The sums of numbers of the same name, at any depth."""
    result: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if isinstance(value, Mapping):
                result[name] = _sum([result.get(name, {}), value])
            else:
                result[name] = result.get(name, 0) + value
    return result

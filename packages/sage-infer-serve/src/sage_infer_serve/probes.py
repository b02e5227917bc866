"""What tells about the gateway: health, readiness, metrics, the dashboard's state, and the API's description."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING

import msgspec

from sage_infer_serve.exchange import Exchange

if TYPE_CHECKING:
    from sage_infer_serve.app import Gateway

__all__ = ["dashboard_state", "health", "metrics", "openapi", "ready"]

_encode = msgspec.json.encode


async def health(gateway: Gateway, exchange: Exchange) -> None:
    """200 while anything answers, 503 when nothing does any more: restart me."""
    found = await gateway.backend.health()
    answer = {"status": found.status, "reason": found.reason}
    await exchange.respond(_encode(answer), status=503 if found.status == "dead" else 200)


async def ready(gateway: Gateway, exchange: Exchange) -> None:
    """200 when requests are welcome: a model is ready, and the server is not about to end."""
    states = [gateway.backend.get_model_status(m.model_id).state for m in gateway.backend.list_models()]
    found = await gateway.backend.health()
    reason = ""
    if gateway.draining:
        reason = "shutting down"
    elif not found.ok:
        reason = found.reason or found.status
    elif not any(state in ("ready", "sleeping") for state in states):
        reason = "no model is ready"
    answer = {"status": "not ready" if reason else "ready", "reason": reason}
    await exchange.respond(_encode(answer), status=503 if reason else 200)


async def metrics(gateway: Gateway, exchange: Exchange) -> None:
    from sage_infer_serve.prometheus import CONTENT_TYPE, exposition

    await exchange.respond(exposition(gateway), kind=CONTENT_TYPE)


async def dashboard_state(gateway: Gateway, exchange: Exchange) -> None:
    from sage_infer_serve.dashboard_state import state

    await exchange.respond(_encode(await state(gateway)), headers=[(b"cache-control", b"no-store")])


async def openapi(gateway: Gateway, exchange: Exchange) -> None:
    await exchange.respond(_document())


@cache
def _document() -> bytes:
    from sage_infer_serve.openapi import document

    return _encode(document(version("sage-infer-serve")))

"""Endpoints for monitoring: health, readiness, metrics and the dashboard's state."""

from __future__ import annotations

import msgspec

from sage_infer_serve.http.exchange import Exchange
from sage_infer_serve.service import Service
from sage_infer_serve.watch.dashboard_state import state
from sage_infer_serve.watch.loading import progress_text
from sage_infer_serve.watch.prometheus import CONTENT_TYPE, exposition

__all__ = ["dashboard_state", "health", "metrics", "ready"]

_encode = msgspec.json.encode


async def health(service: Service, exchange: Exchange) -> None:
    """200 while any model works; 503 during the initial loading of models, or if no model works."""
    found = await service.backend.health()
    status, reason = found.status, found.reason
    if service.loading or status == "starting":
        answer = {"status": "loading", "reason": _loading(service) or reason}
    else:
        answer = {"status": status, "reason": reason}
    await exchange.respond(_encode(answer), status=503 if answer["status"] in ("loading", "dead") else 200)


def _loading(service: Service) -> str:
    """Models being loaded, with their progress."""
    each = (service.backend.get_model_status(m.model_id) for m in service.backend.list_models())
    return ", ".join(progress_text(status) for status in each if status.state == "loading")


async def ready(service: Service, exchange: Exchange) -> None:
    """200 if requests are accepted: a model is ready, and the server is not shutting down."""
    states = [service.backend.get_model_status(m.model_id).state for m in service.backend.list_models()]
    found = await service.backend.health()
    reason = ""
    if service.draining:
        reason = "shutting down"
    elif service.loading:
        reason = _loading(service) or "models are being loaded"
    elif not found.ok:
        reason = found.reason or found.status
    elif not any(state in ("ready", "sleeping") for state in states):
        reason = "no model is ready"
    answer = {"status": "not ready" if reason else "ready", "reason": reason}
    await exchange.respond(_encode(answer), status=503 if reason else 200)


async def metrics(service: Service, exchange: Exchange) -> None:
    found = exposition(service) if service.all_metrics is None else await service.all_metrics()
    await exchange.respond(found, kind=CONTENT_TYPE)


async def dashboard_state(service: Service, exchange: Exchange) -> None:
    await exchange.respond(_encode(await state(service)), headers=[(b"cache-control", b"no-store")])

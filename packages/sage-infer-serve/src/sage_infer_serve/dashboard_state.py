"""``/dashboard/state``: everything that the dashboard shows, as plain data."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sage_infer.contracts import MemoryReporting

from sage_infer_serve.observe import INTERVAL_S, as_points

if TYPE_CHECKING:
    from sage_infer_serve.app import Gateway

__all__ = ["state"]


async def state(gateway: Gateway) -> dict[str, Any]:
    """Times in seconds since the epoch, durations in seconds, memory in bytes."""
    health = await gateway.backend.health()
    stats = gateway.backend.stats()
    return {
        "version": version("sage-infer-serve"),
        "started": gateway.started,
        "now": time.time(),
        "health": {"status": health.status, "reason": health.reason},
        "models": [_model(gateway, m.model_id, m.model_type) for m in gateway.backend.list_models()],
        "memory": _memory(gateway.backend) if isinstance(gateway.backend, MemoryReporting) else None,
        "queue": {
            "open": len(gateway.open),
            "limit": gateway.settings.max_open_requests,
            "running": stats.running,
            "waiting": stats.waiting,
            "kv_blocks_total": stats.kv_blocks_total,
            "kv_blocks_free": stats.kv_blocks_free,
        },
        "series": {"interval_s": INTERVAL_S, "points": as_points(gateway.recorder.series())},
    }


def _model(gateway: Gateway, model_id: str, model_type: str) -> dict[str, Any]:
    status = gateway.backend.get_model_status(model_id)
    loading = gateway.loading.get(model_id) if status.state == "loading" else None
    return {
        "id": model_id,
        "type": model_type,
        "state": status.state,
        "since": status.since,
        "reason": status.reason,
        "loading": None if loading is None else {"stage": loading[0], "share": loading[1]},
    }


def _memory(backend: MemoryReporting) -> dict[str, Any]:
    """The plan beside what was measured; a device's measured use is known where that of all its models is."""
    plan, measured = backend.memory_plan(), backend.measured_bytes()
    devices = []
    for device in plan.devices:
        found = [measured.get(share.model_id) for share in plan.shares if share.device == device.name]
        known = [value for value in found if value is not None]
        devices.append(
            {
                "name": device.name,
                "total": device.total,
                "usable": device.usable,
                "planned": plan.used(device.name),
                "measured": sum(known) if known and len(known) == len(found) else None,
            }
        )
    shares = [
        {
            "model": share.model_id,
            "device": share.device,
            "weights": share.weights,
            "kv": share.kv,
            "activations": share.activations,
            "overhead": share.overhead,
            "measured": measured.get(share.model_id),
        }
        for share in plan.shares
    ]
    return {"mode": plan.mode, "devices": devices, "shares": shares}

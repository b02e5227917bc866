"""``/dashboard/state``: the data of the dashboard as JSON."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

from sage_infer.contracts import ClusterReporting, MemoryReporting, MetricsReporting

from sage_infer_serve.service import Service
from sage_infer_serve.watch.observe import INTERVAL_S, as_points

__all__ = ["state"]

_KV_STORE, _KV_TIER = "sage_infer_engine_kv_store_", "tier_"
_KV_COUNTS = (
    "fetched",
    "saved",
    "dropped",
    "corrupt",
    "failures",
    "hits",
    "misses",
    "blocks",
    "capacity_blocks",
)


async def state(service: Service) -> dict[str, Any]:
    """Return the dashboard's data: times in seconds since the epoch, durations in seconds, memory in bytes."""
    health = await service.backend.health()
    stats = service.backend.stats()
    return {
        "version": version("sage-infer-serve"),
        "started": service.started,
        "now": time.time(),
        "health": {"status": health.status, "reason": health.reason},
        "models": [_model(service, m.model_id, m.model_type) for m in service.backend.list_models()],
        "memory": _memory(service.backend) if isinstance(service.backend, MemoryReporting) else None,
        "kv": _kv_stores(service.backend) if isinstance(service.backend, MetricsReporting) else [],
        "cluster": service.backend.cluster() if isinstance(service.backend, ClusterReporting) else None,
        "queue": {
            "open": len(service.open),
            "limit": service.settings.max_open_requests,
            "running": stats.running,
            "waiting": stats.waiting,
            "kv_blocks_total": stats.kv_blocks_total,
            "kv_blocks_free": stats.kv_blocks_free,
        },
        "series": {"interval_s": INTERVAL_S, "points": as_points(service.recorder.series())},
    }


def _model(service: Service, model_id: str, model_type: str) -> dict[str, Any]:
    status = service.backend.get_model_status(model_id)
    return {
        "id": model_id,
        "type": model_type,
        "state": status.state,
        "since": status.since,
        "reason": status.reason,
        "loading": {"stage": status.stage, "share": status.share} if status.state == "loading" else None,
    }


def _kv_stores(backend: MetricsReporting) -> list[dict[str, Any]]:
    """KV stores of the models, by what their engines report of them; counts are in blocks."""
    found: dict[str, dict[str, float]] = {}
    for metric in backend.metrics():
        if metric.name.startswith(_KV_STORE) and "model" in metric.labels:
            found.setdefault(metric.labels["model"], {})[metric.name.removeprefix(_KV_STORE)] = metric.value
    return [
        {
            "model": model,
            **{name: values.get(name, 0) for name in _KV_COUNTS},
            "paused": bool(values.get("paused")),
            "bytes_reused": values.get("fetched", 0) * values.get("page_bytes", 0),
            "tiers": {
                name.removeprefix(_KV_TIER): value
                for name, value in values.items()
                if name.startswith(_KV_TIER)
            },
        }
        for model, values in found.items()
    ]


def _memory(backend: MemoryReporting) -> dict[str, Any]:
    """Planned and measured memory; a device's measured use is None if that of any of its models is unknown."""
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

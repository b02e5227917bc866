"""What the one-process form of ``sage llm serve`` shares with that of several gateways."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from sage_infer.schemas import TransportSettings
from sage_infer_serve.http.auth import APIKey
from sage_infer_serve.settings import GatewaySettings

from sage_llm.commands.config import LLM
from sage_llm.commands.quotas import kv_quotas_of
from sage_llm.commands.tables import status_lines
from sage_llm.commands.tenants import quotas_of
from sage_llm.manager.calls.batch import BatchLimits
from sage_llm.manager.health import HealthLimits
from sage_llm.manager.manager import ControlPlaneManager
from sage_llm.manager.migration import RecoveryLimits
from sage_llm.manager.pd import HandOverSettings
from sage_llm.manager.restarts import RestartLimits
from sage_llm.manager.settings import ControlPlaneSettings

__all__ = ["manager_settings", "print_ready", "with_room"]

_OPEN_REQUESTS = 16_384


def with_room(gateway: GatewaySettings) -> GatewaySettings:
    """The settings with room for many open requests in place of the default: admission by wait decides."""
    if gateway.max_open_requests != attrs.fields(type(gateway)).max_open_requests.default:
        return gateway
    return attrs.evolve(gateway, max_open_requests=_OPEN_REQUESTS)


def manager_settings(
    settings: LLM, target_wait_s: float | None, transport: TransportSettings, *, tracing: bool = False
) -> ControlPlaneSettings:
    """Settings of the control plane from the configuration's section."""
    return ControlPlaneSettings(
        policy=settings.policy,
        order=settings.order,
        tracing=tracing,
        drain_s=settings.drain_s,
        target_wait_s=target_wait_s,
        hand_over=HandOverSettings(transport=settings.kv_transport, settings=transport),
        health=HealthLimits(
            suspect_s=settings.suspect_s,
            lost_s=settings.lost_s,
            stuck_s=settings.stuck_s,
            revive_s=settings.revive_s,
        ),
        restarts=RestartLimits(first_s=settings.restart_pause_s, most=settings.max_early_failures),
        recovery=RecoveryLimits(migrations=settings.max_migrations, wait_s=settings.instance_wait_s),
        tenants=quotas_of(settings.tenants),
        quotas=kv_quotas_of(settings.quotas),
        batches=BatchLimits(tokens=settings.batch_tokens, window_s=settings.batch_window_ms / 1000),
    )


def print_ready(manager: ControlPlaneManager, url: str, keys: Sequence[APIKey]) -> None:
    status = {
        "url": url,
        "policy": manager.settings.policy,
        "order": manager.settings.order,
        **manager.cluster(),
        "scaling": [],  # nothing has been decided yet
    }
    lines = status_lines(status)
    print("\n".join(lines[:-2]))
    access = f"API keys: {', '.join(key.name for key in keys)}" if keys else "no API key required"
    print(f"\n{url} (dashboard), {url}/v1 (API); {access}; Ctrl-C stops it")
    first = next(iter(manager.fleet.replicas), "ID")
    print(
        f"policy {manager.settings.policy}; see `sage llm status`, `sage llm explain`, `sage llm drain {first}`"
    )

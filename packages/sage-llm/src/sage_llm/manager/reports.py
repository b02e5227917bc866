"""State of the cluster: health, gauges, metrics, and the data of ``sage llm status`` and of the dashboard."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from sage_infer.contracts import EngineStats, Health, Metric, ModelStatus
from sage_infer.schemas import InstanceReport
from sage_infer.schemas.codec import to_dict
from sage_infer_planning.registry import ModelEntry

from sage_llm.manager.dispatch import Dispatcher
from sage_llm.manager.fleet import Fleet
from sage_llm.manager.pd import HandOvers
from sage_llm.manager.placing import Placement
from sage_llm.manager.replica import Replica
from sage_llm.manager.settings import ControlPlaneSettings

__all__ = ["cluster", "health", "metrics", "model_status", "replica_row", "stats"]

_SUMS = (
    "running", "waiting", "kv_blocks_total", "kv_blocks_free", "finished", "prompt_tokens", "output_tokens",
    "prefix_hit_tokens", "waiting_prompt_tokens", "running_context_tokens", "steps",
)  # fmt: skip


def health(models: Iterable[str], fleet: Fleet, placement: Placement) -> Health:
    """ok, degraded if a replica does not serve, starting, or dead if none serves or will."""
    reasons = [
        f"{r.replica_id} {_word(r)}: {r.reason or (r.instance.reason if r.instance else '')}".rstrip(": ")
        for r in fleet.replicas.values()
        if r.word != "gone" and _word(r) not in ("ready", "probation")
    ]
    missing = [name for name in models if not any(i.is_open for i in placement.instances(name))]
    if not missing:
        return Health(status="degraded", reason="; ".join(reasons)) if reasons else Health(status="ok")
    hopeless = [name for name in missing if not fleet.expects(name)]
    if len(hopeless) == len(list(models)):
        return Health(status="dead", reason="; ".join(reasons) or "no replica runs")
    status = "starting" if any(r.word == "starting" for r in fleet.replicas.values()) else "degraded"
    return Health(status=status, reason="; ".join(reasons))  # type: ignore[arg-type]  # one of the literals


def stats(fleet: Fleet) -> EngineStats:
    """Sums over the latest reports of all instances; the largest step and wait."""
    found = [
        r.instance.report for r in fleet.replicas.values() if r.instance is not None and r.word == "running"
    ]
    reports = [report for report in found if report is not None]
    values: dict[str, Any] = {name: sum(getattr(report, name) for report in reports) for name in _SUMS}
    steps = [report.step_s for report in reports if report.step_s is not None]
    cached = [report.kv_blocks_cached for report in reports if report.kv_blocks_cached is not None]
    return EngineStats(
        **values,
        oldest_wait_s=max((report.oldest_wait_s for report in reports), default=0.0),
        step_s=max(steps, default=None),
        kv_blocks_cached=sum(cached) if cached or not reports else None,
    )


def model_status(entry: ModelEntry, fleet: Fleet, placement: Placement) -> ModelStatus:
    """State of a model, from the words of its replicas."""
    name = entry.descriptor.model_id
    replicas = fleet.of(name)
    serving = tuple(i.instance_id for i in placement.instances(name) if i.is_open or i.word == "suspect")
    state, reason, stage, share = entry.state, entry.reason, "", None
    if state == "loading":
        stage = f"starting {len(replicas)} replica{'s' if len(replicas) != 1 else ''}"
        if not replicas:  # the executor may have to find a cluster
            stage = "looking for replicas of an earlier control plane"
        share = sum(r.word == "running" for r in replicas) / len(replicas) if replicas else None
    elif state == "ready" and not serving:
        coming = sum(r.is_coming for r in replicas)
        if coming:
            state, stage = "loading", f"restarting {coming} replica{'s' if coming != 1 else ''}"
        else:
            state, reason = (
                "failed",
                "; ".join(f"{r.replica_id}: {r.reason}" for r in replicas) or "it has no replica",
            )
    return ModelStatus(
        model_id=name,
        state=state,
        since=entry.since,
        reason=reason,
        stage=stage,
        share=share,
        instances=serving,
    )


def metrics(fleet: Fleet, dispatcher: Dispatcher) -> Iterator[Metric]:
    """Metrics of the control plane and of each instance."""
    for outcome, count in dispatcher.ends.items():
        yield Metric(
            name="sage_llm_requests_total", kind="counter", help="Generating requests by outcome.",
            value=count, labels={"outcome": outcome},
        )  # fmt: skip
    yield from dispatcher.counts.metrics()
    calls = dispatcher.calls
    for kind, ends in calls.ends.items():
        for outcome, count in ends.items():
            yield Metric(
                name="sage_llm_calls_total", kind="counter", help="Embedding and reranking requests by outcome.",
                value=count, labels={"kind": kind, "outcome": outcome},
            )  # fmt: skip
    totals = (
        ("sage_llm_migrations_total", "Requests moved after their first token.", dispatcher.migrations),
        ("sage_llm_retries_total", "Requests moved before their first token.", dispatcher.retries),
        ("sage_llm_pauses_total", "Running requests paused for others.", dispatcher.pauses),
        (
            "sage_llm_reserve_pauses_total",
            "Running requests paused for the owners of reserved KV.",
            dispatcher.placement.gate.tree.pauses,
        ),
        ("sage_llm_prefetch_hints_total", "Waiting requests that an instance was told of.", fleet.hints.sent),
        ("sage_llm_prefetched_pages_total", "Pages of KV that moved up for them.", fleet.hints.pages),
        ("sage_llm_batches_total", "Batches of embedding and reranking requests.", calls.batches),
        (
            "sage_llm_call_retries_total",
            "Embedding and reranking requests that were sent again.",
            calls.retries,
        ),
    )
    for name, text, value in totals:
        yield Metric(name=name, kind="counter", help=text, value=value)
    yield from dispatcher.placement.interruptions.metrics()
    yield from _hand_over_metrics(dispatcher.hand_overs)
    waiting = len(dispatcher.placement.waiting())
    yield Metric(
        name="sage_llm_waiting_requests",
        kind="gauge",
        help="Requests that wait for an instance.",
        value=waiting,
    )
    for replica in fleet.replicas.values():
        labels = {"model": replica.model_id, "instance": replica.replica_id}
        yield Metric(
            name="sage_llm_instance_up", kind="gauge", help="1 if the instance accepts requests.",
            value=float(_word(replica) in ("ready", "probation")), labels=labels,
        )  # fmt: skip
        yield Metric(
            name="sage_llm_instance_restarts_total", kind="counter", help="Restarts of the replica.",
            value=replica.restarts.total, labels=labels,
        )  # fmt: skip
        instance = replica.instance
        if instance is None:
            continue
        gauges = (
            ("running", "Requests with output on the instance.", instance.running),
            ("queued_tokens", "Prompt tokens that wait on the instance.", instance.queued_tokens),
            ("context_tokens", "Tokens of the running requests.", instance.context_tokens),
            ("migrated_in", "Requests taken over from other instances.", instance.migrated_in),
            ("migrated_out", "Requests handed over to other instances.", instance.migrated_out),
        )
        for name, text, value in gauges:
            yield Metric(
                name=f"sage_llm_instance_{name}", kind="gauge", help=text, value=value, labels=labels
            )
        if instance.report is not None:
            yield from _engine_metrics(instance.report, labels)


def _engine_metrics(report: InstanceReport, labels: dict[str, str]) -> Iterator[Metric]:
    """What an engine reports; KV blocks only if it has some."""
    for name, text, count in (
        ("prompt_tokens", "Prompt tokens that the engine has computed.", report.prompt_tokens),
        ("cached_tokens", "Prompt tokens found in a cache of the engine.", report.prefix_hit_tokens),
        ("output_tokens", "Tokens that the engine has generated.", report.output_tokens),
    ):
        yield Metric(
            name=f"sage_llm_instance_{name}_total", kind="counter", help=text, value=count, labels=labels
        )
    if report.kv_blocks_total:
        used = report.kv_blocks_total - report.kv_blocks_free
        for name, text, value in (
            ("kv_blocks", "KV blocks of the engine.", report.kv_blocks_total),
            ("kv_blocks_used", "KV blocks that requests or cached prefixes hold.", used),
        ):
            yield Metric(
                name=f"sage_llm_instance_{name}", kind="gauge", help=text, value=value, labels=labels
            )


def _hand_over_metrics(hand_overs: HandOvers) -> Iterator[Metric]:
    for outcome, count in (("done", hand_overs.done), ("given_up", hand_overs.given_up)):
        yield Metric(
            name="sage_llm_hand_overs_total", kind="counter", labels={"outcome": outcome}, value=count,
            help="Requests whose prompt another instance was to compute.",
        )  # fmt: skip
    for name, text, value in (
        ("bytes", "Bytes of KV moved between instances.", hand_overs.nbytes),
        ("seconds", "Time in which KV was moved and imported.", hand_overs.seconds),
    ):
        yield Metric(name=f"sage_llm_hand_over_{name}_total", kind="counter", help=text, value=value)


def cluster(fleet: Fleet, dispatcher: Dispatcher, settings: ControlPlaneSettings) -> dict[str, Any]:
    """State of the cluster as JSON-ready data."""
    reports = [
        to_dict(r.instance.report)
        for r in fleet.replicas.values()
        if r.instance is not None and r.instance.report is not None and r.word == "running"
    ]
    return {
        "instances": reports,
        "replicas": [replica_row(replica) for replica in fleet.replicas.values()],
        "requests": {
            "open": len(dispatcher.open),
            "waiting": len(dispatcher.placement.waiting()),
            "migrations": dispatcher.migrations,
            "pauses": dispatcher.pauses,
            "retries": dispatcher.retries,
            "hand_overs": dispatcher.hand_overs.done,
            "hand_overs_given_up": dispatcher.hand_overs.given_up,
            **dispatcher.ends,
        },
        "tenants": _tenants(dispatcher.placement),
        "quotas": dispatcher.placement.gate.tree.report(),
        "calls": {
            "open": len(dispatcher.calls.open),
            "batches": dispatcher.calls.batches,
            "retries": dispatcher.calls.retries,
            **dispatcher.calls.ends,
        },
    }


def _tenants(placement: Placement) -> dict[str, Any]:
    """Open requests, reserved tokens and service of the tenants with requests."""
    return {
        name: {
            "requests": (used := placement.quotas.used(name))[0],
            "kv_tokens": used[1],
            "waiting": view.queued,
            "service": view.service,
        }
        for name, view in placement.tenants.items()
    }


def replica_row(replica: Replica) -> dict[str, Any]:
    """One replica, for ``sage llm status``."""
    instance, now = replica.instance, time.monotonic()
    row: dict[str, Any] = {
        "instance": replica.replica_id,
        "model": replica.model_id,
        "state": _word(replica),
        "reason": replica.reason
        if replica.word != "running" or not (instance and instance.reason)
        else instance.reason,
        "ended_s": None if replica.ended_at is None else now - replica.ended_at,
        "restarts": replica.restarts.total,
    }
    if instance is not None and replica.word == "running":
        report = instance.report
        total = report.kv_blocks_total if report is not None else 0
        row |= {
            "generation": instance.generation,
            "pid": getattr(replica.handle, "pid", None),
            "role": instance.descriptor.capability.instance_type,
            "running": instance.running,
            "queued_tokens": instance.queued_tokens,
            "kv_used": None if report is None or not total else 1 - report.kv_blocks_free / total,
            "cache_hits": _cache_hits(report),
            "report_age_s": max(now - instance.heard_at, 0.0),
            "migrated_in": instance.migrated_in,
            "migrated_out": instance.migrated_out,
            "served": instance.served,
        }
    return row


def _cache_hits(report: InstanceReport | None) -> float | None:
    """Share of the prompt tokens that the engine found in a cache; None before its first prompt."""
    if report is None or not (tokens := report.prompt_tokens + report.prefix_hit_tokens):
        return None
    return report.prefix_hit_tokens / tokens


def _word(replica: Replica) -> str:
    if replica.word == "running" and replica.instance is not None:
        return replica.instance.word
    return replica.word

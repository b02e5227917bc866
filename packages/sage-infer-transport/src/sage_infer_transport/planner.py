"""Plans: the order of chunks, and the estimated time over the links and memory of a hardware profile."""

from __future__ import annotations

from collections.abc import Sequence

from sage_infer.errors import InvalidRequest
from sage_infer.schemas import (
    HardwareProfile,
    KVChunk,
    KVLocation,
    LinkProfile,
    TransportPlan,
    TransportSettings,
    TransportStep,
)

from sage_infer_transport.addresses import scheme

__all__ = ["plan_transfer"]


def plan_transfer(
    plan_id: str,
    chunks: Sequence[KVChunk],
    sources: Sequence[KVLocation],
    targets: Sequence[KVLocation],
    *,
    settings: TransportSettings,
    profile: HardwareProfile | None = None,
    deadline_s: float | None = None,
) -> TransportPlan:
    """Plan the transfer of chunks from one endpoint to another.

    With ``settings.overlap_compute`` lower layers come first, so that the target can begin with them; without, chunks
    travel in token order. The link is the profile's network link with the highest bandwidth, or with the lowest
    latency if ``settings.objective`` is ``latency``; its figures give ``estimated_time_s``, in seconds. Transfers
    within one host are estimated from the bandwidth of its memory. Without a figure the estimate is null.

    Raises:
        InvalidRequest: the sequences differ in length.
    """
    if not len(chunks) == len(sources) == len(targets):
        raise InvalidRequest(
            f"{len(chunks)} chunks, {len(sources)} sources and {len(targets)} targets; expected one of each per chunk"
        )
    link = _network_link(profile, settings) if _crosses_network([*sources, *targets]) else None
    layers_first = settings.overlap_compute
    order = sorted(
        range(len(chunks)),
        key=lambda i: (
            (chunks[i].layer_start, chunks[i].token_start)
            if layers_first
            else (chunks[i].token_start, chunks[i].layer_start)
        ),
    )
    rank = {index: position for position, index in enumerate(order)}
    steps = tuple(
        TransportStep(
            chunk=chunk,
            source=source,
            target=target,
            link=None if link is None else f"{link.source}->{link.target}",
            nbytes=chunk.nbytes,
            priority=rank[index],
            deadline_s=deadline_s,
        )
        for index, (chunk, source, target) in enumerate(zip(chunks, sources, targets, strict=True))
    )
    gbs, latency_us = _speed(profile, link, crosses=_crosses_network([*sources, *targets]))
    total = sum(chunk.nbytes for chunk in chunks)
    rounds = -(-len(chunks) // settings.max_in_flight)
    estimate = None if gbs is None else total / (gbs * 1e9) + rounds * latency_us * 1e-6
    return TransportPlan.from_steps(plan_id, steps, estimated_time_s=estimate)


def _crosses_network(locations: Sequence[KVLocation]) -> bool:
    return any(scheme(location.uri) not in ("shm", "file") for location in locations)


def _network_link(profile: HardwareProfile | None, settings: TransportSettings) -> LinkProfile | None:
    links = [] if profile is None else [link for link in profile.links if link.kind == "network"]
    if settings.objective == "latency":
        measured = [link for link in links if link.latency_us is not None]
        return min(measured, key=lambda link: link.latency_us.value, default=None)  # type: ignore[union-attr]
    known = [(gbs, link) for link in links if (gbs := _bandwidth(link)) is not None]
    return max(known, key=lambda pair: pair[0], default=(0.0, None))[1]


def _bandwidth(link: LinkProfile) -> float | None:
    figure = link.measured_gbs or link.nominal_gbs
    return None if figure is None else figure.value


def _speed(
    profile: HardwareProfile | None, link: LinkProfile | None, *, crosses: bool
) -> tuple[float | None, float]:
    """Bandwidth in GB/s, if known, and latency in microseconds."""
    if link is not None:
        return _bandwidth(link), 0.0 if link.latency_us is None else link.latency_us.value
    if crosses or profile is None:
        return None, 0.0
    figures = (tier.measured_read_gbs for tier in profile.memory_tiers if tier.tier == "dram")
    return next((figure.value for figure in figures if figure is not None), None), 0.0

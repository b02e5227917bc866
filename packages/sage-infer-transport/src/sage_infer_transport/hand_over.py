"""Hand a prefilled request over: publish its KV in one process, fetch it into the engine of another."""

from __future__ import annotations

from attrs import evolve
from sage_infer.contracts import KVEndpoint, KVStateChecking, KVTransfer, Transport
from sage_infer.errors import InvalidRequest, KVCorrupt
from sage_infer.schemas import DecodeState, HardwareProfile, KVLocation, TransportReport, TransportSettings

from sage_infer_transport.planner import plan_transfer

__all__ = ["fetch_state", "publish_state", "withdraw_state"]


async def publish_state(state: DecodeState, *, source: KVTransfer, endpoint: KVEndpoint) -> DecodeState:
    """Export the KV of a state and publish it; returns the state with the locations of its chunks.

    The state is plain data: send it to the process that will decode. The KV stays in ``source`` until
    ``source.abort(state.request_id)``, and at the endpoint until ``withdraw_state``.

    Args:
        state: state of ``source.prefill``.
        source: backend that holds the KV; it claims ``kv_export``.
        endpoint: endpoint of this process.

    Raises:
        InvalidRequest: ``source`` does not hold the state's KV.
        Overloaded: no room at the endpoint now.
    """
    exported, buffers = await source.export_kv(state)
    locations = endpoint.publish(exported.chunks, buffers)
    chunks = tuple(evolve(c, location=place) for c, place in zip(exported.chunks, locations, strict=True))
    return evolve(exported, chunks=chunks)


def withdraw_state(state: DecodeState, *, endpoint: KVEndpoint) -> None:
    """Withdraw the chunks of a published state."""
    endpoint.withdraw(_locations(state))


async def fetch_state(
    state: DecodeState,
    *,
    target: KVTransfer,
    endpoint: KVEndpoint,
    transport: Transport,
    settings: TransportSettings | None = None,
    profile: HardwareProfile | None = None,
) -> tuple[DecodeState, TransportReport]:
    """Move the KV of a published state here and import it. A target with ``KVStateChecking`` refuses a state first.

    Returns the state for ``target.decode``, and the transport's report. The endpoint is as empty afterwards as before,
    also after an error.

    Args:
        state: state of ``publish_state``.
        target: backend that will decode; it claims ``kv_import``.
        endpoint: endpoint of this process.
        transport: transport that reaches both endpoints.
        settings: settings for the plan's order; the defaults if omitted.
        profile: hardware profile for the plan's link and estimated time.

    Raises:
        InvalidRequest: the state was not published, or the transport does not reach it.
        KVCorrupt: a chunk did not arrive; the message is that of the transport.
        CapabilityMismatch: the target has another model, other weights, or a KV schema that the state's cannot be
            converted to.
        Overloaded: no room at the endpoint or in the target now.
    """
    sources = _locations(state)
    if len(sources) != len(state.chunks):
        raise InvalidRequest(
            f"the KV of request {state.request_id} has no locations; publish the state first"
        )
    if isinstance(target, KVStateChecking):
        await target.check_state(state)
    places = endpoint.reserve(state.chunks)
    try:
        plan = plan_transfer(
            f"fetch {state.request_id}", state.chunks, sources, places, settings=settings or TransportSettings(),
            profile=profile,
        )  # fmt: skip
        report = await transport.execute(plan)
        if not report.ok:
            raise KVCorrupt("; ".join(report.errors) or "a step was skipped")
        return await target.import_kv(state, [endpoint.open(place) for place in places]), report
    finally:
        endpoint.withdraw(places)


def _locations(state: DecodeState) -> list[KVLocation]:
    return [chunk.location for chunk in state.chunks if chunk.location is not None]

"""KV of prefilled requests, published for other replicas and fetched from them. Runs in the process of a replica."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from sage_infer.contracts import KVEndpoint, KVFlushing, Transport
from sage_infer.errors import SageInferError, UnsupportedFeature
from sage_infer.plugins import open_endpoint, open_transport
from sage_infer.schemas import DecodeState, TransportSettings
from sage_infer_transport import fetch_state, publish_state, withdraw_state

__all__ = ["STORE", "HandOverRoom", "flush_kv"]

STORE = "store"
"""In place of a transport: KV moves through the KV store that the replicas share."""


class HandOverRoom:
    """The endpoints of one replica, and what is published there.

    The bytes travel from engine to engine through the transport; the router only carries the states.

    Args:
        backend: the replica's backend.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._endpoints: dict[str, asyncio.Future[KVEndpoint]] = {}
        self._transports: dict[tuple[str, TransportSettings], Transport] = {}
        self._published: dict[str, tuple[KVEndpoint, DecodeState]] = {}

    async def publish(self, state: DecodeState, transport: str) -> DecodeState:
        """Publish the KV of a held prefill; returns the state with its locations, of which a store has none.

        Raises:
            UnsupportedFeature: the backend does not claim ``kv_export``, or for ``store``, has no KV store; or the
                transport has no endpoint.
            BackendUnavailable: the transport is not ready here.
            InvalidRequest, Overloaded: as ``publish_state`` of sage-infer-transport.
        """
        if transport == STORE:
            await flush_kv(self._backend)
            return state
        self._require("kv_export")
        endpoint = await self._endpoint(transport)
        found = await publish_state(state, source=self._backend, endpoint=endpoint)
        self._published[state.request_id] = endpoint, found
        return found

    async def fetch(
        self, state: DecodeState, transport: str, settings: TransportSettings
    ) -> tuple[DecodeState, int]:
        """Move the KV of a published state here, and import it; returns the state for ``decode`` and the bytes moved.

        Raises:
            UnsupportedFeature: the backend does not claim ``kv_import``, or the transport has no endpoint.
            BackendUnavailable: the transport is not ready here.
            SageInferError: as ``fetch_state`` of sage-infer-transport.
        """
        self._require("kv_import")
        key = transport, settings
        if key not in self._transports:
            self._transports[key] = open_transport(transport, settings=settings)
        found, report = await fetch_state(
            state,
            target=self._backend,
            endpoint=await self._endpoint(transport),
            transport=self._transports[key],
            settings=settings,
        )
        return found, report.moved_bytes

    async def release(self, request_id: str) -> None:
        """End a request here: its held KV, and what of it is published. Unknown ids are ignored."""
        self._withdraw(request_id)
        await self._backend.abort(request_id)

    async def close(self) -> None:
        """Withdraw everything, and close endpoints and transports. Safe to call twice."""
        for request_id in list(self._published):
            self._withdraw(request_id)
        transports, self._transports = self._transports, {}
        endpoints, self._endpoints = self._endpoints, {}
        for transport in transports.values():
            await transport.close()
        for opening in endpoints.values():
            with suppress(SageInferError):  # it did not open
                await asyncio.to_thread((await opening).close)

    def _withdraw(self, request_id: str) -> None:
        endpoint, state = self._published.pop(request_id, (None, None))
        if endpoint is not None and state is not None:
            withdraw_state(state, endpoint=endpoint)

    async def _endpoint(self, transport: str) -> KVEndpoint:
        """The endpoint of a transport.

        It opens in a thread, as that may take seconds, and also if the caller stops waiting.
        """
        opening = self._endpoints.get(transport)
        if opening is None:
            opening = asyncio.ensure_future(asyncio.to_thread(open_endpoint, transport))
            self._endpoints[transport] = opening
        try:
            return await asyncio.shield(opening)
        except SageInferError:
            if self._endpoints.get(transport) is opening:
                del self._endpoints[transport]  # the next caller tries again
            raise

    def _require(self, feature: str) -> None:
        capability = self._backend.get_capability()
        if not capability.supports(feature):
            raise UnsupportedFeature(
                f"{capability.backend_name} does not claim {feature}; choose a backend that does"
            )


async def flush_kv(backend: Any) -> None:
    """Wait until the KV store of a backend has what it has computed.

    Raises:
        UnsupportedFeature: it has no store.
    """
    if not isinstance(backend, KVFlushing) or not await backend.flush_kv():
        raise UnsupportedFeature(
            "KV did not reach a store in time; set the option kv_store, with a store that the replicas share"
        )

"""Carries a step's results from the engine thread to the consumers' event loops."""

from __future__ import annotations

import asyncio

from attrs import define, field
from sage_infer.errors import SageInferError
from sage_infer.schemas import Timing, TokenDelta, Usage

from sage_infer_openvino.engine.sequence import EngineRequest

__all__ = ["Outbox"]


@define
class _Parcel:
    """The results of one step for one event loop."""

    deltas: list[tuple[EngineRequest, TokenDelta]] = field(factory=list)
    ended: list[tuple[EngineRequest, SageInferError | None, Usage, Timing]] = field(factory=list)
    held: list[EngineRequest] = field(factory=list)

    def open(self) -> None:
        """Runs in the event loop."""
        for request, delta in self.deltas:
            if request.stream is not None:
                request.stream.push(delta)
        for request, error, usage, timing in self.ended:
            if request.on_held is not None:
                request.on_held(error)
            if request.stream is None:
                continue
            if error is None:
                request.stream.finish(request.sequences[0].finish_reason or "stop", usage, timing)
            else:
                request.stream.fail(error, usage, timing)
        for request in self.held:
            if request.on_held is not None:
                request.on_held(None)


class Outbox:
    """Filled during a step; ``send`` costs one call into each event loop."""

    def __init__(self) -> None:
        self._parcels: dict[asyncio.AbstractEventLoop, _Parcel] = {}

    def delta(self, request: EngineRequest, delta: TokenDelta) -> None:
        self._parcel(request).deltas.append((request, delta))

    def ended(self, request: EngineRequest, error: SageInferError | None) -> None:
        """Record usage and timing now, at the actual end, not when the event loop processes it."""
        self._parcel(request).ended.append((request, error, request.usage(), request.timing()))

    def held(self, request: EngineRequest) -> None:
        self._parcel(request).held.append(request)

    def send(self) -> list[EngineRequest]:
        """Deliver everything; returns the requests whose event loop is closed, which have no reader."""
        parcels, self._parcels = self._parcels, {}
        unread: dict[int, EngineRequest] = {}
        for loop, parcel in parcels.items():
            try:
                loop.call_soon_threadsafe(parcel.open)
            except RuntimeError:
                unread |= {id(request): request for request in [*(r for r, _ in parcel.deltas), *parcel.held]}
        return list(unread.values())

    def _parcel(self, request: EngineRequest) -> _Parcel:
        return self._parcels.setdefault(request.loop, _Parcel())

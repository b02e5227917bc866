"""Sharing a device's compute between models."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from sage_infer.compat import timeout
from sage_infer.errors import RequestCancelled
from sage_infer.schemas.capability import SharingMode

from sage_infer_hybrid.loaded import LoadedModel
from sage_infer_hybrid.streams import DeviceStreams
from sage_infer_hybrid.time_slice import Batch, TimeSlicer

__all__ = ["ComputeSharing", "in_time"]

CHARACTERS_OF_TOKEN = 4  # makes the sizes of texts and token ids comparable

Item = TypeVar("Item")
Result = TypeVar("Result")


@asynccontextmanager
async def in_time(deadline: float | None) -> AsyncIterator[None]:
    """Cancel the body after ``deadline`` seconds with ``RequestCancelled``; None sets no limit."""
    try:
        async with timeout(deadline) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise RequestCancelled(f"the call missed its deadline of {deadline:g} s", by="deadline") from None


class ComputeSharing:
    """Runs batch work of ``loaded`` models, in slices where streams may be live on its device."""

    def __init__(self, mode: SharingMode, loaded: Mapping[str, LoadedModel]) -> None:
        self._mode = mode
        self._loaded = loaded
        self._slicers: dict[str, TimeSlicer] = {}

    async def run(
        self,
        model: LoadedModel,
        items: Sequence[Item],
        compute: Callable[[Sequence[Item]], Awaitable[Result]],
        *,
        each: int = 0,
        deadline: float | None = None,
    ) -> list[Result]:
        """Run ``compute`` on all items (at least one) in parts; returns the parts' results in order.

        ``each`` is the number of additional characters per item. Calls of one model run in order of ``deadline``
        (seconds from now), earliest first.
        """
        if self._mode != "time_slice" or not self._generating_on(model.device):
            return [await compute(items)]
        sizes = [each + _size(item) for item in items]
        return await self._slicer(model.device).run(
            Batch(
                model.descriptor.model_id,
                items,
                sizes,
                compute,
                model.weight,
                due=math.inf if deadline is None else time.monotonic() + deadline,
            )
        )

    def _generating_on(self, device: str) -> list[LoadedModel]:
        return [m for m in self._loaded.values() if m.generates and device in m.devices]

    def _slicer(self, device: str) -> TimeSlicer:
        if device not in self._slicers:
            streams = DeviceStreams(lambda: self._generating_on(device), clock=time.monotonic)
            self._slicers[device] = TimeSlicer(streams, clock=time.monotonic)
        return self._slicers[device]


def _size(item: object) -> int:
    if isinstance(item, str):
        return len(item)
    return CHARACTERS_OF_TOKEN * len(item) if isinstance(item, Sequence) else 1

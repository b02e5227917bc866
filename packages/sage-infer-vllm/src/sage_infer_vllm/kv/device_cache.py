"""Pages of a KV cache in a CUDA device's memory.

A page is gathered from its layers, or scattered to them, on the device: so it crosses the bus in one copy, and from or
to an arena without the CPU, because the arena's memory is registered with the device.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

__all__ = ["DeviceCache"]

_log = logging.getLogger("vllm.sage_infer")

_STAGED_BYTES = 64 * 2**20  # of device memory, and of pinned host memory, that one copy takes


class DeviceCache:
    """Copies pages between blocks of the cache and host memory.

    Args:
        layers: each layer's memory on the device, ``[block, byte]`` of uint8.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        import torch

        self._torch = torch
        self._layers = list(layers)
        self._device = self._layers[0].device
        self.page_bytes = sum(int(layer.shape[1]) for layer in self._layers)
        self._at_once = max(_STAGED_BYTES // self.page_bytes, 1)
        self._side: Any = torch.cuda.Stream(self._device)
        self._host: Any = None  # pinned, allocated at its first use
        self._registered: Any = None
        self._copied: queue.SimpleQueue[tuple[Any, Callable[[], None]]] = queue.SimpleQueue()
        self._watcher: threading.Thread | None = None

    def register(self, memory: Any) -> None:
        """Let the device read and write this array of bytes directly; it replaces the last one."""
        cudart = self._torch.cuda.cudart()
        if self._registered is not None:
            self._torch.cuda.synchronize(self._device)
            cudart.cudaHostUnregister(self._registered.ctypes.data)
            self._registered = None
        error = int(cudart.cudaHostRegister(memory.ctypes.data, memory.nbytes, 0))
        if error:  # copies are slower then, and still right
            _log.warning(
                "%d bytes of host memory cannot be registered with the device (CUDA error %d)",
                memory.nbytes,
                error,
            )
            return
        self._registered = memory

    def read(self, blocks: Sequence[int], pages: Sequence[Any]) -> None:
        """Copy blocks that no running step writes; returns when the pages are complete."""
        # Not on the stream of the steps, so that running decodes continue.
        with self._torch.cuda.stream(self._side):
            for part in self._parts(len(blocks)):
                taken = blocks[part]
                host = self._pinned()[: len(taken)]
                host.copy_(self._gathered(taken), non_blocking=True)
                self._side.synchronize()
                for page, row in zip(pages[part], host.numpy(), strict=True):
                    page[:] = row

    def write(self, pages: Sequence[Any], blocks: Sequence[int]) -> None:
        """Fill blocks before the next step computes; returns when the pages are not read any more."""
        stream = self._torch.cuda.current_stream(self._device)
        for part in self._parts(len(blocks)):
            taken = pages[part]
            staged = self._staged(len(taken))
            for row, page in zip(staged, taken, strict=True):
                row.copy_(self._torch.from_numpy(page), non_blocking=True)
            self._scatter(staged, blocks[part])
        stream.synchronize()

    def move(self, sources: Sequence[int], blocks: Sequence[int]) -> None:
        """Copy blocks to other blocks before the next step computes."""
        pairs = [(source, block) for source, block in zip(sources, blocks, strict=True) if source != block]
        if not pairs:
            return
        taken, filled = (self._indices(side) for side in zip(*pairs, strict=True))
        for layer in self._layers:
            layer.index_copy_(0, filled, layer.index_select(0, taken))

    def save(self, blocks: Sequence[int], pages: Sequence[Any], done: Callable[[], None]) -> None:
        """Copy blocks as the last step left them; ``done`` is called in a thread when the pages are complete."""
        gathered = self._gathered(blocks)  # in the order of the steps: the next one may write to these blocks
        self._side.wait_stream(self._torch.cuda.current_stream(self._device))
        gathered.record_stream(self._side)
        with self._torch.cuda.stream(self._side):
            for page, row in zip(pages, gathered, strict=True):
                self._torch.from_numpy(page).copy_(row, non_blocking=True)
            complete = self._torch.cuda.Event()
            complete.record(self._side)
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch, name="kv-saves", daemon=True)
            self._watcher.start()
        self._copied.put((complete, done))

    def _watch(self) -> None:
        while True:
            complete, done = self._copied.get()
            try:
                complete.synchronize()
            except Exception:
                _log.exception("KV is not saved")
                continue
            done()

    def _parts(self, count: int) -> Iterator[slice]:
        return (slice(first, first + self._at_once) for first in range(0, count, self._at_once))

    def _pinned(self) -> Any:
        if self._host is None:
            self._host = self._torch.empty(
                (self._at_once, self.page_bytes), dtype=self._torch.uint8, pin_memory=True
            )
        return self._host

    def _staged(self, count: int) -> Any:
        return self._torch.empty((count, self.page_bytes), dtype=self._torch.uint8, device=self._device)

    def _indices(self, blocks: Sequence[int]) -> Any:
        # From pinned memory, as any other copy would wait for the step that runs.
        host = self._torch.tensor(list(blocks), dtype=self._torch.int64, pin_memory=True)
        return host.to(self._device, non_blocking=True)

    def _gathered(self, blocks: Sequence[int]) -> Any:
        indices, staged, at = self._indices(blocks), self._staged(len(blocks)), 0
        for layer in self._layers:
            width = int(layer.shape[1])
            staged[:, at : at + width] = layer.index_select(0, indices)
            at += width
        return staged

    def _scatter(self, staged: Any, blocks: Sequence[int]) -> None:
        indices, at = self._indices(blocks), 0
        for layer in self._layers:
            width = int(layer.shape[1])
            layer.index_copy_(0, indices, staged[:, at : at + width])
            at += width

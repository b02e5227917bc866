"""The connector's part in a worker: pages of the KV cache as bytes, copied between blocks and shared memory."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sage_infer_vllm.kv.arena import Arena, ArenaPlace
from sage_infer_vllm.kv.device_cache import DeviceCache
from sage_infer_vllm.kv.facts import layer_place
from sage_infer_vllm.kv.host_cache import HostCache
from sage_infer_vllm.kv.plan import ArenaCopies, PageLoad

__all__ = ["WorkerSide"]


class WorkerSide:
    """Copies pages of the worker's own cache, in host memory or in that of a CUDA device.

    A page is a block of every layer, in the order of the layers.
    """

    def __init__(self) -> None:
        self._cache: HostCache | DeviceCache | None = None
        self._failed: set[int] = set()
        self._arena: Arena | None = None

    @property
    def page_bytes(self) -> int:
        """Bytes of one page; 0 before the cache is there, or where its memory is another device's."""
        return 0 if self._cache is None else self._cache.page_bytes

    def register(self, caches: Mapping[str, Any], num_blocks: int) -> None:
        """``caches``: each layer's tensor, blocks first."""
        import torch

        layers, seen = [], set()
        for _, tensor in sorted(caches.items(), key=lambda item: layer_place(item[0])):
            if not isinstance(tensor, torch.Tensor) or tensor.device.type not in ("cpu", "cuda"):
                return
            if tensor.data_ptr() in seen:  # a layer that shares another's cache
                continue
            seen.add(tensor.data_ptr())
            size = tensor.element_size()
            width = tensor.numel() * size // num_blocks
            if tensor.stride(0) * size != width:
                return  # the bytes of a block are not together
            start = tensor.storage_offset() * size
            raw = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
            layers.append(raw[start : start + width * num_blocks].view(num_blocks, width))
        if not layers:
            return
        if layers[0].device.type == "cuda":
            self._cache = DeviceCache(layers)
        else:
            self._cache = HostCache([layer.numpy() for layer in layers])

    @property
    def _pages(self) -> HostCache | DeviceCache:
        if self._cache is None:
            raise RuntimeError("the pages of this worker's KV cache cannot be copied")
        return self._cache

    def load(self, loads: Iterable[PageLoad]) -> None:
        """Fill blocks; those that cannot be filled are reported by ``take_failed``.

        Raises:
            Exception: the first failure, after all other blocks are filled.
        """
        failure: Exception | None = None
        for load in loads:
            try:
                if load.held:
                    self._pages.move(load.held, load.blocks)
                else:
                    with _Mapped(load.file) as pages:
                        self._pages.write(
                            pages.pages(load.first, len(load.blocks), self.page_bytes), load.blocks
                        )
            except Exception as error:
                self._failed.update(load.blocks)
                failure = failure or error
        if failure is not None:
            raise failure

    def load_stored(self, copies: ArenaCopies) -> None:
        """Fill blocks with pages of an arena, before the step computes; failures are reported as by ``load``."""
        if not copies.loads:
            return
        slots, blocks = zip(*copies.loads, strict=True)
        try:
            arena = self._open(copies.place)
            self._pages.write([arena.page(slot) for slot in slots], blocks)
        except Exception:
            self._failed.update(blocks)
            raise
        arena.set_loaded_step(copies.step)

    def save(self, copies: ArenaCopies) -> None:
        """Copy blocks that this step has completed to an arena."""
        if not copies.saves:
            return
        arena = self._open(copies.place)
        blocks, slots = zip(*copies.saves, strict=True)

        def done() -> None:
            for slot in slots:
                arena.filled(slot)

        self._pages.save(blocks, [arena.page(slot) for slot in slots], done)

    def _open(self, place: ArenaPlace) -> Arena:
        if self._arena is None or self._arena.place != place:
            if place.page_bytes != self.page_bytes:
                raise ValueError(
                    f"a page of the arena has {place.page_bytes} bytes, and {self.page_bytes} here"
                )
            arena = Arena.open(place)
            self._pages.register(arena.memory)
            self._arena = arena
        return self._arena

    def take_failed(self) -> set[int]:
        failed, self._failed = self._failed, set()
        return failed

    def read(self, file: str, first: int, blocks: Sequence[int]) -> int:
        """Copy blocks into a file of shared memory, from its page ``first`` on; returns the bytes of a page."""
        with _Mapped(file) as pages:
            self._pages.read(blocks, pages.pages(first, len(blocks), self.page_bytes))
        return self.page_bytes


class _Mapped:
    """A file of shared memory that another process made, as an array of bytes."""

    def __init__(self, file: str) -> None:
        import numpy as np

        descriptor = os.open(file, os.O_RDWR)
        try:
            self._memory = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)
        self._bytes: Any = np.frombuffer(self._memory, np.uint8)

    def __enter__(self) -> _Mapped:
        return self

    def __exit__(self, *_: object) -> None:
        self._bytes = None  # the memory is unmapped with its last view

    def pages(self, first: int, count: int, nbytes: int) -> list[Any]:
        """``count`` pages of ``nbytes`` from page ``first`` on."""
        last = first + count
        if len(self._bytes) < last * nbytes:
            raise ValueError(f"shared memory ends before page {last - 1} of {nbytes} bytes")
        return list(self._bytes[first * nbytes : last * nbytes].reshape(count, nbytes))

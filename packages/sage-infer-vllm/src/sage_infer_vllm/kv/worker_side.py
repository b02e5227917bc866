"""The connector's part in a worker: pages of the KV cache as bytes, copied between blocks and shared memory."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sage_infer_vllm.kv.arena import Arena, ArenaPlace
from sage_infer_vllm.kv.plan import ArenaCopies, PageLoad

__all__ = ["WorkerSide"]


class WorkerSide:
    """Copies pages of the worker's own cache, on host memory.

    A page is a block of every layer, in the order of the layers.

    Attributes:
        page_bytes: bytes of one page; 0 before the cache is there, or where its memory is a device's.
    """

    def __init__(self) -> None:
        self.page_bytes = 0
        self._layers: list[Any] = []  # one array (blocks, bytes) a layer
        self._failed: set[int] = set()
        self._arena: Arena | None = None

    def register(self, caches: Mapping[str, Any], num_blocks: int) -> None:
        """``caches``: each layer's tensor, blocks first."""
        import torch

        layers, seen = [], set()
        for _, tensor in sorted(caches.items(), key=lambda item: _place(item[0])):
            if not isinstance(tensor, torch.Tensor) or tensor.device.type != "cpu":
                return
            if tensor.data_ptr() in seen:  # a layer that shares another's cache
                continue
            seen.add(tensor.data_ptr())
            width = tensor.numel() * tensor.element_size() // num_blocks
            start = tensor.storage_offset() * tensor.element_size()
            raw = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
            layers.append(raw[start : start + width * num_blocks].view(num_blocks, width).numpy())
        self._layers = layers
        self.page_bytes = sum(int(layer.shape[1]) for layer in layers)

    def load(self, loads: Iterable[PageLoad]) -> None:
        """Fill blocks; those that cannot be filled are reported by ``take_failed``.

        Raises:
            Exception: the first failure, after all other blocks are filled.
        """
        failure: Exception | None = None
        for load in loads:
            try:
                if load.held:
                    for source, block in zip(load.held, load.blocks, strict=True):
                        if source != block:
                            for layer in self._layers:
                                layer[block] = layer[source]
                else:
                    with _Mapped(load.file) as pages:
                        for page, block in enumerate(load.blocks, load.first):
                            self._write(block, pages.page(page, self.page_bytes))
            except Exception as error:
                self._failed.update(load.blocks)
                failure = failure or error
        if failure is not None:
            raise failure

    def load_stored(self, copies: ArenaCopies) -> None:
        """Fill blocks with pages of an arena, before the step computes; failures are reported as by ``load``."""
        if not copies.loads:
            return
        try:
            arena = self._open(copies.place)
        except Exception:
            self._failed.update(block for _, block in copies.loads)
            raise
        for slot, block in copies.loads:
            self._write(block, arena.page(slot))
        arena.set_loaded_step(copies.step)

    def save(self, copies: ArenaCopies) -> None:
        """Copy blocks that this step has completed to an arena."""
        if not copies.saves:
            return
        arena = self._open(copies.place)
        for block, slot in copies.saves:
            self._read(block, arena.page(slot))
            arena.filled(slot)

    def _open(self, place: ArenaPlace) -> Arena:
        if self._arena is None or self._arena.place != place:
            if place.page_bytes != self.page_bytes:
                raise ValueError(
                    f"a page of the arena has {place.page_bytes} bytes, and {self.page_bytes} here"
                )
            self._arena = Arena.open(place)
        return self._arena

    def take_failed(self) -> set[int]:
        failed, self._failed = self._failed, set()
        return failed

    def read(self, file: str, first: int, blocks: Sequence[int]) -> int:
        """Copy blocks into a file of shared memory, from its page ``first`` on; returns the bytes of a page."""
        with _Mapped(file) as pages:
            for page, block in enumerate(blocks, first):
                self._read(block, pages.page(page, self.page_bytes))
        return self.page_bytes

    def _read(self, block: int, out: Any) -> None:
        at = 0
        for layer in self._layers:
            width = layer.shape[1]
            out[at : at + width] = layer[block]
            at += width

    def _write(self, block: int, page: Any) -> None:
        at = 0
        for layer in self._layers:
            width = layer.shape[1]
            layer[block] = page[at : at + width]
            at += width


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

    def page(self, index: int, nbytes: int) -> Any:
        found = self._bytes[index * nbytes : (index + 1) * nbytes]
        if len(found) != nbytes:
            raise ValueError(f"shared memory ends before page {index} of {nbytes} bytes")
        return found


def _place(name: str) -> tuple[int, str]:
    """Index of a layer in the model, from a name such as ``model.layers.3.self_attn.attn``."""
    number = re.search(r"\.(\d+)(\.|$)", name)
    return (int(number[1]) if number else -1, name)

"""Pages of a KV cache in host memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["HostCache"]


class HostCache:
    """Copies pages between blocks of the cache and other host memory; each call returns when it has copied.

    Args:
        layers: each layer's memory, an array ``[block, byte]``.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = list(layers)
        self.page_bytes = sum(int(layer.shape[1]) for layer in self._layers)

    def register(self, memory: Any) -> None:
        """Host memory needs no preparation."""

    def read(self, blocks: Sequence[int], pages: Sequence[Any]) -> None:
        for block, page in zip(blocks, pages, strict=True):
            at = 0
            for layer in self._layers:
                width = layer.shape[1]
                page[at : at + width] = layer[block]
                at += width

    def write(self, pages: Sequence[Any], blocks: Sequence[int]) -> None:
        for page, block in zip(pages, blocks, strict=True):
            at = 0
            for layer in self._layers:
                width = layer.shape[1]
                layer[block] = page[at : at + width]
                at += width

    def move(self, sources: Sequence[int], blocks: Sequence[int]) -> None:
        for source, block in zip(sources, blocks, strict=True):
            if source != block:
                for layer in self._layers:
                    layer[block] = layer[source]

    def save(self, blocks: Sequence[int], pages: Sequence[Any], done: Callable[[], None]) -> None:
        self.read(blocks, pages)
        done()

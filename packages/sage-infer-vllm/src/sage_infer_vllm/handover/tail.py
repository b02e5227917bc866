"""Clears the unused end of a prompt's last page, which may hold KV of other requests."""

from __future__ import annotations

from sage_infer.schemas import KVCacheSchema

__all__ = ["clear_tail"]


def clear_tail(page: memoryview, schema: KVCacheSchema, filled: int) -> None:
    """Zero keys and values behind the first ``filled`` tokens of a page.

    ``schema`` has one form for all layers, keys as wide as values, and no scales in its pages.
    """
    import numpy as np

    raw = np.frombuffer(page, np.uint8)
    sizes = {
        "layer": schema.num_layers,
        "kv": 2,
        "head": schema.num_heads,
        "token": schema.page_size,
        "dim": schema.head_dim,
    }
    for kv, order in enumerate((schema.key_order, schema.axis_order)):
        whole = raw.reshape([*(sizes[axis] for axis in order), -1])
        index: list[slice | int] = [slice(None)] * len(order)
        index[order.index("kv")], index[order.index("token")] = kv, slice(filled, None)
        whole[tuple(index)] = 0

"""KV stores: blocks of KV in memory, in memory that several processes share, and on disk."""

from typing import TYPE_CHECKING

from sage_infer.lazy import lazy_exports

__all__ = ["PagedStore", "SSDStore"]

if TYPE_CHECKING:
    from sage_infer_kvstore.paged.store import PagedStore
    from sage_infer_kvstore.ssd.store import SSDStore

_HOMES = {"PagedStore": "paged.store", "SSDStore": "ssd.store"}
__getattr__ = lazy_exports(__name__, _HOMES)

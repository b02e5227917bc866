"""KV stores: blocks of KV in memory, in memory that several processes share, on disk, and in tiers."""

from typing import TYPE_CHECKING

from sage_infer.lazy import lazy_exports

__all__ = ["PagedStore", "QuantizedStore", "SSDStore", "TieredStore", "ValkeyStore"]

if TYPE_CHECKING:
    from sage_infer_kvstore.paged.store import PagedStore
    from sage_infer_kvstore.quantized.store import QuantizedStore
    from sage_infer_kvstore.remote.store import ValkeyStore
    from sage_infer_kvstore.ssd.store import SSDStore
    from sage_infer_kvstore.tiers.store import TieredStore

_HOMES = {
    "PagedStore": "paged.store",
    "QuantizedStore": "quantized.store",
    "SSDStore": "ssd.store",
    "TieredStore": "tiers.store",
    "ValkeyStore": "remote.store",
}
__getattr__ = lazy_exports(__name__, _HOMES)

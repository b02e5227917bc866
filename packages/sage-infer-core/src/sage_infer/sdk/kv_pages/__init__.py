"""The KV store that a setting names, and parts of the ``KVBroker``: its pages, and the line of requests."""

from sage_infer.sdk.kv_pages.setting import check_kv_store, open_kv_store

__all__ = ["check_kv_store", "open_kv_store"]

"""Reads pages in a worker, for calls between two steps."""

from __future__ import annotations

from collections.abc import Sequence

from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

__all__ = ["page_bytes", "read_pages"]


def page_bytes() -> int:
    """Bytes of a page that this worker can copy; 0 where it cannot, or runs without the connector."""
    if not has_kv_transfer_group():
        return 0
    # Not at the top: before vLLM 0.23 this module cannot be imported, and there is no connector.
    from sage_infer_vllm.kv.connector import SageKVConnector

    connector = get_kv_transfer_group()
    return connector.worker.page_bytes if isinstance(connector, SageKVConnector) else 0


def read_pages(file: str, first: int, blocks: Sequence[int]) -> None:
    """Copy blocks of the KV cache into a file of shared memory, from its page ``first`` on."""
    get_kv_transfer_group().worker.read(file, first, blocks)

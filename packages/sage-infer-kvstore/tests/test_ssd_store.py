"""The SSD store passes the kit."""

from __future__ import annotations

import tempfile
from typing import ClassVar

from sage_infer_kvstore import SSDStore
from sage_infer_testing import KVStoreContract


class TestSSD(KVStoreContract):
    policy: ClassVar[str] = "fifo"
    direct: ClassVar[bool] = True

    def open_store(self, capacity_blocks: int) -> SSDStore:
        folder = tempfile.TemporaryDirectory()
        store = SSDStore(
            schema=self.kv_schema,
            model_id=self.model_id,
            path=folder.name,
            capacity_blocks=capacity_blocks,
            direct=self.direct,
        )
        store.folder = folder  # type: ignore[attr-defined]  # removed with the store
        return store


class TestSSDWithPageCache(TestSSD):
    direct = False
    examples = 10

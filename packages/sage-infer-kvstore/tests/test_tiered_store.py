"""The tiered store passes the kit, over memory and over a disk."""

from __future__ import annotations

import tempfile
from typing import Any, ClassVar

from sage_infer_kvstore import TieredStore
from sage_infer_testing import TieredKVStoreContract


class TestOverMemory(TieredKVStoreContract):
    policy: ClassVar[str] = "that of the lower store"
    options: ClassVar[dict[str, Any]] = {}

    def lower(self, capacity_blocks: int) -> dict[str, Any]:
        return {"store": "paged", "capacity_blocks": capacity_blocks}

    def open_store(self, capacity_blocks: int) -> TieredStore:
        return TieredStore(
            schema=self.kv_schema,
            model_id=self.model_id,
            lower=self.lower(capacity_blocks),
            upper={"capacity_blocks": max(1, capacity_blocks // 2)},
            wait_s=30.0,
            **self.options,
        )


class TestOverDisk(TestOverMemory):
    examples = 15

    def lower(self, capacity_blocks: int) -> dict[str, Any]:
        self.folder = tempfile.TemporaryDirectory()
        return {"store": "ssd", "path": self.folder.name, "capacity_blocks": capacity_blocks}


class TestWriteBack(TestOverMemory):
    options: ClassVar[dict[str, Any]] = {"write": "back", "policy": "hotness", "high_watermark": 0.5}


class TestLearnedReuse(TestOverMemory):
    examples = 15
    options: ClassVar[dict[str, Any]] = {"policy": "reuse"}

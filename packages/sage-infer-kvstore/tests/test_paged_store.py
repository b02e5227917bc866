"""The paged store, in memory of one process and in shared memory."""

from __future__ import annotations

import uuid

from sage_infer_kvstore import PagedStore
from sage_infer_testing import MappedKVStoreContract, PluginContract


class TestPlugin(PluginContract):
    module = "sage_infer_kvstore.plugin"


class TestPrivate(MappedKVStoreContract):
    def open_store(self, capacity_blocks: int) -> PagedStore:
        return PagedStore(schema=self.kv_schema, model_id=self.model_id, capacity_blocks=capacity_blocks)


class TestHotness(MappedKVStoreContract):
    policy = "hotness"
    examples = 15

    def open_store(self, capacity_blocks: int) -> PagedStore:
        return PagedStore(
            schema=self.kv_schema,
            model_id=self.model_id,
            capacity_blocks=capacity_blocks,
            policy=self.policy,
        )


class TestLearnedReuse(TestHotness):
    policy = "reuse"


class TestShared(MappedKVStoreContract):
    def open_store(self, capacity_blocks: int) -> PagedStore:
        name = f"test-{uuid.uuid4().hex}"
        return PagedStore(
            schema=self.kv_schema, model_id=self.model_id, name=name, capacity_blocks=capacity_blocks
        )

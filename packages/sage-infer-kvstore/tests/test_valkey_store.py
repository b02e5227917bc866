"""The Valkey store passes the kit against a real server, alone and below memory."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from sage_infer_kvstore import TieredStore
from sage_infer_testing import KVStoreContract, TieredKVStoreContract
from valkey_server import ValkeyServer, ValkeyStore, running_server


class _WithServer:
    server: ClassVar[ValkeyServer]

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def a_server(cls) -> Iterator[None]:
        with running_server() as cls.server:
            yield


class TestValkey(_WithServer, KVStoreContract):
    examples = 20

    def open_store(self, capacity_blocks: int) -> ValkeyStore:
        return ValkeyStore(
            schema=self.kv_schema,
            model_id=self.model_id,
            url=self.server.url,
            namespace=uuid.uuid4().hex,
            capacity_blocks=capacity_blocks,
            timeout_s=60.0,
        )


class TestBelowMemory(_WithServer, TieredKVStoreContract):
    policy: ClassVar[str] = "that of the lower store"
    examples = 10

    def open_store(self, capacity_blocks: int) -> TieredStore:
        lower: dict[str, Any] = {
            "store": "valkey",
            "url": self.server.url,
            "namespace": uuid.uuid4().hex,
            "capacity_blocks": capacity_blocks,
            "timeout_s": 60.0,
        }
        return TieredStore(
            schema=self.kv_schema,
            model_id=self.model_id,
            lower=lower,
            lower_tier="remote",
            upper={"capacity_blocks": max(1, capacity_blocks // 2)},
            wait_s=60.0,
        )

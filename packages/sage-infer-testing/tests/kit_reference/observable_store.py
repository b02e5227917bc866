"""A store that calls its subscribers for each change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sage_infer.contracts import KVStoreEvent
from sage_infer.schemas import KVCacheSchema

from kit_reference.store import ReferenceStore

__all__ = ["ReferenceObservableStore"]


class ReferenceObservableStore(ReferenceStore):
    """``subscribers`` are called under the store's lock."""

    def __init__(self, model_id: str, schema: KVCacheSchema, capacity: int) -> None:
        super().__init__(model_id, schema, capacity)
        self.subscribers: dict[object, Callable[[KVStoreEvent], None]] = {}

    def subscribe(self, callback: Callable[[KVStoreEvent], None]) -> Callable[[], None]:
        token = object()
        self.subscribers[token] = callback
        return lambda: self.unsubscribe(token)

    def unsubscribe(self, token: object) -> None:
        self.subscribers.pop(token, None)

    def tell(self, kind: Any, key: bytes) -> None:
        for callback in list(self.subscribers.values()):
            callback(KVStoreEvent(kind=kind, keys=(key,)))

    def keep(self, key: bytes, block: memoryview) -> None:
        super().keep(key, block)
        self.tell("stored", key)

    def forget(self, key: bytes) -> None:
        super().forget(key)
        self.tell("removed", key)

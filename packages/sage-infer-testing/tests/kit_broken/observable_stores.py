"""Stores that report their changes with one mistake each."""

from __future__ import annotations

from typing import Any

from kit_reference.observable_store import ReferenceObservableStore
from sage_infer_testing import ObservableKVStoreContract

from kit_broken.suites import suite


def observable(*tests: str) -> Any:
    return suite(ObservableKVStoreContract, "open_store", *tests)


@observable("test_stored_blocks_are_reported")
class ReportsEveryPut(ReferenceObservableStore):
    def put(self, keys: Any, blocks: Any) -> int:
        before = self.contains(keys)
        count = super().put(keys, blocks)
        for key, held in zip(keys, before, strict=True):
            if held:
                self.tell("stored", key)
        return count


@observable("test_removed_blocks_are_reported", "test_events_add_up_to_the_contents")
class HidesWhatItEvicts(ReferenceObservableStore):
    def forget(self, key: bytes) -> None:
        subscribers, self.subscribers = self.subscribers, {}
        super().forget(key)
        self.subscribers = subscribers


@observable("test_a_subscription_ends")
class NeverUnsubscribes(ReferenceObservableStore):
    def unsubscribe(self, token: object) -> None:
        """Forgets nobody."""


@observable("test_a_subscription_ends")
class EndsEverySubscription(ReferenceObservableStore):
    def unsubscribe(self, token: object) -> None:
        self.subscribers.clear()

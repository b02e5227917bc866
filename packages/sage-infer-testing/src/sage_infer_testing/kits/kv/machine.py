"""Random operations on a KV store, compared with a model of its contents."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

__all__ = ["explore"]

_CAPACITY = 4
_BLOCKS = st.lists(st.integers(0, 6), min_size=1, max_size=3, unique=True)


def explore(suite: Any, examples: int) -> None:
    """Run ``examples`` random sequences of operations on stores opened by ``suite.open_store``.

    The model knows which blocks must be stored (pinned ones), which cannot be, and the capacity. It does not check the
    eviction order of unpinned blocks.
    """

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.store = suite.open_store(_CAPACITY)
            self.names = suite.keys(7)
            self.held: set[bytes] = set()
            self.pins: Counter[bytes] = Counter()

        def keys(self, blocks: list[int]) -> list[bytes]:
            return [self.names[i] for i in blocks]

        def look(self) -> None:
            """Update the model with evicted blocks, none of which may be pinned."""
            found = suite.held(self.store, self.names)
            now = {key for key, hit in zip(self.names, found, strict=True) if hit}
            assert now <= self.held, "a block is held that was never put"
            lost = {key for key in self.held - now if self.pins[key]}
            assert not lost, f"{len(lost)} pinned blocks were evicted"
            self.held = now

        @rule(blocks=_BLOCKS)
        def put(self, blocks: list[int]) -> None:
            keys = self.keys(blocks)
            count = suite.fill(self.store, keys)
            self.held |= set(keys)
            self.look()
            assert count == len(self.held & set(keys)), (
                f"put() returned {count}, held are {len(self.held & set(keys))}"
            )
            pinned = sum(1 for key in self.held if self.pins[key] and key not in keys)
            assert count >= min(len(keys), _CAPACITY - pinned), (
                f"put() stored only {count} blocks although there was room"
            )

        @rule(blocks=_BLOCKS)
        def pin(self, blocks: list[int]) -> None:
            keys = self.keys(blocks)
            pinned = self.store.pin(keys)
            assert pinned == [key in self.held for key in keys], f"pin() returned {pinned}"
            self.pins.update(key for key, hit in zip(keys, pinned, strict=True) if hit)

        @rule(blocks=_BLOCKS)
        def unpin(self, blocks: list[int]) -> None:
            keys = [key for key in self.keys(blocks) if self.pins[key]]
            self.store.unpin(keys)
            self.pins.subtract(keys)

        @rule(count=st.integers(0, 5))
        def evict(self, count: int) -> None:
            loose = sum(1 for key in self.held if not self.pins[key])
            before = len(self.held)
            gone = self.store.evict(count)
            assert gone == min(count, loose), f"evict({count}) with {loose} unpinned blocks returned {gone}"
            self.look()
            assert len(self.held) == before - gone, (
                f"evict() returned {gone}, {before - len(self.held)} blocks were evicted"
            )

        @rule(blocks=st.integers(0, 7))
        def match(self, blocks: int) -> None:
            length = next((i for i in range(blocks) if self.names[i] not in self.held), blocks)
            found = self.store.match(suite.tokens(blocks))
            page = suite.kv_schema.page_size
            assert found == length * page, (
                f"match() of {blocks} blocks returned {found} tokens, {length * page} are held"
            )

        @rule(blocks=_BLOCKS)
        def contains(self, blocks: list[int]) -> None:
            keys = self.keys(blocks)
            found = self.store.contains(keys)
            assert found == [key in self.held for key in keys], f"contains() returned {found}"

        @invariant()
        def stats_agree(self) -> None:
            stats = self.store.stats()
            assert stats.blocks == len(self.held), (
                f"{len(self.held)} blocks are held, stats() say {stats.blocks}"
            )
            pinned = sum(1 for key in self.names if self.pins[key])
            assert stats.pinned_blocks == pinned, (
                f"{pinned} blocks are pinned, stats() say {stats.pinned_blocks}"
            )

        def teardown(self) -> None:
            self.store.close()

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples, stateful_step_count=20, deadline=None, database=None,
            suppress_health_check=list(HealthCheck), derandomize=True,
        ),
    )  # fmt: skip

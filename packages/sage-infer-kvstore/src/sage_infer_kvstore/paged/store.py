"""The paged store: blocks of fixed size in one arena of memory."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager

from sage_infer.contracts import KVStoreStats, block_keys, key_space
from sage_infer.errors import ConfigError, InvalidRequest
from sage_infer.schemas import KVCacheSchema

from sage_infer_kvstore.blocks import as_bytes, blocks_of, check_keys, checked_buffers
from sage_infer_kvstore.paged.arena import PrivateArena, SharedArena
from sage_infer_kvstore.paged.choice import Choice
from sage_infer_kvstore.paged.index import BlockIndex
from sage_infer_kvstore.paged.layout import Head
from sage_infer_kvstore.policies.base import Request
from sage_infer_kvstore.policies.names import policy_of

__all__ = ["PagedStore"]

_LONGEST_LEASE_NS = 2**62
_SPACE_DIGITS = 16
_DEFAULT_GB = 1.0


class PagedStore:
    """A ``MappedKVStore`` in memory that by default drops the least recently used blocks.

    With a ``name`` the arena is shared memory, and all processes that open the name for the same model and schema use
    the same blocks. A process that dies leaves no damage: its lock ends, its pins and reserved slots are taken back.

    Args:
        name: name of the shared arena; none for memory of this process.
        capacity_gb: size in GiB, 1 by default. One that exists already is used as it is where nothing is given.
        capacity_blocks: size in blocks, in place of ``capacity_gb``.
        huge_pages: ask the kernel for huge pages (memory of this process only).
        keep: whether a shared arena stays when the last process closes it, for one that comes later.
        policy: which blocks leave first: ``lru``, ``hotness``, ``reuse``, ``slo`` or ``recompute``. Shared arenas only
            have ``lru``.

    Raises:
        ConfigError: wrong options, or an arena of this name has another form.
        OutOfMemory: there is not so much memory.
    """

    def __init__(
        self,
        *,
        schema: KVCacheSchema,
        model_id: str,
        name: str = "",
        capacity_gb: float | None = None,
        capacity_blocks: int | None = None,
        huge_pages: bool = True,
        keep: bool = False,
        policy: str = "lru",
    ) -> None:
        order = policy_of(policy, schema.page_size)
        if name and policy != "lru":
            raise ConfigError(
                f"policy {policy} learns from the requests of one process; leave out name, or set policy to lru"
            )
        blocks = blocks_of(
            schema, capacity_gb=capacity_gb, capacity_blocks=capacity_blocks, default_gb=_DEFAULT_GB
        )
        self._schema, self._model_id = schema, model_id
        self._size = schema.bytes_per_page
        self._arena: PrivateArena | SharedArena
        if name:
            is_given = capacity_gb is not None or capacity_blocks is not None
            self._arena = SharedArena(
                shared_name(name, model_id, schema),
                blocks if is_given else None,
                self._size,
                default_blocks=blocks,
                keep=keep,
            )
        else:
            self._arena = PrivateArena(blocks, self._size, huge_pages=huge_pages)
        self._bytes = as_bytes(self._arena.memory)
        self._index = BlockIndex(
            self._arena.fields,
            owner=self._arena.owner,
            clock=time.monotonic_ns,
            is_alive=self._arena.is_alive,
        )
        self._choice = None if policy == "lru" else Choice(order, self._index)
        self._closed = False
        with self._arena.lock:  # what a process left that had this number before
            self._index.forget(lambda owner: owner == self._arena.owner)

    @property
    def schema(self) -> KVCacheSchema:
        return self._schema

    # --- look-up

    def note_request(self, keys: Sequence[bytes], *, patience_s: float | None = None) -> None:
        """Tell the policy of a request with a prompt of these blocks, in this order, whether or not they are stored.

        ``patience_s``: seconds that the request may wait for its first token; None if unknown.
        """
        check_keys(keys)
        with self._lock():
            if self._choice is not None:
                self._choice.asked(keys, Request(patience_s))

    def match(self, tokens: Sequence[int]) -> int:
        keys = list(block_keys(self._model_id, self._schema, tokens))
        return self.match_keys(keys) * self._schema.page_size

    def match_keys(self, keys: Sequence[bytes]) -> int:
        check_keys(keys)
        with self._lock():
            count = self._index.held_prefix(keys)
            self._index.fields.head[Head.HITS if count else Head.MISSES] += 1
        return count

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        check_keys(keys)
        with self._lock():
            return [bool(self._index.held(key)) for key in keys]

    # --- copies

    def get(self, keys: Sequence[bytes], out: Sequence[memoryview]) -> list[bool]:
        buffers = checked_buffers(self._schema, keys, out)
        with self._lock():
            slots = self._index.pin(keys)
            self._used(keys)
        try:
            for slot, buffer in zip(slots, buffers, strict=True):
                if slot:
                    buffer[:] = self._bytes[(slot - 1) * self._size : slot * self._size]
        finally:
            with self._lock():
                self._index.unpin([key for key, slot in zip(keys, slots, strict=True) if slot])
        return [slot > 0 for slot in slots]

    def put(self, keys: Sequence[bytes], blocks: Sequence[memoryview]) -> int:
        buffers = checked_buffers(self._schema, keys, blocks)
        with self._lock():
            self._index.touch(keys)
            self._used(keys)
            slots = self._reserve(keys)
        mine = [key for key, slot in zip(keys, slots, strict=True) if slot]
        try:
            for slot, buffer in zip(slots, buffers, strict=True):
                if slot:
                    self._bytes[(slot - 1) * self._size : slot * self._size] = buffer
        except BaseException:
            with self._lock():
                self._index.discard(mine)
            raise
        with self._lock():
            self._commit(mine)
            held = sum(1 for key in keys if self._index.held(key))
            if held < len(keys):  # what another process is writing is not dropped
                self._index.fields.head[Head.DROPPED] += sum(1 for key in keys if not self._index.find(key))
        return held

    # --- pins

    def pin(self, keys: Sequence[bytes], *, lease_s: float | None = None) -> list[bool]:
        return [slot is not None for slot in self.acquire(keys, lease_s=lease_s)]

    def unpin(self, keys: Sequence[bytes]) -> None:
        check_keys(keys)
        with self._lock():
            self._index.unpin(keys)
            self._used(keys)

    def evict(self, count: int) -> int:
        with self._lock():
            return self._index.evict(count)

    def drop(self, keys: Sequence[bytes]) -> int:
        """Drop the unpinned ones of these blocks; returns how many."""
        check_keys(keys)
        with self._lock():
            count = self._index.drop(keys)
            if self._choice is not None:
                self._choice.dropped(keys)
            return count

    # --- slots

    def region(self) -> memoryview:
        self._check_open()
        return self._arena.memory

    def region_uri(self) -> str:
        return self._arena.uri

    def reserve(self, keys: Sequence[bytes]) -> list[int | None]:
        check_keys(keys)
        with self._lock():
            return [slot - 1 if slot else None for slot in self._reserve(keys)]

    def commit(self, keys: Sequence[bytes]) -> None:
        check_keys(keys)
        with self._lock():
            self._commit(keys)

    def discard(self, keys: Sequence[bytes]) -> None:
        check_keys(keys)
        with self._lock():
            self._index.discard(keys)

    def acquire(self, keys: Sequence[bytes], *, lease_s: float | None = None) -> list[int | None]:
        check_keys(keys)
        lease = None if lease_s is None else int(min(max(lease_s, 0.0) * 1e9, _LONGEST_LEASE_NS))
        with self._lock():
            return [slot - 1 if slot else None for slot in self._index.pin(keys, lease)]

    def release(self, keys: Sequence[bytes]) -> None:
        self.unpin(keys)

    # --- with the lock

    def _reserve(self, keys: Sequence[bytes]) -> list[int]:
        if self._choice is None:
            return self._index.reserve(keys)
        with self._choice.sparing({*keys}):
            return self._index.reserve(keys)

    def _commit(self, keys: Sequence[bytes]) -> None:
        self._index.commit(keys)
        if self._choice is not None:
            self._choice.stored(keys)

    def _used(self, keys: Sequence[bytes]) -> None:
        if self._choice is not None:
            self._choice.used(keys)

    # --- the store itself

    def stats(self) -> KVStoreStats:
        with self._lock():
            pinned = self._index.count_pinned()
            head = self._index.fields.head
            return KVStoreStats(
                blocks=head[Head.BLOCKS],
                capacity_blocks=self._index.fields.capacity,
                bytes_used=head[Head.BLOCKS] * self._size,
                pinned_blocks=pinned,
                hits=head[Head.HITS],
                misses=head[Head.MISSES],
                evictions=head[Head.EVICTIONS],
                dropped=head[Head.DROPPED],
                tiers={"dram": head[Head.BLOCKS]},
            )

    def close(self) -> None:
        if not self._closed:
            if self._arena.is_open:
                with self._lock():
                    self._index.forget(lambda owner: owner == self._arena.owner)
            self._closed = True
            self._arena.close()

    def _lock(self) -> AbstractContextManager[object]:
        self._check_open()
        return self._arena.lock

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidRequest("the store is closed; open it again")


def shared_name(name: object, model_id: str, schema: KVCacheSchema) -> str:
    """The file in shared memory of one name, model and schema.

    Raises:
        ConfigError: the name has other characters than letters, digits, ``.``, ``_`` and ``-``.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise ConfigError(
            f"name must be 1 to 64 letters, digits, '.', '_' or '-' and begin with a letter or digit, got {name!r}"
        )
    return f"sage-kv-{name}-{key_space(model_id, schema)[:_SPACE_DIGITS]}"

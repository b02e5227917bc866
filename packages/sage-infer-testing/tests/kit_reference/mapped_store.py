"""A store whose blocks lie in shared memory."""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing.shared_memory import SharedMemory

from sage_infer.errors import InvalidRequest
from sage_infer.schemas import KVCacheSchema

from kit_reference.store import ReferenceStore

__all__ = ["ReferenceMappedStore"]


class ReferenceMappedStore(ReferenceStore):
    """``blocks`` maps each key to its slot."""

    def __init__(self, model_id: str, schema: KVCacheSchema, capacity: int) -> None:
        super().__init__(model_id, schema, capacity)
        self.memory = SharedMemory(create=True, size=capacity * schema.bytes_per_page)
        self.arena = self.memory.buf
        self.free = list(range(capacity))
        self.reserved: dict[bytes, int] = {}
        self.closed = False

    def region(self) -> memoryview:
        return self.arena

    def region_uri(self) -> str:
        return f"shm://{self.memory.name.removeprefix('/')}"

    def slot(self, index: int) -> memoryview:
        size = self.schema.bytes_per_page
        return self.arena[index * size : (index + 1) * size]

    def has_room(self) -> bool:
        return bool(self.free)

    def keep(self, key: bytes, block: memoryview) -> None:
        self.blocks[key] = self.free.pop()
        self.slot(self.blocks[key])[:] = block

    def load(self, key: bytes) -> memoryview:
        return self.slot(self.blocks[key])

    def forget(self, key: bytes) -> None:
        self.free.append(self.blocks.pop(key))

    def reserve(self, keys: Sequence[bytes]) -> list[int | None]:
        with self.lock:
            return [self.reserve_one(key) for key in keys]

    def reserve_one(self, key: bytes) -> int | None:
        if key in self.blocks or key in self.reserved:
            return None
        if not self.has_room() and not self.evict(1):
            return None
        self.reserved[key] = self.free.pop()
        return self.reserved[key]

    def commit(self, keys: Sequence[bytes]) -> None:
        with self.lock:
            strange = [key.hex() for key in keys if key not in self.reserved]
            if strange:
                raise InvalidRequest(f"blocks {', '.join(strange)} are not reserved; reserve them first")
            self.blocks.update((key, self.reserved.pop(key)) for key in keys)

    def discard(self, keys: Sequence[bytes]) -> None:
        with self.lock:
            self.free += [self.reserved.pop(key) for key in keys if key in self.reserved]

    def acquire(self, keys: Sequence[bytes], *, lease_s: float | None = None) -> list[int | None]:
        with self.lock:
            held = self.pin(keys, lease_s=lease_s)
            return [self.blocks[key] if hit else None for key, hit in zip(keys, held, strict=True)]

    def release(self, keys: Sequence[bytes]) -> None:
        self.unpin(keys)

    def close(self) -> None:
        super().close()
        if not self.closed:
            self.closed = True
            self.memory.unlink()

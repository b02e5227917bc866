"""The store of a Valkey or Redis server: blocks that processes and hosts share."""

from __future__ import annotations

import contextlib
import math
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from attrs import evolve
from sage_infer.contracts import KVStoreStats, block_keys, key_space
from sage_infer.errors import BackendUnavailable, ConfigError, InvalidRequest
from sage_infer.schemas import KVCacheSchema
from valkey.exceptions import ExecAbortError, OutOfMemoryError

from sage_infer_kvstore.blocks import blocks_of, check_keys, checked_buffers
from sage_infer_kvstore.remote import scripts
from sage_infer_kvstore.remote.record import HEADER_BYTES, sealed, unsealed
from sage_infer_kvstore.remote.server import Server

__all__ = ["ValkeyStore"]

T = TypeVar("T")

_SPACE_DIGITS = 16
_MEMORY_SHARE = 0.9  # of the server's maxmemory; the rest is for its buffers and the index
_LONGEST_PIN_S = 24 * 3600.0
_KEYS_TOGETHER = 4096


class ValkeyStore:
    """A ``KVStore`` on a Valkey or Redis server, least recently used blocks leave first.

    Processes with the same server, namespace, model and schema share blocks and pins. A block of which the server
    returns other bytes is a miss, counted as ``corrupt``, and removed. A server that does not answer raises
    ``BackendUnavailable`` after ``timeout_s``; after three failures in a row it is left alone for 30 seconds.

    Args:
        url: ``valkey://HOST:PORT/DB``, ``redis://…`` or ``unix://PATH?db=DB``.
        namespace: beginning of the names of all keys on the server.
        capacity_gb: size on the server in GiB; left out: nine tenths of the server's ``maxmemory``.
        capacity_blocks: size in blocks, in place of ``capacity_gb``.
        timeout_s: how long an exchange with the server may take.
        batch_mb: bytes of an exchange in MiB, at least one block.
        password_env: environment variable that holds the password.

    Raises:
        ConfigError: wrong options, or neither a capacity nor a ``maxmemory`` is set.
        BackendUnavailable: the server does not answer.
    """

    def __init__(
        self,
        *,
        schema: KVCacheSchema,
        model_id: str,
        url: str = "valkey://127.0.0.1:6379/0",
        namespace: str = "sage-kv",
        capacity_gb: float | None = None,
        capacity_blocks: int | None = None,
        timeout_s: float = 1.0,
        batch_mb: float = 8.0,
        password_env: str = "",
    ) -> None:
        numbers: dict[str, object] = {"timeout_s": timeout_s, "batch_mb": batch_mb}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ConfigError(f"{name} must be a number above 0, got {value!r}")
        self._schema, self._model_id = schema, model_id
        self._value_bytes = schema.bytes_per_page + HEADER_BYTES
        self._server = Server(url, password_env=password_env, timeout_s=timeout_s)
        if capacity_gb is None and capacity_blocks is None:
            capacity_gb = self._maxmemory() * _MEMORY_SHARE / 2**30
        self._capacity = blocks_of(
            schema, capacity_gb=capacity_gb, capacity_blocks=capacity_blocks, default_gb=1.0
        )
        self._together = max(1, int(batch_mb * 2**20) // self._value_bytes)
        space = f"{{{namespace}:{key_space(model_id, schema)[:_SPACE_DIGITS]}}}"
        self._names = [f"{space}:{name}" for name in ("index", "pins", "clock")]
        self._prefix = f"{space}:block:".encode()
        self._lock = threading.Lock()  # guards the counters and the last answer
        self._counts: Counter[str] = Counter()
        self._seen = (0, 0)
        try:
            self._count()
        except BaseException:
            self._server.close()
            raise

    @property
    def schema(self) -> KVCacheSchema:
        return self._schema

    @property
    def failures(self) -> int:
        """Exchanges with the server that failed, or did not end in time."""
        return self._server.failures

    # --- look-up

    def match(self, tokens: Sequence[int]) -> int:
        keys = list(block_keys(self._model_id, self._schema, tokens))
        return self.match_keys(keys) * self._schema.page_size

    def match_keys(self, keys: Sequence[bytes]) -> int:
        count = [*self.contains(keys), False].index(False)
        self._add(**{"hits" if count else "misses": 1})
        return count

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        check_keys(keys)
        return self._flags(scripts.HELD, keys)

    # --- blocks

    def get(self, keys: Sequence[bytes], out: Sequence[memoryview]) -> list[bool]:
        buffers = checked_buffers(self._schema, keys, out)
        found: list[bool] = []
        for at in range(0, len(keys), self._together):
            some = keys[at : at + self._together]
            held, values = self._server.ask(partial(self._read, keys=some))
            found += self._copied(some, held, values, buffers[at : at + self._together])
        return found

    def _read(self, client: Any, keys: Sequence[bytes]) -> tuple[list[bool], list[object]]:
        """Which keys the server has, and the values of those that are blocks."""
        with client.pipeline(transaction=False) as pipeline:  # a full server takes no transaction
            pipeline.eval(scripts.TOUCH, 3, *self._names, self._prefix, *keys)
            pipeline.mget([self._prefix + key for key in keys])
            answer, values = pipeline.execute()
        if not isinstance(values, list) or len(values) != len(keys):
            raise ValueError(f"expected {len(keys)} values")
        return _flags(len(keys), answer), values

    def _copied(
        self,
        keys: Sequence[bytes],
        held: Sequence[bool],
        values: Sequence[object],
        out: Sequence[npt.NDArray[np.uint8]],
    ) -> list[bool]:
        found, wrong = [], []
        for key, hit, value, buffer in zip(keys, held, values, out, strict=True):
            payload = unsealed(key, value, self._schema.bytes_per_page)
            if payload is not None:
                buffer[:] = payload
            elif hit:
                wrong.append(key)
                self._add(corrupt=int(value is not None))  # else it was evicted meanwhile, or is no string
            found.append(payload is not None)
        if wrong:
            self._run(int, scripts.FORGET, *wrong)
        return found

    def put(self, keys: Sequence[bytes], blocks: Sequence[memoryview]) -> int:
        buffers = checked_buffers(self._schema, keys, blocks)
        given = dict(zip(keys, buffers, strict=True))
        held = self._flags(scripts.TOUCH, list(given))
        fresh = [key for key, hit in zip(given, held, strict=True) if not hit]
        for at in range(0, len(fresh), self._together):
            some = fresh[at : at + self._together]
            values = {self._prefix + key: sealed(key, given[key]) for key in some}
            evicted = self._server.ask(partial(self._write, keys=some, values=values, keep=list(given)))
            self._add(evictions=evicted)
        stored = sum(self.contains(keys)) if fresh else len(keys)
        self._add(dropped=len(keys) - stored)
        return stored

    def _write(self, client: Any, keys: list[bytes], values: dict[bytes, bytes], keep: list[bytes]) -> int:
        """Blocks and index change together or not at all, whenever this process ends."""
        with client.pipeline(transaction=True) as pipeline:
            pipeline.mset(values)
            pipeline.eval(
                scripts.COMMIT, 3, *self._names, self._prefix, self._capacity, len(keys), *keys, *keep
            )
            try:
                return int(pipeline.execute()[1])
            except (OutOfMemoryError, ExecAbortError):  # a server that is full and evicts nothing
                return 0

    # --- pins and eviction

    def pin(self, keys: Sequence[bytes], *, lease_s: float | None = None) -> list[bool]:
        check_keys(keys)
        lease = _LONGEST_PIN_S if lease_s is None else min(lease_s, _LONGEST_PIN_S)
        return self._flags(scripts.PIN, keys, max(0, math.ceil(lease * 1000)))

    def unpin(self, keys: Sequence[bytes]) -> None:
        check_keys(keys)
        self._run(int, scripts.UNPIN, *keys)

    def evict(self, count: int) -> int:
        evicted = self._run(int, scripts.EVICT, max(0, count))
        self._add(evictions=evicted)
        return evicted

    # --- the store itself

    def stats(self) -> KVStoreStats:
        """Of a server that does not answer, what it last said."""
        with contextlib.suppress(InvalidRequest, BackendUnavailable):
            self._count()
        with self._lock:
            blocks, pinned = self._seen
            counted = KVStoreStats(
                blocks=blocks,
                capacity_blocks=self._capacity,
                bytes_used=blocks * self._value_bytes,
                pinned_blocks=pinned,
                tiers={"remote": blocks},
            )
            counts: dict[str, Any] = dict(self._counts)
            return evolve(counted, **counts)

    def close(self) -> None:
        """Blocks stay on the server."""
        self._server.close()

    # --- exchanges

    def _run(self, read: Callable[[Any], T], script: str, *arguments: Any) -> T:
        """What ``read`` makes of a script's answer; an answer that it raises for is a failure of the server."""
        return self._server.ask(
            lambda client: read(client.eval(script, 3, *self._names, self._prefix, *arguments))
        )

    def _flags(self, script: str, keys: Sequence[bytes], *before: Any) -> list[bool]:
        found: list[bool] = []
        for at in range(0, len(keys), _KEYS_TOGETHER):
            some = keys[at : at + _KEYS_TOGETHER]
            found += self._run(partial(_flags, len(some)), script, *before, *some)
        return found

    def _count(self) -> None:
        seen = self._run(_pair, scripts.COUNT)
        with self._lock:
            self._seen = seen

    def _maxmemory(self) -> int:
        """
        Raises:
            ConfigError: the server has no bound.
        """
        limit = self._server.ask(lambda client: int(client.info("memory").get("maxmemory", 0)))
        if not limit:
            raise ConfigError(
                f"{self._server.name} has no maxmemory; set it on the server, or set capacity_gb of this store"
            )
        return limit

    def _add(self, **counts: int) -> None:
        with self._lock:
            self._counts.update(counts)


def _flags(count: int, answer: object) -> list[bool]:
    if not isinstance(answer, bytes) or len(answer) != count:
        raise ValueError(f"expected {count} flags")
    return [flag == ord("1") for flag in answer]


def _pair(answer: Any) -> tuple[int, int]:
    first, second = answer
    return int(first), int(second)

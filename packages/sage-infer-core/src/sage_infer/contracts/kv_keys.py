"""Content-based keys of KV blocks."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import attrs

from sage_infer.errors import InvalidRequest
from sage_infer.schemas import KVCacheSchema

__all__ = ["KeyChain", "block_keys", "key_space", "next_key", "partial_key", "root_key"]

_KEY_BYTES = 16
# Fields of the first schema version, in their original order. Keys are derived from these fields, and from later
# fields only if they differ from the default, so that keys in existing stores stay valid.
_FIRST_EDITION = (
    "dtype", "page_size", "num_layers", "num_heads", "head_dim", "scale_dtype", "scale_granularity",
    "value_scale_granularity", "zero_points", "layout", "axis_order", "format_id",
)  # fmt: skip


class KeyChain:
    """Keys of the blocks of a token sequence that grows. Each token is hashed once, so a tail costs what it is long.

    It keeps 16 bytes per full block and the tokens of the partial one.

    Args:
        salt: as of ``block_keys``.
        extras: as of ``block_keys``.

    Attributes:
        keys: keys of the full blocks so far.
        length: number of tokens so far.
    """

    __slots__ = ("_extras", "_pack", "_parent", "_rest", "_size", "keys", "length")

    def __init__(
        self, model_id: str, schema: KVCacheSchema, *, salt: bytes = b"", extras: Sequence[bytes] = ()
    ) -> None:
        self._parent = root_key(model_id, schema, salt)
        self._size = schema.page_size
        self._pack = struct.Struct(f"<{self._size}q").pack
        self._extras = extras
        self._rest: list[int] = []
        self.keys: list[bytes] = []
        self.length = 0

    def extend(self, tokens: Sequence[int]) -> list[bytes]:
        """Append tokens; return the keys of the blocks that they complete."""
        self.length += len(tokens)
        if self._rest:
            tokens = [*self._rest, *tokens]
        size, before = self._size, len(self.keys)
        end = len(tokens) - len(tokens) % size
        for start in range(0, end, size):
            packed = self._pack(*tokens[start : start + size])
            self._parent = hashlib.blake2b(
                self._parent + packed + self._extra(), digest_size=_KEY_BYTES
            ).digest()
            self.keys.append(self._parent)
        self._rest = list(tokens[end:])
        return self.keys[before:]

    def partial_key(self) -> bytes:
        """Return the key of the partially filled last block.

        Raises:
            InvalidRequest: the tokens fill all blocks completely, so there is no partial block.
        """
        if not self._rest:
            raise InvalidRequest(
                f"{self.length} tokens fill whole pages of {self._size}; only a partially filled last page has a "
                "partial key"
            )
        packed = struct.pack(f"<{len(self._rest)}q", *self._rest)
        return hashlib.blake2b(
            self._parent + packed + self._extra(), digest_size=_KEY_BYTES, person=b"sage-kv-partial"
        ).digest()

    def _extra(self) -> bytes:
        """Extra of the block after the full ones."""
        return self._extras[len(self.keys)] if len(self.keys) < len(self._extras) else b""


def block_keys(
    model_id: str,
    schema: KVCacheSchema,
    tokens: Sequence[int],
    *,
    salt: bytes = b"",
    extras: Sequence[bytes] = (),
) -> Iterator[bytes]:
    """Yield the keys of the full blocks of a token sequence, 16 bytes each.

    A key is a BLAKE2b hash of the model, the KV schema, the salt, the parent's key, and the block's tokens and
    extra. Equal keys therefore mean equal prefixes, and all processes compute the same key for the same prefix.
    A partially filled last block has the key ``partial_key``. ``KeyChain`` is for sequences that grow.

    Args:
        salt: separates requests that must not share KV, for example a tenant's secret; one per request.
        extras: other inputs of a block's KV, such as the id of an adapter or the hash of an image in the block;
            one per block, missing ones are empty.
    """
    yield from KeyChain(model_id, schema, salt=salt, extras=extras).extend(tokens)


def partial_key(
    model_id: str,
    schema: KVCacheSchema,
    tokens: Sequence[int],
    *,
    salt: bytes = b"",
    extras: Sequence[bytes] = (),
) -> bytes:
    """Return the key of the partially filled last block of a token sequence.

    The arguments are those of ``block_keys``.

    Raises:
        InvalidRequest: the tokens fill all blocks completely, so there is no partial block.
    """
    chain = KeyChain(model_id, schema, salt=salt, extras=extras)
    chain.extend(tokens)
    return chain.partial_key()


def key_space(model_id: str, schema: KVCacheSchema) -> str:
    """Return the key space of a model and KV schema, in hex.

    Two instances have the same key space if and only if equal unsalted keys mean equal KV.
    """
    return root_key(model_id, schema).hex()


def next_key(parent: bytes, tokens: Sequence[int], extra: bytes = b"") -> bytes:
    """Return the key of a full block with these tokens, which follows the block ``parent`` or ``root_key``.

    For code that has the keys of a sequence's start, but neither its tokens nor the schema.
    """
    packed = struct.pack(f"<{len(tokens)}q", *tokens)
    return hashlib.blake2b(parent + packed + extra, digest_size=_KEY_BYTES).digest()


def root_key(model_id: str, schema: KVCacheSchema, salt: bytes = b"") -> bytes:
    """Return the parent of a sequence's first block. The arguments are those of ``block_keys``."""
    root = _unsalted_root(model_id, schema)
    if not salt:
        return root
    return hashlib.blake2b(root + salt, digest_size=_KEY_BYTES, person=b"sage-kv-salt").digest()


@lru_cache(maxsize=64)
def _unsalted_root(model_id: str, schema: KVCacheSchema) -> bytes:
    text = json.dumps(_frozen_form(schema), ensure_ascii=False)
    return hashlib.blake2b(f"{model_id}\n{text}".encode(), digest_size=_KEY_BYTES).digest()


def _frozen_form(schema: KVCacheSchema) -> dict[str, Any]:
    """Return the schema fields that keys depend on: all fields of the first version, and later ones if they
    differ from the default.
    """
    first = {name: _plain(getattr(schema, name)) for name in _FIRST_EDITION}
    return {"schema_version": "1.0", **first, **_changed(schema, leave_out=_FIRST_EDITION)}


def _changed(value: Any, leave_out: Sequence[str] = ()) -> dict[str, Any]:
    return {
        attribute.name: _plain(getattr(value, attribute.name))
        for attribute in attrs.fields(type(value))
        if attribute.name not in leave_out and getattr(value, attribute.name) != attribute.default
    }


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return _changed(value) if attrs.has(type(value)) else value

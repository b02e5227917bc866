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

__all__ = ["block_keys", "key_space", "partial_key"]

_KEY_BYTES = 16
# Fields of the first schema version, in their original order. Keys are derived from these fields, and from later
# fields only if they differ from the default, so that keys in existing stores stay valid.
_FIRST_EDITION = (
    "dtype", "page_size", "num_layers", "num_heads", "head_dim", "scale_dtype", "scale_granularity",
    "value_scale_granularity", "zero_points", "layout", "axis_order", "format_id",
)  # fmt: skip


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
    A partially filled last block has the key ``partial_key``.

    Args:
        salt: separates requests that must not share KV, for example a tenant's secret; one per request.
        extras: other inputs of a block's KV, such as the id of an adapter or the hash of an image in the block;
            one per block, missing ones are empty.
    """
    parent = _root_key(model_id, schema, salt)
    size = schema.page_size
    pack = struct.Struct(f"<{size}q").pack
    for index, start in enumerate(range(0, len(tokens) - size + 1, size)):
        extra = extras[index] if index < len(extras) else b""
        parent = hashlib.blake2b(
            parent + pack(*tokens[start : start + size]) + extra, digest_size=_KEY_BYTES
        ).digest()
        yield parent


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
    rest = len(tokens) % schema.page_size
    if not rest:
        raise InvalidRequest(
            f"{len(tokens)} tokens fill whole pages of {schema.page_size}; only a partially filled last page has a "
            "partial key"
        )
    full = list(block_keys(model_id, schema, tokens, salt=salt, extras=extras))
    parent = full[-1] if full else _root_key(model_id, schema, salt)
    extra = extras[len(full)] if len(full) < len(extras) else b""
    packed = struct.pack(f"<{rest}q", *tokens[len(tokens) - rest :])
    return hashlib.blake2b(
        parent + packed + extra, digest_size=_KEY_BYTES, person=b"sage-kv-partial"
    ).digest()


def key_space(model_id: str, schema: KVCacheSchema) -> str:
    """Return the key space of a model and KV schema, in hex.

    Two instances have the same key space if and only if equal unsalted keys mean equal KV.
    """
    return _root_key(model_id, schema).hex()


def _root_key(model_id: str, schema: KVCacheSchema, salt: bytes = b"") -> bytes:
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

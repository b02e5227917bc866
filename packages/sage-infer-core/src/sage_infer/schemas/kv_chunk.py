"""KV chunks and their locations: the units of KV transfer."""

from __future__ import annotations

from typing import Literal, get_args

from attrs import field, frozen

from sage_infer.checks import Choice, Instance, Integer, Text, optional
from sage_infer.errors import Problem, SchemaError
from sage_infer.schemas.base import schema
from sage_infer.schemas.kv import KVCacheSchema

__all__ = ["CHECKSUM", "KVChunk", "KVLocation", "MemoryTier"]

MemoryTier = Literal["hbm", "dram", "ssd", "remote"]

CHECKSUM = "xxh3-64"
"""The checksum that every engine writes and every transport verifies (``xxh3-64:`` and 16 hex digits)."""


@schema("1.0")
@frozen(kw_only=True)
class KVLocation:
    """Location of a chunk's bytes.

    Attributes:
        tier: memory tier: hbm (accelerator memory), dram, ssd or remote.
        uri: address inside the tier. Schemes: ``engine://instance/…`` (an engine's own cache, read with
            ``export_kv``), ``shm://name#offset`` (named shared memory), ``file:///path#offset``,
            ``tcp://host:port/…``, ``nixl://agent/…``; plug-ins can define others.
    """

    tier: MemoryTier = field(validator=Choice(get_args(MemoryTier)))
    uri: str = field(validator=Text(min_length=1))


@schema("1.0")
@frozen(kw_only=True)
class KVChunk:
    """KV of a range of layers for a range of consecutive tokens: the unit of transfer and verification.

    Attributes:
        chunk_id: content hash in hex over model, KV schema and token prefix (``contracts.block_keys``, and
            ``contracts.partial_key`` for a last page that is not full).
        request_id: id of the request that computed the chunk.
        layer_start: index of the first layer.
        layer_end: index of the last layer plus one.
        token_start: position of the first token in the sequence.
        token_end: position of the last token plus one.
        kv_schema: layout of the bytes.
        nbytes: size in bytes.
        location: location of the bytes; null while they travel inside a message.
        checksum: ``algorithm:hex`` over the bytes; null if the bytes are in the engine's own cache. Every
            reader supports ``xxh3-64`` and may reject other algorithms.
    """

    chunk_id: str = field(validator=Text(pattern="[0-9a-f]{16,128}", hint="16 to 128 lower-case hex digits"))
    request_id: str = field(validator=Text(min_length=1))
    layer_start: int = field(validator=Integer(ge=0))
    layer_end: int = field(validator=Integer(ge=1))
    token_start: int = field(validator=Integer(ge=0))
    token_end: int = field(validator=Integer(ge=1))
    kv_schema: KVCacheSchema = field(validator=Instance(KVCacheSchema))
    nbytes: int = field(validator=Integer(ge=0))
    location: KVLocation | None = field(default=None, validator=optional(Instance(KVLocation)))
    checksum: str | None = field(
        default=None, validator=optional(Text(pattern="[a-z0-9-]+:[0-9a-f]+", hint="algorithm:hex"))
    )

    def __attrs_post_init__(self) -> None:
        problems = [
            Problem(f"$.{name}_end", f"must be greater than {name}_start")
            for name, start, end in (
                ("layer", self.layer_start, self.layer_end),
                ("token", self.token_start, self.token_end),
            )
            if end <= start
        ]
        if self.layer_end > self.kv_schema.num_layers:
            problems.append(
                Problem("$.layer_end", f"must be ≤ the schema's {self.kv_schema.num_layers} layers")
            )
        if problems:
            raise SchemaError("KVChunk", problems)

"""Contracts of KV export and import, KV endpoints, and codecs of private KV formats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from sage_infer.schemas import DecodeState, KVCacheSchema, KVChunk, KVLocation

__all__ = [
    "KVEndpoint", "KVFlushing", "KVFormatCodec", "KVPrefetching", "KVStateChecking", "KVTransfer",
    "LayerwiseKVFormatCodec",
]  # fmt: skip


@runtime_checkable
class KVTransfer(Protocol):
    """Additional methods of a backend that claims ``kv_export`` and ``kv_import``: KV as buffers."""

    async def export_kv(self, state: DecodeState) -> tuple[DecodeState, list[memoryview]]:
        """Return the state with checksummed chunks, and the bytes of each chunk in the order of ``state.chunks``.

        The caller owns the buffers. ``decode`` or ``abort`` frees the blocks in the engine.

        Raises:
            InvalidRequest: this instance does not hold the state's KV.
        """
        ...

    async def import_kv(self, state: DecodeState, buffers: Sequence[memoryview]) -> DecodeState:
        """Import KV that another instance exported; return the state for this instance's ``decode``.

        Raises:
            CapabilityMismatch: the KV belongs to another model or other weights, or has a KV schema that cannot be
                converted to that of this instance.
            KVCorrupt: a buffer has the wrong size or checksum; nothing was imported.
            Overloaded: there are not enough free blocks now.
        """
        ...


@runtime_checkable
class KVStateChecking(Protocol):
    """Optional additional method of a backend that claims ``kv_import``: refuse a state before its KV is moved."""

    async def check_state(self, state: DecodeState) -> None:
        """Check whether ``import_kv`` would accept a state, without its buffers.

        Raises:
            CapabilityMismatch: as ``import_kv``.
            InvalidRequest: it is not a state after prefill.
            UnsupportedFeature: its parameters require a feature that this backend does not claim.
        """
        ...


@runtime_checkable
class KVFlushing(Protocol):
    """Optional additional method of a backend that keeps its KV in a ``KVStore`` as well.

    A router that computes a prompt on one instance and continues it on another one calls it in between, if both use one
    store: then the second instance finds the prompt's full pages there.
    """

    async def flush_kv(self) -> bool:
        """Wait until the pages that are full now are in the store. Returns False without a store, or if it is slow."""
        ...


@runtime_checkable
class KVPrefetching(Protocol):
    """Optional additional method of a backend with a ``KVStore`` of several tiers.

    A router calls it for a request that waits for this backend, so that its KV is in the fastest tier when it starts.
    """

    async def prefetch_kv(self, token_ids: Sequence[int], *, cache_salt: str = "") -> int:
        """Start to move the stored pages of a prompt to the store's fastest tier.

        Returns:
            The number of pages that are there or on their way; 0 without such a store, or if it is busy.
        """
        ...


@runtime_checkable
class KVEndpoint(Protocol):
    """Makes exported KV addressable; connects ``KVTransfer`` (buffers) and ``Transport`` (locations).

    The prefill instance publishes its exported chunks, a transport moves them, and the decode instance opens the
    received chunks for ``import_kv``.
    """

    def publish(self, chunks: Sequence[KVChunk], buffers: Sequence[memoryview]) -> tuple[KVLocation, ...]:
        """Publish each chunk's bytes under a URI until they are withdrawn.

        Raises:
            InvalidRequest: the numbers of chunks and buffers differ, or a buffer is not ``chunk.nbytes`` long.
            Overloaded: there is no room now; nothing was published.
        """
        ...

    def reserve(self, chunks: Sequence[KVChunk]) -> tuple[KVLocation, ...]:
        """Allocate locations that a transport will write chunks to.

        Raises:
            Overloaded: there is no room now; nothing was reserved.
        """
        ...

    def open(self, location: KVLocation) -> memoryview:
        """Return the bytes at a location of this endpoint. They stay valid until the location is withdrawn.

        Raises:
            InvalidRequest: this endpoint has no such location.
        """
        ...

    def withdraw(self, locations: Sequence[KVLocation]) -> None:
        """Free locations; unknown ones are ignored."""
        ...

    def close(self) -> None:
        """Withdraw all locations. Safe to call twice."""
        ...


@runtime_checkable
class KVFormatCodec(Protocol):
    """Converts pages between a private KV format (``KVCacheSchema.format_id``) and plain form.

    A page in plain form has the axes ``(layer, kv, head, token, dim)``, C-contiguous, in the schema's dtypes,
    without scales. ``plain(schema)`` returns its schema.
    """

    @property
    def max_error(self) -> float:
        """Largest error of an element that is packed and unpacked, as a share of the difference between the largest
        and the smallest element of its page; 0 for a codec that restores every bit.
        """
        ...

    def matches(self, schema: KVCacheSchema) -> bool:
        """Return whether the codec supports the schema's ``format_id`` and layout."""
        ...

    def plain(self, schema: KVCacheSchema) -> KVCacheSchema:
        """Return the schema of the plain form that ``unpack`` writes and ``pack`` reads; no ``format_id``."""
        ...

    def unpack(self, page: memoryview, schema: KVCacheSchema, out: memoryview) -> None:
        """Convert one page from the private format ``schema`` to plain form.

        Raises:
            InvalidRequest: the length of a buffer differs from the page size of its schema in bytes.
        """
        ...

    def pack(self, page: memoryview, schema: KVCacheSchema, out: memoryview) -> None:
        """Convert one page from plain form to the private format ``schema``.

        Raises:
            InvalidRequest: the length of a buffer differs from the page size of its schema in bytes.
        """
        ...


@runtime_checkable
class LayerwiseKVFormatCodec(KVFormatCodec, Protocol):
    """A codec whose pages are parts of equal size, one per layer in order, which it converts independently.

    Optional: ``KVPageConverter`` then converts a few layers at a time, which stay in a core's cache, and unpacks tokens
    to where the target needs them instead of copying them again. The schemas that it passes have only these layers.
    """

    def unpack_tokens(
        self,
        page: memoryview,
        schema: KVCacheSchema,
        tokens: slice,
        out: memoryview,
        out_schema: KVCacheSchema,
        at: int,
    ) -> None:
        """Convert some tokens of a page to tokens of a page in plain form, which can have another size.

        Args:
            page: a page of ``schema``.
            tokens: the tokens of the page, as a slice from its first to after its last.
            out: a page of ``out_schema``; other tokens than those written stay as they are.
            out_schema: ``plain(schema)`` with any page size.
            at: the first token of ``out`` to write.

        Raises:
            InvalidRequest: the length of a buffer differs from the page size of its schema in bytes.
        """
        ...

"""Contracts of moving KV in and out of an engine, and of reading private KV formats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from sage_infer.schemas import DecodeState, KVCacheSchema, KVChunk, KVLocation

__all__ = ["KVEndpoint", "KVFormatCodec", "KVTransfer"]


@runtime_checkable
class KVTransfer(Protocol):
    """Additional methods of a backend that claims ``kv_export`` and ``kv_import``: KV as buffers."""

    async def export_kv(self, state: DecodeState) -> tuple[DecodeState, list[memoryview]]:
        """The state with checksummed chunks, and each chunk's bytes in the order of ``state.chunks``.

        The buffers are the caller's to keep; the blocks in the engine are freed by ``decode`` or ``abort``.

        Raises:
            InvalidRequest: this instance does not hold the state's KV.
        """
        ...

    async def import_kv(self, state: DecodeState, buffers: Sequence[memoryview]) -> DecodeState:
        """Take KV that another instance exported; returns the state for this instance's ``decode``.

        Raises:
            CapabilityMismatch: another model or KV schema.
            KVCorrupt: a buffer's size or checksum is wrong; nothing was taken.
            Overloaded: no free blocks now.
        """
        ...


@runtime_checkable
class KVEndpoint(Protocol):
    """Where exported KV is reached by address: it joins ``KVTransfer`` (buffers) and ``Transport``
    (locations).

    A prefill instance publishes the chunks that it exported, a transport moves them, and the decode instance
    opens what arrived for ``import_kv``.
    """

    def publish(self, chunks: Sequence[KVChunk], buffers: Sequence[memoryview]) -> tuple[KVLocation, ...]:
        """Make each chunk's bytes readable under a URI until they are withdrawn.

        Raises:
            InvalidRequest: chunks and buffers do not pair up, or a buffer is not ``chunk.nbytes`` long.
            Overloaded: there is no room now; nothing was published.
        """
        ...

    def reserve(self, chunks: Sequence[KVChunk]) -> tuple[KVLocation, ...]:
        """Room for chunks that a transport will write.

        Raises:
            Overloaded: there is no room now; nothing was reserved.
        """
        ...

    def open(self, location: KVLocation) -> memoryview:
        """The bytes at a location of this endpoint; they stay valid until it is withdrawn.

        Raises:
            InvalidRequest: this endpoint has no such location.
        """
        ...

    def withdraw(self, locations: Sequence[KVLocation]) -> None:
        """Free locations; unknown ones are ignored."""
        ...

    def close(self) -> None:
        """Withdraw everything. Safe to call twice."""
        ...


@runtime_checkable
class KVFormatCodec(Protocol):
    """Reads and writes the pages of a private KV format (``KVCacheSchema.format_id``).

    The plain form of a page is ``(layer, kv, head, token, dim)``, C-contiguous, in the schema's dtypes,
    without scales: that of the schema ``plain(schema)``.
    """

    def matches(self, schema: KVCacheSchema) -> bool:
        """Whether the codec knows the schema's ``format_id`` and form."""
        ...

    def plain(self, schema: KVCacheSchema) -> KVCacheSchema:
        """Schema of the plain form that ``unpack`` writes and ``pack`` reads; its ``format_id`` is empty."""
        ...

    def unpack(self, page: memoryview, schema: KVCacheSchema, out: memoryview) -> None:
        """One private page to plain form.

        Raises:
            InvalidRequest: a buffer is not as long as its schema's page.
        """
        ...

    def pack(self, page: memoryview, schema: KVCacheSchema, out: memoryview) -> None:
        """One plain page to the private form ``schema``.

        Raises:
            InvalidRequest: a buffer is not as long as its schema's page.
        """
        ...

"""Conversion of KV pages from one engine's format to another's.

A page in plain form has the axes ``(layer, kv, head, token, dim)`` and no scales. The codecs of private formats (hook
``sage_infer_kv_formats``) convert their pages to and from plain form. In plain form the tokens of one head follow each
other, so pages of another size are made by copies of contiguous runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sage_infer.errors import CapabilityMismatch, InvalidRequest
from sage_infer.schemas import KVCacheSchema

if TYPE_CHECKING:
    from sage_infer.contracts import KVFormatCodec

__all__ = ["Cast", "KVPageConverter", "is_plain"]

Cast = Callable[[memoryview, str, memoryview, str], None]
"""``cast(data, dtype, out, out_dtype)`` converts the floats of a buffer; dtypes are fp32, fp16 and bf16."""

_FLOATS = {"fp32": 4, "fp16": 2, "bf16": 2}
_PLAIN_AXES = ("layer", "kv", "head", "token", "dim")
_UNSUPPORTED = ("layout", "shards", "rope", "groups")


def is_plain(schema: KVCacheSchema) -> bool:
    """Return whether pages of a schema are in plain form, so that no codec is needed."""
    return (
        not schema.format_id
        and schema.axis_order == schema.key_order == _PLAIN_AXES
        and schema.dtype in _FLOATS
        and schema.value_dtype in (None, schema.dtype)
        and schema.scale_dtype is None
        and schema.shards == 1
        and not schema.groups
        and schema.value_width == schema.head_dim
    )


class _Buffers(dict[str, memoryview]):
    """Buffers by name, made when they are first needed."""

    def of(self, name: str, nbytes: int) -> memoryview:
        if name not in self:
            self[name] = memoryview(bytearray(nbytes))
        return self[name]


class KVPageConverter:
    """Converts the pages of a sequence from one schema to another. Safe to use from several threads.

    Attributes:
        source: schema of the pages that it reads.
        target: schema of the pages that it writes.
        max_error: as ``KVFormatCodec.max_error``, of the codec that packs the target's pages. Conversion between float
            types rounds to the target's type in addition.

    Args:
        cast: converts between float types; without it, plain pages of both sides must have the same one.

    Raises:
        CapabilityMismatch: the schemas describe different models, or no conversion is known.
        BackendUnavailable: the codec of a private format is not installed.
    """

    def __init__(self, source: KVCacheSchema, target: KVCacheSchema, *, cast: Cast | None = None) -> None:
        fit = source.compatible_with(target)
        if not fit.compatible:
            raise CapabilityMismatch(f"KV cannot be converted: {fit.reason}")
        refused = [name for name in fit.conversions if name in _UNSUPPORTED]
        if refused:
            raise CapabilityMismatch(
                f"KV cannot be converted: no conversion of {', '.join(refused)} is known"
            )
        self.source, self.target = source, target
        self._reads, self._from = _form(source)
        self._writes, self._to = _form(target)
        self._cast = cast
        if self._from.dtype != self._to.dtype and cast is None:
            raise CapabilityMismatch(
                f"KV cannot be converted from {self._from.dtype} to {self._to.dtype} here"
            )
        self.max_error = 0.0 if self._writes is None else float(self._writes.max_error)

    def pages_for(self, tokens: int) -> int:
        """Return the number of target pages that ``tokens`` tokens need."""
        return -(-tokens // self.target.page_size)

    def convert(self, pages: Sequence[memoryview], tokens: int, out: Sequence[memoryview]) -> None:
        """Write the target's pages of a sequence.

        Args:
            pages: the source's pages of the sequence's first ``tokens`` tokens, in order.
            out: a buffer for each of ``pages_for(tokens)`` target pages. The unused end of the last page is cleared.

        Raises:
            InvalidRequest: the number or the size of pages or buffers is wrong.
        """
        size = self.source.page_size
        if len(pages) != -(-tokens // size) or len(out) != self.pages_for(tokens):
            raise InvalidRequest(
                f"got {len(pages)} pages and {len(out)} buffers for {tokens} tokens, expected {-(-tokens // size)} and "
                f"{self.pages_for(tokens)}"
            )
        _check(pages, self.source)
        _check(out, self.target)
        plain, index, buffers = memoryview(b""), -1, _Buffers()  # one set for all pages: new memory is slow
        for number, buffer in enumerate(out):
            begin = number * self.target.page_size
            end = min(begin + self.target.page_size, tokens)
            page = buffer.cast("B") if self._writes is None else buffers.of("packed", self._to.bytes_per_page)
            at = begin
            while at < end:
                if at // size != index:
                    index = at // size
                    plain = self._plain(pages[index].cast("B"), buffers)
                stop = min(end, (index + 1) * size)
                self._copy(plain, at - index * size, page, at - begin, stop - at)
                at = stop
            if end - begin < self.target.page_size:
                self._fill(page, end - begin)
            if self._writes is not None:
                self._writes.pack(page, self.target, buffer.cast("B"))

    def converted(self, pages: Sequence[memoryview], tokens: int) -> list[memoryview]:
        """Return the target's pages in new buffers; the arguments are those of ``convert``."""
        out = [memoryview(bytearray(self.target.bytes_per_page)) for _ in range(self.pages_for(tokens))]
        self.convert(pages, tokens, out)
        return out

    def _plain(self, page: memoryview, buffers: _Buffers) -> memoryview:
        """A source page in plain form, in the target's type; valid until the next one."""
        if self._reads is not None:
            unpacked = buffers.of("unpacked", self._from.bytes_per_page)
            self._reads.unpack(page, self.source, unpacked)
            page = unpacked
        if self._from.dtype == self._to.dtype or self._cast is None:
            return page
        cast = buffers.of("cast", page.nbytes // _FLOATS[self._from.dtype] * _FLOATS[self._to.dtype])
        self._cast(page, self._from.dtype, cast, self._to.dtype)
        return cast

    def _copy(self, source: memoryview, start: int, target: memoryview, at: int, count: int) -> None:
        """Copy ``count`` tokens of each layer, keys or values, and head."""
        if count == self.source.page_size == self.target.page_size:
            target[:] = source
            return
        row, rows = self._row, self._rows
        begin, size = start * row, self.source.page_size * row
        to, room = at * row, self.target.page_size * row
        length = count * row
        for _ in range(rows):
            target[to : to + length] = source[begin : begin + length]
            begin, to = begin + size, to + room

    def _fill(self, page: memoryview, used: int) -> None:
        """Clear the end of a page, or repeat its last token for a codec that rounds by the range of a page."""
        row, room = self._row, self.target.page_size * self._row
        unused = self.target.page_size - used
        for begin in range(0, self._rows * room, room):
            end = begin + used * row
            last = page[end - row : end].tobytes() if self.max_error else bytes(row)
            page[end : begin + room] = last * unused

    @property
    def _row(self) -> int:
        """Bytes of one token of one head in plain form."""
        return self._to.head_dim * _FLOATS[self._to.dtype]

    @property
    def _rows(self) -> int:
        """Runs of tokens in a page: layers, keys and values, heads."""
        return self._to.num_layers * 2 * self._to.num_heads


def _form(schema: KVCacheSchema) -> tuple[KVFormatCodec | None, KVCacheSchema]:
    """The codec of a schema's private format, and the schema of its plain form."""
    if is_plain(schema):
        return None, schema
    if not schema.format_id:
        raise CapabilityMismatch(
            f"KV cannot be converted: pages of {schema.dtype} with the axes {', '.join(schema.axis_order)} are not in "
            "plain form, and have no format_id that a codec could read"
        )
    from sage_infer.plugins import kv_codec

    codec = kv_codec(schema.format_id)
    if not codec.matches(schema):
        raise CapabilityMismatch(
            f"KV cannot be converted: the codec of {schema.format_id!r} does not support this layout of pages"
        )
    plain = codec.plain(schema)
    if not is_plain(plain):
        raise CapabilityMismatch(f"KV cannot be converted: {schema.format_id!r} has no plain form of floats")
    return codec, plain


def _check(pages: Sequence[memoryview], schema: KVCacheSchema) -> None:
    for page in pages:
        if page.nbytes != schema.bytes_per_page:
            raise InvalidRequest(
                f"a KV page of {page.nbytes} bytes, expected {schema.bytes_per_page} by its schema"
            )

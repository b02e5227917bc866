"""Conversion of KV pages from one engine's format to another's.

A page in plain form has the axes ``(layer, kv, head, token, dim)`` and no scales. The codecs of private formats (hook
``sage_infer_kv_formats``) convert their pages to and from plain form. In plain form the tokens of one head follow each
other, so pages of another size are made by copies of contiguous runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import attrs

from sage_infer.contracts import LayerwiseKVFormatCodec
from sage_infer.errors import CapabilityMismatch, InvalidRequest
from sage_infer.schemas import KVCacheSchema

if TYPE_CHECKING:
    from sage_infer.contracts import KVFormatCodec

__all__ = ["Cast", "KVPageConverter", "is_plain"]

Cast = Callable[[memoryview, str, memoryview, str], None]
"""``cast(data, dtype, out, out_dtype)`` converts the floats of a buffer; dtypes are fp32, fp16 and bf16."""

_FLOATS = {"fp32": 4, "fp16": 2, "bf16": 2}
_PLAIN_AXES = ("layer", "kv", "head", "token", "dim")
_PART_BYTES = 2**20  # of floats that are converted together, so that they stay in a core's cache
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
        self._floats = attrs.evolve(self._to, dtype=self._from.dtype, value_dtype=None)
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
        buffers = _Buffers()
        step = self._layers_at_once()
        for first in range(0, self.source.num_layers, step):
            part = self._part(min(step, self.source.num_layers - first))
            part.convert(
                _layers(pages, part.source, first), tokens, _layers(out, part.target, first), buffers
            )

    def converted(self, pages: Sequence[memoryview], tokens: int) -> list[memoryview]:
        """Return the target's pages in new buffers; the arguments are those of ``convert``."""
        out = [memoryview(bytearray(self.target.bytes_per_page)) for _ in range(self.pages_for(tokens))]
        self.convert(pages, tokens, out)
        return out

    def _layers_at_once(self) -> int:
        """As many layers as fit into a core's cache with what is made of them; all if a codec needs whole pages."""
        layers = self.source.num_layers
        codecs = [codec for codec in (self._reads, self._writes) if codec is not None]
        if not all(isinstance(codec, LayerwiseKVFormatCodec) for codec in codecs):
            return layers
        layer = self._floats.bytes_per_page // layers
        return min(max(_PART_BYTES // layer, 1), layers)

    def _part(self, layers: int) -> _Part:
        """The conversion of pages of so many layers."""
        return _Part(
            source=attrs.evolve(self.source, num_layers=layers),
            target=attrs.evolve(self.target, num_layers=layers),
            plain=attrs.evolve(self._from, num_layers=layers),
            floats=attrs.evolve(self._floats, num_layers=layers),
            cast_floats=attrs.evolve(self._to, num_layers=layers),
            reads=self._reads,
            writes=self._writes,
            cast=self._cast if self._from.dtype != self._to.dtype else None,
            repeats=bool(self.max_error),
        )


class _Buffers(dict[str, memoryview]):
    """Buffers by name, made when they are first needed: new memory is slow. The first use must be the largest."""

    def of(self, name: str, schema: KVCacheSchema) -> memoryview:
        nbytes = schema.bytes_per_page
        if name not in self:
            self[name] = memoryview(bytearray(nbytes))
        return self[name][:nbytes]


@attrs.frozen(eq=False)
class _Part:
    """Conversion of a range of layers; all schemas have only these layers."""

    source: KVCacheSchema
    target: KVCacheSchema
    plain: KVCacheSchema
    """The source's pages in plain form."""
    floats: KVCacheSchema
    """The target's pages in plain form, with the source's type of floats."""
    cast_floats: KVCacheSchema
    """The same with the target's."""
    reads: KVFormatCodec | None
    writes: KVFormatCodec | None
    cast: Cast | None
    repeats: bool
    """Whether the end of a page repeats its last token, for a codec that rounds by the range of a page."""

    def convert(
        self, pages: Sequence[memoryview], tokens: int, out: Sequence[memoryview], buffers: _Buffers
    ) -> None:
        size, ours = self.source.page_size, self.target.page_size
        unpacked = _Unpacked(self, buffers)
        layerwise = self.reads if isinstance(self.reads, LayerwiseKVFormatCodec) else None
        for number, buffer in enumerate(out):
            begin, end = number * ours, min((number + 1) * ours, tokens)
            direct = self.cast is None and self.writes is None
            floats = buffer if direct else buffers.of("floats", self.floats)
            at = begin
            while at < end:
                index = at // size
                stop = min(end, (index + 1) * size)
                if layerwise is not None:
                    where = slice(at - index * size, stop - index * size)
                    layerwise.unpack_tokens(pages[index], self.source, where, floats, self.floats, at - begin)
                else:
                    page = unpacked.page(index, pages[index])
                    self._copy(page, at - index * size, floats, at - begin, stop - at)
                at = stop
            if end - begin < ours:
                self._fill(floats, end - begin)
            if self.cast is not None:
                page = buffer if self.writes is None else buffers.of("cast", self.cast_floats)
                self.cast(floats, self.floats.dtype, page, self.cast_floats.dtype)
                floats = page
            if self.writes is not None:
                self.writes.pack(floats, self.target, buffer)

    def _copy(self, source: memoryview, start: int, target: memoryview, at: int, count: int) -> None:
        """Copy ``count`` tokens of each layer, keys or values, and head."""
        if count == self.source.page_size == self.target.page_size:
            target[:] = source
            return
        row = self._row
        begin, size = start * row, self.source.page_size * row
        to, room = at * row, self.target.page_size * row
        length = count * row
        for _ in range(self._rows):
            target[to : to + length] = source[begin : begin + length]
            begin, to = begin + size, to + room

    def _fill(self, page: memoryview, used: int) -> None:
        """Clear the end of a page, or repeat its last token."""
        row, room = self._row, self.target.page_size * self._row
        unused = self.target.page_size - used
        for begin in range(0, self._rows * room, room):
            end = begin + used * row
            last = page[end - row : end].tobytes() if self.repeats else bytes(row)
            page[end : begin + room] = last * unused

    @property
    def _row(self) -> int:
        """Bytes of one token of one head in plain form."""
        return self.floats.head_dim * _FLOATS[self.floats.dtype]

    @property
    def _rows(self) -> int:
        """Runs of tokens in a page: layers, keys and values, heads."""
        return self.floats.num_layers * 2 * self.floats.num_heads


@attrs.define(eq=False)
class _Unpacked:
    """The page of the source that was used last, in plain form."""

    part: _Part
    buffers: _Buffers
    _index: int = -1
    _page: memoryview = attrs.field(factory=lambda: memoryview(b""))

    def page(self, index: int, page: memoryview) -> memoryview:
        if self.part.reads is None:
            return page
        if index != self._index:
            self._index, self._page = index, self.buffers.of("unpacked", self.part.plain)
            self.part.reads.unpack(page, self.part.source, self._page)
        return self._page


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


def _layers(pages: Sequence[memoryview], part: KVCacheSchema, first: int) -> list[memoryview]:
    """Layers of each page, from ``first`` on, as many as ``part`` has."""
    layer = part.bytes_per_page // part.num_layers
    return [page.cast("B")[first * layer : first * layer + part.bytes_per_page] for page in pages]


def _check(pages: Sequence[memoryview], schema: KVCacheSchema) -> None:
    for page in pages:
        if page.nbytes != schema.bytes_per_page:
            raise InvalidRequest(
                f"a KV page of {page.nbytes} bytes, expected {schema.bytes_per_page} by its schema"
            )

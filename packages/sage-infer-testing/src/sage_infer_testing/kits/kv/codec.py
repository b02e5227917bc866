"""The kit for codecs of private KV formats."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from typing import Any, ClassVar

import attrs
import pytest
from sage_infer.contracts import KVFormatCodec, LayerwiseKVFormatCodec
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import KVCacheSchema

from sage_infer_testing.shape import shape_problems
from sage_infer_testing.suite import ContractSuite

__all__ = ["KVFormatCodecContract"]


class KVFormatCodecContract(ContractSuite, kit=True):
    """Guarantees of a ``KVFormatCodec``. Override ``make_codec`` and set ``kv_schema``.

    Attributes:
        kv_schema: a schema in the codec's private format, with a non-empty ``format_id``.
        examples: number of random pages in the tests.
    """

    kv_schema: ClassVar[KVCacheSchema | None] = None
    examples: ClassVar[int] = 25

    def make_codec(self) -> KVFormatCodec:
        """The codec."""
        pytest.fail(f"{type(self).__name__} must override make_codec()")

    # --- helpers of the tests

    @pytest.fixture
    def codec(self) -> Any:
        """The codec."""
        return self.make_codec()

    @property
    def private(self) -> KVCacheSchema:
        """The schema of the private form."""
        if self.kv_schema is None or not self.kv_schema.format_id:
            pytest.fail(f"{type(self).__name__} must set kv_schema, with the codec's format_id")
        return self.kv_schema

    def pages(self, schema: KVCacheSchema) -> Iterator[bytes]:
        """Yield pages of random bytes, the same in each run; the first page is all zeros."""
        draw = random.Random(str(schema))
        yield bytes(schema.bytes_per_page)
        for _ in range(self.examples):
            yield draw.randbytes(schema.bytes_per_page)

    def plain_pages(self, codec: KVFormatCodec) -> Iterator[bytes]:
        """Yield pages in plain form: of random bytes for an exact codec, of random numbers for one that rounds."""
        schema = codec.plain(self.private)
        for page in self.pages(schema):
            yield page if not codec.max_error else _numbers(schema, page)

    def check_round_trip(self, codec: KVFormatCodec, plain: bytes) -> None:
        """Fail unless a plain page comes back within ``max_error``."""
        __tracebackhide__ = True
        found = self.unpacked(codec, self.packed(codec, plain))
        if not codec.max_error:
            assert found == plain, f"byte {_first_difference(found, plain)} of a plain page has changed"
            return
        before, after = (_elements(codec.plain(self.private), page) for page in (plain, found))
        allowed = codec.max_error * (max(before) - min(before))
        worst = max(abs(a - b) for a, b in zip(before, after, strict=True))
        assert worst <= allowed, (
            f"an element is off by {worst:g}, max_error {codec.max_error:g} allows {allowed:g} on this page"
        )

    def unpacked(self, codec: KVFormatCodec, page: bytes) -> bytes:
        """Return a private page in plain form."""
        out = bytearray(codec.plain(self.private).bytes_per_page)
        codec.unpack(memoryview(page), self.private, memoryview(out))
        return bytes(out)

    def packed(self, codec: KVFormatCodec, plain: bytes) -> bytes:
        """Return a plain page in the private format."""
        out = bytearray(self.private.bytes_per_page)
        codec.pack(memoryview(plain), self.private, memoryview(out))
        return bytes(out)

    # --- tests

    def test_has_the_shape_of_its_protocol(self, codec: Any) -> None:
        """Every method of ``KVFormatCodec`` exists with its parameters.

        How to fix: the message names each problem; copy the signature from ``sage_infer.contracts.KVFormatCodec``.
        """
        problems = shape_problems(codec, KVFormatCodec)
        assert not problems, f"not a KVFormatCodec: {'; '.join(problems)}"

    def test_matches_its_own_format(self, codec: Any) -> None:
        """``matches`` is true for ``kv_schema``, and false for plain KV and for other formats.

        How to fix: check ``format_id`` including its version, and the fields that determine the layout.
        """
        assert codec.matches(self.private) is True, f"does not match {self.private.format_id!r}"
        for format_id in ("", "kit-nobodys-format-1"):
            other = attrs.evolve(self.private, format_id=format_id)
            assert codec.matches(other) is False, f"matches the format {format_id!r}"

    def test_the_plain_form_is_of_the_same_model(self, codec: Any) -> None:
        """``plain`` describes the same KV with the axes (layer, kv, head, token, dim), without format and scales.

        How to fix: evolve the private schema: ``format_id=""``, the default ``axis_order``, no ``key_axis_order``, no
        scales, and the dtype of the elements that ``unpack`` writes.
        """
        plain = codec.plain(self.private)
        assert plain.format_id == "", f"format_id is {plain.format_id!r}"
        standard = attrs.fields(KVCacheSchema).axis_order.default
        assert plain.axis_order == plain.key_order == standard, (
            f"axes {plain.axis_order}, keys {plain.key_order}"
        )
        assert plain.scale_dtype is None, f"plain pages have no scales, got {plain.scale_dtype}"
        assert plain.page_size == self.private.page_size, "a page has another number of tokens"
        fit = self.private.compatible_with(plain)
        assert fit.compatible, f"not the same model: {fit.reason}"

    def test_states_its_error(self, codec: Any) -> None:
        """``max_error`` is 0, or a share below 1.

        How to fix: 0 for a codec that moves bytes; for one that quantizes, half a step as a share of the page's range.
        """
        stated = codec.max_error
        assert isinstance(stated, int | float), f"max_error is a {type(stated).__name__}"
        assert 0 <= stated < 1, f"max_error is {stated}"

    def test_plain_pages_survive_the_private_form(self, codec: Any) -> None:
        """``unpack`` restores a packed plain page: every bit, or each element within the codec's ``max_error``.

        How to fix: make ``unpack`` the inverse of ``pack`` for each element. An exact codec moves bytes and does not
        compute with them. One that quantizes states its error.
        """
        for plain in self.plain_pages(codec):
            self.check_round_trip(codec, plain)

    def test_private_pages_unpack_to_what_they_hold(self, codec: Any) -> None:
        """A private page that is unpacked and packed unpacks to the same plain page, within ``max_error``.

        How to fix: ``pack`` must write every byte that ``unpack`` reads.
        """
        exact = not codec.max_error
        private = (
            self.pages(self.private) if exact else (self.packed(codec, p) for p in self.plain_pages(codec))
        )
        for page in private:
            self.check_round_trip(codec, self.unpacked(codec, page))

    def test_every_element_is_carried(self, codec: Any) -> None:
        """Two plain pages that differ in one element differ in the private format.

        How to fix: copy keys and values of every layer, head and token; check the bounds of the loops.
        """
        schema = codec.plain(self.private)
        page = bytes(schema.bytes_per_page)
        zero = self.packed(codec, page)
        size = 1 if not codec.max_error else struct.calcsize(_CODES[schema.dtype])
        for at in {*range(0, len(page), size * max(1, len(page) // (64 * size))), len(page) - size}:
            other = page[:at] + b"\x3f" * size + page[at + size :]  # a number near 1 in every dtype
            assert self.packed(codec, other) != zero, f"byte {at} of a plain page is lost"

    def test_layers_and_tokens_convert_independently(self, codec: Any) -> None:
        """``unpack_tokens`` of any layer and tokens writes what ``unpack`` writes there, and leaves the rest as it is.

        An exact codec's ``pack`` of one layer writes that layer's part of the page. Skipped for a codec without
        ``unpack_tokens``.

        How to fix: use the numbers of layers and tokens of the schemas that are passed. If a page has more than its
        layers, such as a header, leave ``unpack_tokens`` out.
        """
        if not hasattr(codec, "unpack_tokens"):
            pytest.skip("the codec has no unpack_tokens")
        problems = shape_problems(codec, LayerwiseKVFormatCodec)
        assert not problems, f"not a LayerwiseKVFormatCodec: {'; '.join(problems)}"
        *_, last = self.plain_pages(codec)
        page = self.packed(codec, last)
        whole, layers = self.unpacked(codec, page), self.private.num_layers
        one = attrs.evolve(self.private, num_layers=1)
        plain, size = codec.plain(one), self.private.page_size
        row = plain.bytes_per_page // (2 * plain.num_heads * size)
        draw = random.Random(0)
        for layer in range(layers):
            part = page[layer * one.bytes_per_page :][: one.bytes_per_page]
            floats = whole[layer * plain.bytes_per_page :][: plain.bytes_per_page]
            if not codec.max_error:
                repacked = bytearray(one.bytes_per_page)
                codec.pack(memoryview(floats), one, memoryview(repacked))
                assert repacked == part, f"pack() of layer {layer} alone differs from the page"
            begin = draw.randrange(size)
            end, at = draw.randint(begin + 1, size), draw.randrange(3)
            room = attrs.evolve(plain, page_size=at + end - begin + 2)
            out = bytearray(b"\x11" * room.bytes_per_page)
            codec.unpack_tokens(memoryview(part), one, slice(begin, end), memoryview(out), room, at)
            for head in range(2 * plain.num_heads):
                found = out[head * room.page_size * row :][: room.page_size * row]
                expected = floats[(head * size + begin) * row : (head * size + end) * row]
                rest = [b"\x11" * (tokens * row) for tokens in (at, 2)]
                assert found == rest[0] + expected + rest[1], (
                    f"tokens {begin} to {end} of layer {layer} differ from what unpack() writes"
                )

    def test_pages_are_only_read(self, codec: Any) -> None:
        """``pack`` and ``unpack`` do not change their input, and accept read-only memory.

        How to fix: write only into ``out``.
        """
        *_, private = self.pages(self.private)
        mine = bytearray(private)
        out = memoryview(bytearray(codec.plain(self.private).bytes_per_page))
        codec.unpack(memoryview(mine), self.private, out)
        assert bytes(mine) == private, "unpack() changed the page that it read"

    def test_wrong_sizes_are_refused(self, codec: Any) -> None:
        """A page or buffer whose length differs from ``bytes_per_page`` is ``InvalidRequest``; nothing is written.

        How to fix: first compare both lengths with ``bytes_per_page`` of their schemas.
        """
        sizes = {
            codec.unpack: (self.private.bytes_per_page, codec.plain(self.private).bytes_per_page),
            codec.pack: (codec.plain(self.private).bytes_per_page, self.private.bytes_per_page),
        }
        for convert, (whole, room) in sizes.items():
            for size, space in ((whole - 1, room), (whole + 1, room), (whole, room - 1), (whole, room + 1)):
                out = bytearray(space)
                with pytest.raises(InvalidRequest):
                    convert(memoryview(b"\x01" * size), self.private, memoryview(out))
                assert not any(out), f"{convert.__name__}() wrote before it raised the error"


_CODES = {"fp32": "f", "fp16": "e", "bf16": "H"}
"""Codes of ``struct`` by dtype; a bfloat16 is the upper half of a float32."""


def _code(schema: KVCacheSchema) -> str:
    assert schema.dtype in _CODES, (
        f"a codec that rounds has plain pages of {', '.join(_CODES)}, got {schema.dtype}"
    )
    return _CODES[schema.dtype]


def _numbers(schema: KVCacheSchema, page: bytes) -> bytes:
    """A page of finite numbers, of which random bytes decide; zeros stay zeros."""
    code = _code(schema)
    if not any(page):
        return page
    draw = random.Random(page)
    count = schema.bytes_per_page // struct.calcsize(code)
    numbers: list[Any] = [draw.gauss(0, 4) for _ in range(count)]
    if code == "H":
        numbers = [int.from_bytes(struct.pack("<f", number)[2:], "little") for number in numbers]
    return struct.pack(f"{count}{code}", *numbers)


def _elements(schema: KVCacheSchema, page: bytes) -> list[float]:
    code = _code(schema)
    found: list[Any] = list(struct.unpack(f"{len(page) // struct.calcsize(code)}{code}", page))
    if code == "H":
        found = [struct.unpack("<f", b"\0\0" + number.to_bytes(2, "little"))[0] for number in found]
    return found


def _first_difference(one: bytes, other: bytes) -> int:
    return next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )

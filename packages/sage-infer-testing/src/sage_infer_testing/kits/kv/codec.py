"""The kit for codecs of private KV formats."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, ClassVar

import attrs
import pytest
from sage_infer.contracts import KVFormatCodec
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import KVCacheSchema

from sage_infer_testing.shape import shape_problems
from sage_infer_testing.suite import ContractSuite

__all__ = ["KVFormatCodecContract"]


class KVFormatCodecContract(ContractSuite, kit=True):
    """Guarantees of a ``KVFormatCodec``. Override ``make_codec`` and set ``kv_schema``.

    Attributes:
        kv_schema: a schema in the codec's private format, with a non-empty ``format_id``.
        lossless: whether ``pack`` followed by ``unpack`` restores every bit; False for a format that quantizes.
        examples: number of random pages in the tests.
    """

    kv_schema: ClassVar[KVCacheSchema | None] = None
    lossless: ClassVar[bool] = True
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

    def test_plain_pages_survive_the_private_form(self, codec: Any) -> None:
        """``unpack`` restores a packed plain page of random bytes.

        How to fix: make ``unpack`` the inverse of ``pack`` for each element; move bytes, do not compute with them. For
        a format that quantizes set ``lossless = False``; then a second round trip must not change the page.
        """
        for plain in self.pages(codec.plain(self.private)):
            once = self.unpacked(codec, self.packed(codec, plain))
            expected = plain if self.lossless else self.unpacked(codec, self.packed(codec, once))
            assert once == expected, f"byte {_first_difference(once, expected)} of a plain page has changed"

    def test_private_pages_unpack_to_what_they_hold(self, codec: Any) -> None:
        """A private page that is unpacked and packed unpacks to the same plain page.

        How to fix: ``pack`` must write every byte that ``unpack`` reads.
        """
        for page in self.pages(self.private):
            plain = self.unpacked(codec, page)
            again = self.unpacked(codec, self.packed(codec, plain))
            assert again == plain or not self.lossless, (
                f"byte {_first_difference(again, plain)} of the plain page has changed"
            )

    def test_every_element_is_carried(self, codec: Any) -> None:
        """Two plain pages that differ in one byte differ in the private format.

        How to fix: copy keys and values of every layer, head and token; check the bounds of the loops.
        """
        if not self.lossless:
            pytest.skip("lossless is False")
        (page, *_) = self.pages(codec.plain(self.private))
        zero = self.packed(codec, page)
        for at in {*range(0, len(page), max(1, len(page) // 64)), len(page) - 1}:
            other = page[:at] + b"\x01" + page[at + 1 :]
            assert self.packed(codec, other) != zero, f"byte {at} of a plain page is lost"

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


def _first_difference(one: bytes, other: bytes) -> int:
    return next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )

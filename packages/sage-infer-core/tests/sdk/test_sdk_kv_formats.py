"""KV pages of one format become those of another."""

from __future__ import annotations

from array import array
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sage_infer import plugins
from sage_infer.errors import BackendUnavailable, CapabilityMismatch, InvalidRequest
from sage_infer.schemas import KVCacheSchema
from sage_infer.sdk import KVPageConverter, kv_formats

LAYERS, HEADS, DIM = 2, 2, 3


def schema(page_size: int, **changes: Any) -> KVCacheSchema:
    return KVCacheSchema(
        dtype="fp32", page_size=page_size, num_layers=LAYERS, num_heads=HEADS, head_dim=DIM, **changes
    )


def element(layer: int, kv: int, head: int, token: int, dim: int) -> float:
    return float((((layer * 2 + kv) * HEADS + head) * 1000 + token) * DIM + dim + 1)


def pages(page_size: int, tokens: int, unused: float = 0.0) -> list[memoryview]:
    """Pages in plain form whose elements say where they belong."""
    found = []
    for start in range(0, tokens, page_size):
        page = array(
            "f",
            (
                element(layer, kv, head, token, dim) if token < tokens else unused
                for layer in range(LAYERS)
                for kv in range(2)
                for head in range(HEADS)
                for token in range(start, start + page_size)
                for dim in range(DIM)
            ),
        )
        found.append(memoryview(page).cast("B"))
    return found


class Mirror:
    """A codec of pages whose bytes lie backwards."""

    def __init__(self, max_error: float = 0.0, dtype: str = "fp32") -> None:
        self.max_error, self._dtype = max_error, dtype

    def matches(self, schema: KVCacheSchema) -> bool:
        return schema.num_heads == HEADS

    def plain(self, schema: KVCacheSchema) -> KVCacheSchema:
        return attrs.evolve(schema, format_id="", dtype=self._dtype)

    def unpack(self, page: memoryview, schema: KVCacheSchema, out: memoryview) -> None:
        out[:] = page[::-1]

    pack = unpack


class Layers(Mirror):
    """A codec that converts layers and tokens alone: the bytes of each head's run of tokens lie backwards."""

    def unpack(self, page: memoryview, schema: KVCacheSchema, out: memoryview) -> None:
        size = schema.page_size * schema.head_dim * 4
        assert page.nbytes == schema.bytes_per_page
        for at in range(0, page.nbytes, size):
            out[at : at + size] = page[at : at + size][::-1]

    pack = unpack

    def unpack_tokens(
        self,
        page: memoryview,
        schema: KVCacheSchema,
        tokens: slice,
        out: memoryview,
        out_schema: KVCacheSchema,
        at: int,
    ) -> None:
        plain, row = memoryview(bytearray(page.nbytes)), schema.head_dim * 4
        self.unpack(page, schema, plain)
        for run in range(schema.num_layers * 2 * schema.num_heads):
            to, begin = (run * out_schema.page_size + at) * row, run * schema.page_size * row
            count = (tokens.stop - tokens.start) * row
            out[to : to + count] = plain[begin + tokens.start * row :][:count]


@pytest.fixture
def codecs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    found: dict[str, Any] = {"mirror": Mirror(), "rounding": Mirror(0.1), "layers": Layers()}
    monkeypatch.setattr(plugins, "kv_codec", lambda format_id: found[format_id])
    return found


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 30))
def test_pages_of_another_size(source: int, target: int, tokens: int) -> None:
    converter = KVPageConverter(schema(source), schema(target))
    found = converter.converted(pages(source, tokens, unused=float("nan")), tokens)
    assert found == pages(target, tokens)


@pytest.mark.parametrize("source", [4, 8])
@pytest.mark.parametrize("target", [4, 8])
def test_private_formats_go_through_their_codecs(codecs: dict[str, Any], source: int, target: int) -> None:
    here, there = pages(source, 13), pages(target, 13)
    mirrored = [memoryview(bytes(page)[::-1]) for page in here]
    plain = KVPageConverter(schema(source, format_id="mirror"), schema(target))
    assert plain.converted(mirrored, 13) == there
    private = KVPageConverter(schema(source), schema(target, format_id="mirror"))
    assert [bytes(page)[::-1] for page in private.converted(here, 13)] == there
    assert (plain.max_error, private.max_error) == (0.0, 0.0)


@pytest.mark.parametrize(("source", "target", "tokens"), [(8, 4, 13), (4, 8, 13), (3, 5, 11), (5, 5, 9)])
def test_a_layer_at_a_time(
    codecs: dict[str, Any], monkeypatch: pytest.MonkeyPatch, source: int, target: int, tokens: int
) -> None:
    monkeypatch.setattr(kv_formats, "_PART_BYTES", 1)
    there = KVPageConverter(schema(target), schema(target, format_id="layers"))
    back = KVPageConverter(schema(source, format_id="layers"), schema(target))
    here = KVPageConverter(schema(source), schema(source, format_id="layers"))
    packed = here.converted(pages(source, tokens), tokens)
    assert back.converted(packed, tokens) == pages(target, tokens)
    direct = KVPageConverter(schema(source, format_id="layers"), schema(target, format_id="layers"))
    assert direct.converted(packed, tokens) == there.converted(pages(target, tokens), tokens)
    mixed = KVPageConverter(schema(source, format_id="layers"), schema(target, format_id="mirror"))
    assert [page[::-1] for page in mixed.converted(packed, tokens)] == pages(target, tokens)


def test_a_codec_that_rounds_gets_no_zeros_it_would_round_by(codecs: dict[str, Any]) -> None:
    converter = KVPageConverter(schema(8), schema(4, format_id="rounding"))
    assert converter.max_error == 0.1
    *_, last = converter.converted(pages(8, 5), 5)
    page = array("f", bytes(last)[::-1])
    assert set(page[:12]) == {element(0, 0, 0, 4, dim) for dim in range(DIM)}


def test_floats_are_converted_by_the_engine() -> None:
    calls = []

    def cast(data: memoryview, dtype: str, out: memoryview, out_dtype: str) -> None:
        calls.append((data.nbytes, dtype, out.nbytes, out_dtype))
        out[:] = b"\x01" * out.nbytes

    source, target = schema(4), attrs.evolve(schema(4), dtype="bf16")
    (page,) = KVPageConverter(source, target, cast=cast).converted(pages(4, 4), 4)
    assert calls == [(source.bytes_per_page, "fp32", target.bytes_per_page, "bf16")]
    assert page == b"\x01" * target.bytes_per_page
    with pytest.raises(CapabilityMismatch, match="from fp32 to bf16 here"):
        KVPageConverter(source, target)


def test_what_cannot_be_converted_is_refused(codecs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    quantized = {"dtype": "int8", "scale_dtype": "fp32", "scale_granularity": "token"}
    codecs["deep"] = Mirror(dtype="fp8_e4m3")
    wrong = schema(4, format_id="mirror")
    for source, target, says in (
        (schema(4), attrs.evolve(schema(4), num_layers=3), "num_layers differs: 2 here, 3 there"),
        (schema(4), schema(4, rope="interleaved"), "no conversion of rope is known"),
        (schema(4), schema(4, shards=2), "no conversion of shards is known"),
        (schema(4, axis_order=("layer", "kv", "token", "head", "dim")), schema(4), "are not in plain form"),
        (attrs.evolve(schema(4), **quantized), schema(4), "pages of int8"),
        (schema(4, format_id="deep"), schema(4), "no plain form of floats"),
        (attrs.evolve(wrong, num_heads=1), attrs.evolve(schema(4), num_heads=1), "does not support this layout"),
    ):  # fmt: skip
        with pytest.raises(CapabilityMismatch, match=says):
            KVPageConverter(source, target)
    monkeypatch.undo()
    with pytest.raises(BackendUnavailable, match="no KV format codec reads 'nobodys-9'"):
        KVPageConverter(schema(4, format_id="nobodys-9"), schema(4))


def test_wrong_numbers_and_sizes() -> None:
    converter, own = KVPageConverter(schema(4), schema(8)), pages(4, 13)
    assert converter.pages_for(13) == 2
    with pytest.raises(InvalidRequest, match="3 pages and 2 buffers for 13 tokens, expected 4 and 2"):
        converter.converted(own[:3], 13)
    with pytest.raises(InvalidRequest, match="a KV page of 383 bytes, expected 384"):
        converter.converted([own[0][1:], *own[1:]], 13)
    room = [memoryview(bytearray(8)) for _ in range(2)]
    with pytest.raises(InvalidRequest, match="a KV page of 8 bytes, expected 768"):
        converter.convert(own, 13, room)

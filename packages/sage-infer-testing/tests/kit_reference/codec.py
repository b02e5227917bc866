"""The codec of a made-up format: keys lie as [dim][token], as some CPU kernels want them."""

from __future__ import annotations

from attrs import evolve
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import KVCacheSchema

__all__ = ["PRIVATE", "LayerwiseReferenceCodec", "ReferenceCodec"]

FORMAT = "toy-1"
PRIVATE = KVCacheSchema.from_preset(
    "fp16", num_layers=2, num_heads=2, head_dim=6, page_size=4, format_id=FORMAT,
    key_axis_order=("layer", "kv", "head", "dim", "token"),
)  # fmt: skip
ITEM = 2  # bytes of an element


class ReferenceCodec:
    """Moves elements one by one."""

    max_error = 0.0

    def matches(self, schema: KVCacheSchema) -> bool:
        return schema.format_id == FORMAT and schema.dtype == "fp16"

    def plain(self, schema: KVCacheSchema) -> KVCacheSchema:
        return evolve(schema, format_id="", key_axis_order=None)

    def unpack(self, page: memoryview, schema: KVCacheSchema, out: memoryview) -> None:
        self.check(page, schema, out)
        for private, plain in self.moves(schema):
            out[plain : plain + ITEM] = page[private : private + ITEM]

    def pack(self, page: memoryview, schema: KVCacheSchema, out: memoryview) -> None:
        self.check(page, schema, out)
        for private, plain in self.moves(schema):
            out[private : private + ITEM] = page[plain : plain + ITEM]

    def check(self, page: memoryview, schema: KVCacheSchema, out: memoryview) -> None:
        size = schema.bytes_per_page
        if page.nbytes != size or out.nbytes != size:
            raise InvalidRequest(f"a page has {size} bytes, got {page.nbytes} and room for {out.nbytes}")

    def moves(self, schema: KVCacheSchema) -> list[tuple[int, int]]:
        """Offsets of each element in private and in plain form."""
        tokens, dims = schema.page_size, schema.head_dim
        found = []
        for tile in range(schema.num_layers * 2 * schema.num_heads):
            is_key = tile // schema.num_heads % 2 == 0
            start = tile * tokens * dims
            for token in range(tokens):
                for dim in range(dims):
                    inside = dim * tokens + token if is_key else token * dims + dim
                    found.append(((start + inside) * ITEM, (start + token * dims + dim) * ITEM))
        return found


class LayerwiseReferenceCodec(ReferenceCodec):
    """The same for any tokens of any layers."""

    def unpack_tokens(
        self,
        page: memoryview,
        schema: KVCacheSchema,
        tokens: slice,
        out: memoryview,
        out_schema: KVCacheSchema,
        at: int,
    ) -> None:
        plain = bytearray(schema.bytes_per_page)
        self.unpack(page, schema, memoryview(plain))
        if out.nbytes != out_schema.bytes_per_page:
            raise InvalidRequest(f"a page has {out_schema.bytes_per_page} bytes, got room for {out.nbytes}")
        row = schema.head_dim * ITEM
        for tile in range(schema.num_layers * 2 * schema.num_heads):
            begin, to = tile * schema.page_size * row, (tile * out_schema.page_size + at) * row
            found = plain[begin + tokens.start * row : begin + tokens.stop * row]
            out[to : to + len(found)] = found

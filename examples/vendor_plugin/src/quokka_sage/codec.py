"""A ``KVFormatCodec``: Quokka's kernels keep the pages of one head together."""

from attrs import evolve
from sage_infer.errors import InvalidRequest


class HeadsFirst:
    max_error = 0.0  # bytes are moved

    def matches(self, schema):
        return schema.format_id == "quokka/heads-first-1" and schema.scale_dtype is None and not schema.groups

    def plain(self, schema):
        return evolve(schema, format_id="")

    def unpack(self, page, schema, out):
        for plain, private in self._places(page, schema, out):
            out[plain] = page[private]

    def pack(self, page, schema, out):
        for plain, private in self._places(page, schema, out):
            out[private] = page[plain]

    def _places(self, page, schema, out):
        """Where the run of each layer, key or value, and head lies in plain and in private pages."""
        if page.nbytes != schema.bytes_per_page or out.nbytes != schema.bytes_per_page:
            raise InvalidRequest(
                f"a page is {schema.bytes_per_page} bytes: got {page.nbytes} and {out.nbytes}"
            )
        heads, size = schema.num_heads, schema.bytes_per_page // (2 * schema.num_layers * schema.num_heads)
        for row in range(2 * schema.num_layers):  # keys and values of each layer
            for head in range(heads):
                plain, private = row * heads + head, head * 2 * schema.num_layers + row
                yield slice(plain * size, (plain + 1) * size), slice(private * size, (private + 1) * size)

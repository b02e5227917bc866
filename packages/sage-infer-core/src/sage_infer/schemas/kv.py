"""The KV cache's shape and precision, and pieces of it on the move."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from attrs import field, frozen

from sage_infer.checks import Choice, Each, Flag, Instance, Integer, Text, as_tuple, optional
from sage_infer.errors import CapabilityMismatch, Problem, SchemaError
from sage_infer.schemas.base import schema

__all__ = [
    "KV_PRESETS",
    "KVAxis",
    "KVCacheSchema",
    "KVChunk",
    "KVCompatibility",
    "KVDtype",
    "KVLocation",
    "ScaleGranularity",
]

KVDtype = Literal["fp32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2", "int8", "int4"]
ScaleDtype = Literal["fp16", "fp32", "int8"]
ScaleGranularity = Literal["tensor", "head", "channel", "token", "token_head"]
KVLayout = Literal["paged", "contiguous"]
KVAxis = Literal["layer", "kv", "head", "token", "dim"]
MemoryTier = Literal["hbm", "dram", "ssd", "remote"]

DTYPE_BITS: Mapping[str, int] = {
    "fp32": 32, "fp16": 16, "bf16": 16, "fp8_e4m3": 8, "fp8_e5m2": 8, "int8": 8, "int4": 4,
}  # fmt: skip
_AXES: tuple[KVAxis, ...] = get_args(KVAxis)


@frozen(kw_only=True)
class KVCompatibility:
    """Whether KV in one schema can be used in another, and through which conversions.

    ``conversions`` names the fields that differ, in the order a converter should handle them; it is empty where
    the bytes can be used as they are. ``reason`` says why nothing can help, and is empty where something can.
    """

    conversions: tuple[str, ...] = ()
    reason: str = ""

    @property
    def compatible(self) -> bool:
        return not self.reason

    @property
    def identical(self) -> bool:
        return self.compatible and not self.conversions


@schema("1.0")
@frozen(kw_only=True)
class KVCacheSchema:
    """The exact form of a KV cache: enough to compute every byte offset, and to decide about reuse.

    Attributes:
        dtype: element type of keys and values.
        page_size: tokens in a page (block).
        num_layers: transformer layers that hold KV.
        num_heads: KV heads (not query heads) per layer.
        head_dim: elements per head.
        scale_dtype: type of the quantization scales; null where dtype needs none.
        scale_granularity: what shares one key scale: the whole cache (tensor), a head, channel, token or
            token_head of a page. Scales of tensor granularity lie outside the pages.
        value_scale_granularity: the same for values; null means as for keys.
        zero_points: whether a zero point of scale_dtype lies beside every scale.
        layout: paged, or one contiguous run per sequence.
        axis_order: order of the axes inside one page, slowest first.
        format_id: names an engine's private byte format (with the engine's version); two different non-empty
            names never mix. Empty where the other fields say it all.
    """

    dtype: KVDtype = field(validator=Choice(get_args(KVDtype)))
    page_size: int = field(validator=Integer(ge=1))
    num_layers: int = field(validator=Integer(ge=1))
    num_heads: int = field(validator=Integer(ge=1))
    head_dim: int = field(validator=Integer(ge=1))
    scale_dtype: ScaleDtype | None = field(default=None, validator=optional(Choice(get_args(ScaleDtype))))
    scale_granularity: ScaleGranularity | None = field(
        default=None, validator=optional(Choice(get_args(ScaleGranularity)))
    )
    value_scale_granularity: ScaleGranularity | None = field(
        default=None, validator=optional(Choice(get_args(ScaleGranularity)))
    )
    zero_points: bool = field(default=False, validator=Flag())
    layout: KVLayout = field(default="paged", validator=Choice(get_args(KVLayout)))
    axis_order: tuple[KVAxis, ...] = field(
        default=_AXES, converter=as_tuple, validator=Each(Choice(_AXES), unique=True)
    )
    format_id: str = field(default="", validator=Text())

    def __attrs_post_init__(self) -> None:
        problems = []
        if sorted(self.axis_order) != sorted(_AXES):
            problems.append(Problem("$.axis_order", f"must name each of {', '.join(_AXES)} once"))
        if (self.scale_dtype is None) != (self.scale_granularity is None):
            problems.append(Problem("$.scale_dtype", "and scale_granularity must be given together"))
        if self.scale_dtype is None and (self.zero_points or self.value_scale_granularity):
            problems.append(Problem("$.scale_dtype", "is needed by zero_points and value_scale_granularity"))
        if self.dtype in ("int8", "int4") and self.scale_dtype is None:
            problems.append(
                Problem(
                    "$.scale_dtype", f"is needed by dtype {self.dtype}: integers have no scale of their own"
                )
            )
        if problems:
            raise SchemaError("KVCacheSchema", problems)

    @property
    def bytes_per_page(self) -> int:
        """Bytes of one page over all layers, keys and values, scales in the page included."""
        elements = self.page_size * self.num_heads * self.head_dim
        data_bits = 2 * elements * DTYPE_BITS[self.dtype]
        scales = self._scales_per_page(self.scale_granularity) + self._scales_per_page(
            self.value_scale_granularity or self.scale_granularity
        )
        scale_bits = 0 if self.scale_dtype is None else DTYPE_BITS[self.scale_dtype]
        per_layer_bits = data_bits + scales * scale_bits * (2 if self.zero_points else 1)
        return -(-per_layer_bits * self.num_layers // 8)

    @property
    def bytes_per_token(self) -> float:
        """Bytes of one token over all layers, with its share of the page's scales."""
        return self.bytes_per_page / self.page_size

    def _scales_per_page(self, granularity: ScaleGranularity | None) -> int:
        if granularity is None or granularity == "tensor":
            return 0
        return {
            "head": self.num_heads,
            "channel": self.num_heads * self.head_dim,
            "token": self.page_size,
            "token_head": self.page_size * self.num_heads,
        }[granularity]

    def compatible_with(self, other: KVCacheSchema) -> KVCompatibility:
        """What it takes to use this cache's blocks in a cache of schema ``other``."""
        for name in ("num_layers", "num_heads", "head_dim"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return KVCompatibility(
                    reason=f"{name} differs: {mine} here, {theirs} there; not the same model"
                )
        if self.format_id != other.format_id:
            names = f"{self.format_id or 'the plain layout'!s} and {other.format_id or 'the plain layout'!s}"
            if self.format_id and other.format_id:
                return KVCompatibility(
                    reason=f"private byte formats differ: {names}; recompute, or use one engine"
                )
        order = (
            "format_id", "layout", "page_size", "axis_order", "dtype", "scale_dtype", "scale_granularity",
            "value_scale_granularity", "zero_points",
        )  # fmt: skip
        return KVCompatibility(conversions=tuple(n for n in order if getattr(self, n) != getattr(other, n)))

    @classmethod
    def from_preset(
        cls, preset: str, *, num_layers: int, num_heads: int, head_dim: int, **overrides: Any
    ) -> KVCacheSchema:
        """A named precision (``fp16 bf16 fp8 int8 int4``) for a model's geometry; ``overrides`` win.

        Raises:
            CapabilityMismatch: there is no preset of that name.
        """
        if preset not in KV_PRESETS:
            raise CapabilityMismatch(f"no KV preset {preset!r}; choose one of {', '.join(KV_PRESETS)}")
        fields = {"page_size": 16, **KV_PRESETS[preset], **overrides}
        return cls(num_layers=num_layers, num_heads=num_heads, head_dim=head_dim, **fields)


KV_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "fp16": {"dtype": "fp16"},
    "bf16": {"dtype": "bf16"},
    "fp8": {"dtype": "fp8_e4m3", "scale_dtype": "fp32", "scale_granularity": "tensor"},
    "int8": {"dtype": "int8", "scale_dtype": "fp16", "scale_granularity": "token_head"},
    "int4": {
        "dtype": "int4",
        "scale_dtype": "fp16",
        "scale_granularity": "token_head",
        "zero_points": True,
    },
}


@schema("1.0")
@frozen(kw_only=True)
class KVLocation:
    """Where a chunk's bytes lie.

    Attributes:
        tier: kind of memory: hbm (the accelerator's), dram, ssd or remote.
        uri: address inside the tier, such as ``file:///…`` or ``engine://instance/…``.
    """

    tier: MemoryTier = field(validator=Choice(get_args(MemoryTier)))
    uri: str = field(validator=Text(min_length=1))


@schema("1.0")
@frozen(kw_only=True)
class KVChunk:
    """A run of KV that can be named, moved and checked: some layers of some consecutive tokens.

    Attributes:
        chunk_id: content hash in hex over model, KV schema and token prefix (``contracts.kv_store.block_keys``).
        request_id: the request that computed it.
        layer_start: first layer held.
        layer_end: one past the last layer held.
        token_start: position of the first token held, from the start of the sequence.
        token_end: one past the position of the last token held.
        kv_schema: form of the bytes.
        nbytes: size in bytes.
        location: where the bytes lie; null while they are on their way inside a message.
        checksum: ``algorithm:hex`` over the bytes; null where the engine's own cache holds them.
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

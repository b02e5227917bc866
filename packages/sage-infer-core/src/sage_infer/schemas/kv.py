"""Shape and precision of KV caches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from attrs import evolve, field, frozen

from sage_infer.checks import (
    Choice,
    Each,
    Flag,
    Instance,
    Integer,
    Text,
    as_optional_tuple,
    as_tuple,
    optional,
)
from sage_infer.errors import CapabilityMismatch, Problem, SchemaError
from sage_infer.schemas.base import schema

__all__ = [
    "KV_PRESETS",
    "KVAxis",
    "KVCacheSchema",
    "KVCompatibility",
    "KVDtype",
    "KVGroup",
    "ScaleGranularity",
]

KVDtype = Literal["fp32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2", "int8", "int4"]
ScaleDtype = Literal["fp16", "fp32", "int8"]
ScaleGranularity = Literal["tensor", "head", "channel", "token", "token_head"]
KVLayout = Literal["paged", "contiguous"]
KVAxis = Literal["layer", "kv", "head", "token", "dim"]
RopeForm = Literal["half", "interleaved", "none"]
GroupKind = Literal["full", "sliding", "chunked", "state"]

DTYPE_BITS: Mapping[str, int] = {
    "fp32": 32, "fp16": 16, "bf16": 16, "fp8_e4m3": 8, "fp8_e5m2": 8, "int8": 8, "int4": 4,
}  # fmt: skip
_AXES: tuple[KVAxis, ...] = get_args(KVAxis)
_CONVERTED = (
    "format_id", "layout", "shards", "page_size", "axis_order", "key_axis_order", "rope", "dtype", "value_dtype",
    "scale_dtype", "scale_granularity", "value_scale_granularity", "zero_points", "groups",
)  # fmt: skip


@frozen(kw_only=True)
class KVCompatibility:
    """Whether KV in one schema can be converted to another, and the conversions that this needs.

    Attributes:
        conversions: the fields that differ, in the order a converter should handle them; empty if the bytes can be
            used unchanged. Converting ``format_id`` requires the codec of each private format (hook
            ``sage_infer_kv_formats``).
        reason: why conversion is impossible; empty if it is possible.
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
class KVGroup:
    """Layers that share one kind of attention. A field that is null inherits its value from the schema.

    Attributes:
        layers: indices of the group's layers, counted from 0.
        kind: full attention; sliding (the last ``window`` tokens); chunked (the tokens of the current chunk
            of ``window``); state (a fixed size per sequence, as in Mamba or linear attention).
        window: attention window in tokens; null for full and state.
        page_size: tokens per page.
        num_heads: KV heads per layer.
        head_dim: elements of a key per head.
        value_dim: elements of a value per head; 0 if the layers store no values.
        dtype: element type.
        state_bytes: bytes of state per sequence and layer; 0 for the other kinds.
    """

    layers: tuple[int, ...] = field(
        converter=as_tuple, validator=Each(Integer(ge=0), min_items=1, unique=True)
    )
    kind: GroupKind = field(default="full", validator=Choice(get_args(GroupKind)))
    window: int | None = field(default=None, validator=optional(Integer(ge=1)))
    page_size: int | None = field(default=None, validator=optional(Integer(ge=1)))
    num_heads: int | None = field(default=None, validator=optional(Integer(ge=1)))
    head_dim: int | None = field(default=None, validator=optional(Integer(ge=1)))
    value_dim: int | None = field(default=None, validator=optional(Integer(ge=0)))
    dtype: KVDtype | None = field(default=None, validator=optional(Choice(get_args(KVDtype))))
    state_bytes: int = field(default=0, validator=Integer(ge=0))

    def __attrs_post_init__(self) -> None:
        problems = []
        if (self.window is not None) != (self.kind in ("sliding", "chunked")):
            problems.append(
                Problem("$.window", "is required for kinds sliding and chunked, and not allowed for others")
            )
        if (self.state_bytes > 0) != (self.kind == "state"):
            problems.append(
                Problem("$.state_bytes", "is required for kind state, and not allowed for others")
            )
        if problems:
            raise SchemaError("KVGroup", problems)


@schema("1.0")
@frozen(kw_only=True)
class KVCacheSchema:
    """Exact memory layout of a KV cache: enough to compute byte offsets and to decide whether KV can be reused.

    Attributes:
        dtype: element type of keys and values.
        page_size: tokens per page (block).
        num_layers: number of layers with KV or state.
        num_heads: KV heads (not query heads) per layer, over all shards.
        head_dim: elements of a key per head. MLA is one head with the width of the latent and its rotary part.
        scale_dtype: type of the quantization scales; null if dtype needs none.
        scale_granularity: unit that shares one key scale: the whole cache (tensor), or a head, channel, token or
            token_head of a page. Scales of tensor granularity are stored outside the pages. Defaults to tensor
            if scale_dtype is set.
        value_scale_granularity: the same for values; null means the same as for keys.
        zero_points: whether each scale has a zero point of type scale_dtype.
        layout: paged, or contiguous (one run per sequence).
        axis_order: order of the axes inside a page, slowest first.
        format_id: name of an engine's private byte format, including the engine's version. Two different formats
            are converted only by their codecs. Empty if the other fields describe the layout completely.
        key_axis_order: axis order of keys, if it differs from axis_order.
        value_dim: elements of a value per head; null means head_dim, 0 means that no values are stored (MLA).
        value_dtype: element type of values, if it differs from dtype.
        rope: pairing of rotated key elements: half (``i`` with ``i + dim/2``), interleaved (``2i`` with
            ``2i + 1``), or none.
        rope_dim: rotated elements per head; null means all of them.
        shards: number of tensor-parallel ranks that the heads are split over; the outermost axis, in rank order.
        groups: groups of layers with different attention; each layer belongs to exactly one group. Empty if all
            layers use full attention with the numbers above.
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
    key_axis_order: tuple[KVAxis, ...] | None = field(
        default=None, converter=as_optional_tuple, validator=optional(Each(Choice(_AXES), unique=True))
    )
    value_dim: int | None = field(default=None, validator=optional(Integer(ge=0)))
    value_dtype: KVDtype | None = field(default=None, validator=optional(Choice(get_args(KVDtype))))
    rope: RopeForm = field(default="half", validator=Choice(get_args(RopeForm)))
    rope_dim: int | None = field(default=None, validator=optional(Integer(ge=1)))
    shards: int = field(default=1, validator=Integer(ge=1))
    groups: tuple[KVGroup, ...] = field(default=(), converter=as_tuple, validator=Each(Instance(KVGroup)))

    def __attrs_post_init__(self) -> None:
        if self.scale_dtype is not None and self.scale_granularity is None:
            object.__setattr__(self, "scale_granularity", "tensor")
        problems = [
            Problem(f"$.{name}", f"must name each of {', '.join(_AXES)} once")
            for name in ("axis_order", "key_axis_order")
            if (order := getattr(self, name)) is not None and sorted(order) != sorted(_AXES)
        ]
        if self.scale_dtype is None and (
            self.scale_granularity or self.zero_points or self.value_scale_granularity
        ):
            needing = "scale_granularity, zero_points and value_scale_granularity"
            problems.append(Problem("$.scale_dtype", f"is required by {needing}"))
        for dtype in {self.dtype, self.value_dtype, *(group.dtype for group in self.groups)}:
            if dtype in ("int8", "int4") and self.scale_dtype is None:
                message = f"is required by dtype {dtype}: integers need a scale"
                problems.append(Problem("$.scale_dtype", message))
        if self.num_heads % self.shards:
            message = (
                f"must divide num_heads ({self.num_heads}), got {self.shards}; replicated heads count once"
            )
            problems.append(Problem("$.shards", message))
        if self.rope_dim is not None and self.rope_dim > self.head_dim:
            problems.append(
                Problem("$.rope_dim", f"must be ≤ head_dim ({self.head_dim}), got {self.rope_dim}")
            )
        layers = sorted(layer for group in self.groups for layer in group.layers)
        if self.groups and layers != list(range(self.num_layers)):
            message = f"must have each of the {self.num_layers} layers in exactly one group, got {layers}"
            problems.append(Problem("$.groups", message))
        if problems:
            raise SchemaError("KVCacheSchema", problems)

    @property
    def key_order(self) -> tuple[KVAxis, ...]:
        """Axis order of keys inside a page, slowest first."""
        return self.axis_order if self.key_axis_order is None else self.key_axis_order

    @property
    def value_width(self) -> int:
        """Elements of a value per head; 0 if no values are stored."""
        return self.head_dim if self.value_dim is None else self.value_dim

    def of_group(self, group: KVGroup) -> KVCacheSchema:
        """Return the schema of one group's layers, with the group's values in place of the inherited ones."""
        own = ("page_size", "num_heads", "head_dim", "value_dim", "dtype")
        changes = {name: value for name in own if (value := getattr(group, name)) is not None}
        return evolve(self, num_layers=len(group.layers), groups=(), **changes)

    @property
    def bytes_per_page(self) -> int:
        """Bytes of ``page_size`` tokens over all layers and shards: keys, values, and the scales in the page.

        Layers that keep a state count 0; see ``state_bytes``.
        """
        if not self.groups:
            return -(-self._bits_per_layer() * self.num_layers // 8)
        total = 0.0
        for group in self.groups:
            if group.kind != "state":
                own = self.of_group(group)
                total += own.bytes_per_page * self.page_size / own.page_size
        return -int(-total // 1)

    @property
    def bytes_per_token(self) -> float:
        """Bytes per token over all layers, including its share of the page's scales."""
        return self.bytes_per_page / self.page_size

    @property
    def state_bytes(self) -> int:
        """Bytes of state per sequence, independent of its length."""
        return sum(group.state_bytes * len(group.layers) for group in self.groups)

    def bytes_for(self, tokens: int) -> int:
        """Return the bytes that a sequence of ``tokens`` tokens occupies.

        This counts whole pages, limited by each group's window, and states.
        """
        if not self.groups:
            return -(-tokens // self.page_size) * self.bytes_per_page
        total = self.state_bytes
        for group in self.groups:
            if group.kind != "state":
                own = self.of_group(group)
                pages = -(-tokens // own.page_size)
                if (
                    group.window is not None
                ):  # the oldest page of a sliding window is kept while the window covers one of its tokens
                    slack = 1 if group.kind == "sliding" else 0
                    pages = min(pages, -(-group.window // own.page_size) + slack)
                total += pages * own.bytes_per_page
        return total

    def _bits_per_layer(self) -> int:
        keys = self.page_size * self.num_heads * self.head_dim * DTYPE_BITS[self.dtype]
        values = (
            self.page_size * self.num_heads * self.value_width * DTYPE_BITS[self.value_dtype or self.dtype]
        )
        scales = self._scales_per_page(self.scale_granularity, self.head_dim)
        if self.value_width:
            granularity = self.value_scale_granularity or self.scale_granularity
            scales += self._scales_per_page(granularity, self.value_width)
        scale_bits = 0 if self.scale_dtype is None else DTYPE_BITS[self.scale_dtype]
        return keys + values + scales * scale_bits * (2 if self.zero_points else 1)

    def _scales_per_page(self, granularity: ScaleGranularity | None, width: int) -> int:
        if granularity is None or granularity == "tensor":
            return 0
        return {
            "head": self.num_heads,
            "channel": self.num_heads * width,
            "token": self.page_size,
            "token_head": self.page_size * self.num_heads,
        }[granularity]

    def compatible_with(self, other: KVCacheSchema) -> KVCompatibility:
        """Return the conversions needed to use blocks of this schema in a cache of schema ``other``."""
        for name in ("num_layers", "num_heads", "head_dim", "value_width", "rope_dim"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return KVCompatibility(
                    reason=f"{name} differs: {mine} here, {theirs} there; not the same model"
                )
        if _attention(self.groups) != _attention(other.groups):
            return KVCompatibility(
                reason="groups differ in layers, kind, window or width; not the same model"
            )
        conversions = (name for name in _CONVERTED if self._form_of(name) != other._form_of(name))
        return KVCompatibility(conversions=tuple(conversions))

    def _form_of(self, name: str) -> object:
        if name == "key_axis_order":
            return self.key_order
        if name == "value_dtype":
            return None if self.value_dtype == self.dtype else self.value_dtype
        return getattr(self, name)

    @classmethod
    def from_preset(
        cls, preset: str, *, num_layers: int, num_heads: int, head_dim: int, **overrides: Any
    ) -> KVCacheSchema:
        """Build a schema from a precision preset (``fp16 bf16 fp8 int8 int4``) and a model's geometry.

        ``overrides`` replace values of the preset.

        Raises:
            CapabilityMismatch: the preset does not exist.
        """
        if preset not in KV_PRESETS:
            raise CapabilityMismatch(f"no KV preset {preset!r}; choose one of {', '.join(KV_PRESETS)}")
        fields = {"page_size": 16, **KV_PRESETS[preset], **overrides}
        return cls(num_layers=num_layers, num_heads=num_heads, head_dim=head_dim, **fields)


def _attention(groups: tuple[KVGroup, ...]) -> list[KVGroup]:
    """Return the groups reduced to properties of the model, which are the same in every engine."""
    return sorted(
        (evolve(group, page_size=None, dtype=None) for group in groups), key=lambda group: group.layers
    )


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

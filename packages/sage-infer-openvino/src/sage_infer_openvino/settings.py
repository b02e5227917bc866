"""Settings of a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from attrs import field, frozen
from sage_infer.errors import InvalidRequest
from sage_infer.sdk.fields import Choice, Flag, Integer, Number, Text, optional

from sage_infer_openvino.device import DEVICE
from sage_infer_openvino.models.weight_format import WeightFormat

__all__ = ["DecoderSettings"]


@frozen(kw_only=True)
class DecoderSettings:
    """Settings of the engine for one model; invalid values are rejected before loading."""

    weight_format: WeightFormat = field(validator=Choice(get_args(WeightFormat)))
    precision: str = field(validator=Choice(("f32", "bf16", "f16")))
    kv_precision: str | None = field(validator=optional(Choice(("f32", "bf16", "f16", "u8"))))
    dynamic_quantization: bool = field(validator=Flag())
    kv_cache_gb: float = field(validator=Number(gt=0))
    max_batch_size: int = field(validator=Integer(ge=1))
    max_sequence_length: int | None = field(validator=optional(Integer(ge=2)))
    max_queue: int = field(validator=Integer(ge=1))
    hold_s: float = field(validator=Number(gt=0))
    prefix_caching: bool = field(validator=Flag())
    kv_store: str | Mapping[str, Any] | None = field()
    kv_store_wait_s: float = field(validator=Number(gt=0))
    step_tokens: int = field(validator=Integer(ge=16))
    decode_slowdown: float = field(validator=Number(gt=1))
    device: str = field(validator=DEVICE)
    threads: int | None = field(validator=optional(Integer(ge=1)))
    cache_dir: str | None = field(validator=optional(Text(min_length=1)))

    def __attrs_post_init__(self) -> None:
        if self.kv_store is not None and not self.prefix_caching:
            raise InvalidRequest(
                "kv_store keeps the blocks that prefix_caching shares; set prefix_caching to true"
            )
        if self.kv_store is not None and not isinstance(self.kv_store, str | Mapping):
            raise InvalidRequest(
                "kv_store must be the name of a KV store, or {store: NAME, …} with its options; got "
                f"{self.kv_store!r}"
            )

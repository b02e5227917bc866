"""Quantization of a model's weights, activations and KV."""

from __future__ import annotations

from typing import Literal, get_args

from attrs import field, frozen

from sage_infer.checks import Choice, Integer, Number, Text, optional
from sage_infer.errors import Problem, SchemaError
from sage_infer.schemas.base import schema

__all__ = ["QuantizationProfile"]

SparsityPattern = Literal["none", "unstructured", "2:4", "block"]


@schema("1.0")
@frozen(kw_only=True)
class QuantizationProfile:
    """Quantization to apply when a model is loaded. A backend maps it to a scheme that its engine supports.

    Attributes:
        profile_id: name of the profile in descriptors.
        weight_bits: bits per weight.
        activation_bits: bits per activation.
        kv_bits_prefill: bits per KV element on prefill instances.
        kv_bits_decode: bits per KV element on decode instances.
        sparsity_ratio: fraction of weights that are zero, 0 to 1.
        sparsity_pattern: none, unstructured, 2:4 or block.
        kernel_backend: kernel family to use (such as marlin or cutlass); null lets the engine choose.
        calibration_dataset: data set that the scales were calibrated on; null or empty if none was needed.
        calibration_samples: number of calibration samples; meaningless without a data set.
        max_sequence_length: longest sequence that the calibration covers, in tokens; null means no limit.
    """

    profile_id: str = field(default="default", validator=Text(min_length=1))
    weight_bits: int = field(default=16, validator=Integer(ge=1, le=32))
    activation_bits: int = field(default=16, validator=Integer(ge=1, le=32))
    kv_bits_prefill: int = field(default=16, validator=Integer(ge=2, le=32))
    kv_bits_decode: int = field(default=16, validator=Integer(ge=2, le=32))
    sparsity_ratio: float = field(default=0.0, validator=Number(ge=0, le=1))
    sparsity_pattern: SparsityPattern = field(default="none", validator=Choice(get_args(SparsityPattern)))
    kernel_backend: str | None = field(default=None, validator=optional(Text(min_length=1)))
    calibration_dataset: str | None = field(default=None, validator=optional(Text()))
    calibration_samples: int = field(default=0, validator=Integer(ge=0))
    max_sequence_length: int | None = field(default=None, validator=optional(Integer(ge=1)))

    def __attrs_post_init__(self) -> None:
        problems = []
        if (self.sparsity_pattern == "none") != (self.sparsity_ratio == 0):
            problems.append(Problem("$.sparsity_pattern", "must be none if and only if sparsity_ratio is 0"))
        if self.sparsity_pattern == "2:4" and self.sparsity_ratio != 0.5:
            problems.append(
                Problem("$.sparsity_ratio", f"must be 0.5 for pattern 2:4, got {self.sparsity_ratio:g}")
            )
        if problems:
            raise SchemaError("QuantizationProfile", problems)

"""Estimates of the device memory that a model needs, made before it is loaded."""

from __future__ import annotations

from attrs import evolve, frozen
from sage_infer.specs import ModelSizes

from sage_infer_planning.model_shape import ModelShape

__all__ = ["GIB", "Demand", "Workload", "demand_of_sizes", "estimate_demand"]

GIB = 2**30


@frozen(kw_only=True)
class Workload:
    """Settings that affect the memory of a model.

    Attributes:
        least_weight_bits, most_weight_bits: bounds on bits per weight after loading: narrower weights are widened
            to the first, wider ones narrowed to the second.
        has_tied_table_twice: as in ``EngineMemory``.
        kv_bits: bits per element of the KV cache.
        max_sequence_length: maximum sequence length in tokens; None for the model's own limit.
        max_batch_size: maximum number of sequences in a batch.
        step_tokens: tokens computed in one step.
        kv_bytes: size of the KV cache in bytes, if set by the user.
        overhead_bytes: the engine's overhead: libraries, contexts, workspaces.
    """

    least_weight_bits: float | None = None
    most_weight_bits: float | None = None
    has_tied_table_twice: bool = False
    kv_bits: float = 16
    max_sequence_length: int | None = None
    max_batch_size: int = 32
    step_tokens: int = 512
    kv_bytes: int | None = None
    overhead_bytes: int = 0


@frozen(kw_only=True)
class Demand:
    """Memory demand of a model in bytes, over all its devices.

    Attributes:
        model_id: id of the model.
        weights: bytes of the weights.
        kv_least: minimum KV, for one sequence of full length; 0 for an encoder.
        kv_wanted: KV for all concurrent sequences.
        activations: temporary buffers during computation, per device.
        overhead: the engine's overhead, per device.
        weight: relative share of left-over memory.
        devices: names of allowed devices; empty for any.
        spread: number of devices that the model is divided over.
        weight_bits: bits per weight; None if unknown.
        max_sequence_length: tokens covered by ``kv_least``; None if set by the user.
        fraction: maximum share of each device's memory, 0 to 1; None for no limit.
    """

    model_id: str
    weights: int
    kv_least: int = 0
    kv_wanted: int = 0
    activations: int = 0
    overhead: int = 0
    weight: float = 1.0
    devices: tuple[str, ...] = ()
    spread: int = 1
    weight_bits: float | None = None
    max_sequence_length: int | None = None
    fraction: float | None = None

    @property
    def has_choice(self) -> bool:
        """Whether the number of allowed devices can exceed ``spread``."""
        return len(self.devices) != self.spread

    @property
    def part(self) -> Demand:
        """The demand on each of its devices."""
        weights, least, wanted = (-(-n // self.spread) for n in (self.weights, self.kv_least, self.kv_wanted))
        return evolve(self, weights=weights, kv_least=least, kv_wanted=wanted, spread=1)

    @property
    def least(self) -> int:
        """Minimum bytes per device."""
        return self.weights + self.kv_least + self.activations + self.overhead


def estimate_demand(model_id: str, shape: ModelShape, run: Workload) -> Demand:
    """Return the demand of a model with this shape.

    Unconverted weights are as large as the files. Activations are the widest layer's rows in float32,
    doubled for input and output, plus one row of logits per sequence.
    """
    stored = shape.stored_bytes or int(shape.parameters * shape.stored_bits / 8)
    bits = max(shape.stored_bits, run.least_weight_bits or 0)
    bits = min(bits, run.most_weight_bits or bits)
    weights = int(stored * bits / shape.stored_bits)
    if run.has_tied_table_twice and shape.tied and shape.causal:
        weights += int(shape.vocab * shape.hidden * bits / 8)
    length = min(run.max_sequence_length or shape.positions, shape.positions)
    per_token = shape.kv_bytes_per_token(run.kv_bits)
    row = 2 * (shape.hidden * 4 + 2 * shape.intermediate) * 4
    logits = run.max_batch_size * shape.vocab * 4 if shape.causal else 0
    wanted = int(per_token * length * run.max_batch_size) if run.kv_bytes is None else run.kv_bytes
    return Demand(
        model_id=model_id,
        weights=weights,
        kv_least=min(int(per_token * length), wanted) if run.kv_bytes is None else run.kv_bytes,
        kv_wanted=wanted,
        activations=row * run.step_tokens + logits,
        overhead=run.overhead_bytes,
        weight_bits=bits,
        max_sequence_length=length if per_token and run.kv_bytes is None else None,
    )


def demand_of_sizes(model_id: str, sizes: ModelSizes, run: Workload) -> Demand:
    """Return the demand of a model whose sizes after loading are reported by its plug-in."""
    limit = sizes.max_sequence_length
    length = min(run.max_sequence_length or limit or 0, limit or run.max_sequence_length or 0)
    one = int(sizes.kv_bytes_per_token * length)
    wanted = one * run.max_batch_size if run.kv_bytes is None else run.kv_bytes
    return Demand(
        model_id=model_id,
        weights=sizes.weight_bytes,
        kv_least=one if run.kv_bytes is None else run.kv_bytes,
        kv_wanted=wanted,
        activations=sizes.activation_bytes,
        overhead=run.overhead_bytes,
        max_sequence_length=length if one and run.kv_bytes is None else None,
    )

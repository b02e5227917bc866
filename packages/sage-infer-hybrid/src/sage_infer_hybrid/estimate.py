"""What a model will take of a device's memory, reckoned before it is loaded."""

from __future__ import annotations

from attrs import frozen

from sage_infer_hybrid.model_shape import ModelShape

__all__ = ["Demand", "Workload", "estimate"]

GIB = 2**30


@frozen(kw_only=True)
class Workload:
    """How a model is run, as far as it decides about memory.

    Attributes:
        weight_bits: bits a weight has in memory; None where it stays as in its files.
        kv_bits: bits of an element of the KV cache.
        max_sequence_length: longest sequence in tokens; None for the model's own limit.
        max_batch_size: sequences at once.
        step_tokens: tokens that are computed at once.
        kv_bytes: size of the KV cache where the user has said it.
        overhead_bytes: what the engine takes for itself: its libraries, contexts, workspaces.
    """

    weight_bits: float | None = None
    kv_bits: float = 16
    max_sequence_length: int | None = None
    max_batch_size: int = 32
    step_tokens: int = 512
    kv_bytes: int | None = None
    overhead_bytes: int = 0


@frozen(kw_only=True)
class Demand:
    """Bytes that a model wants of one device.

    Attributes:
        model_id: whose they are.
        weights: its weights.
        kv_least: KV for one sequence of full length, without which it is of no use; 0 for an encoder.
        kv_wanted: KV for all sequences at once.
        activations: intermediate results while it computes, which it needs at no other time.
        overhead: the engine's own.
        weight: its share of what is left over, against the others' weights.
        devices: names of the devices that it may be on; empty for any.
    """

    model_id: str
    weights: int
    kv_least: int = 0
    kv_wanted: int = 0
    activations: int = 0
    overhead: int = 0
    weight: float = 1.0
    devices: tuple[str, ...] = ()

    @property
    def least(self) -> int:
        """Bytes with which it runs at all."""
        return self.weights + self.kv_least + self.activations + self.overhead


def estimate(model_id: str, shape: ModelShape, run: Workload) -> Demand:
    """The demand of a model with this shape.

    Weights are as large as the files where they stay as they are. Activations are the widest layer's rows in float32,
    twice over for what is read and written, and one row of logits a sequence.
    """
    stored = shape.stored_bytes or int(shape.parameters * shape.stored_bits / 8)
    weights = stored if run.weight_bits is None else int(stored * run.weight_bits / shape.stored_bits)
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
    )

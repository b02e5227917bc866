"""Speed and memory of a simulated instance."""

from __future__ import annotations

from attrs import field, frozen, validators

from sage_llm.types import Step

__all__ = ["EngineModel"]


@frozen(kw_only=True)
class EngineModel:
    """Speed and memory of an instance.

    Attributes:
        step: duration of a step by its prompt tokens, sequences and context.
        chunk: maximum number of tokens per step.
        max_batch: maximum number of running sequences.
        slowdown: maximum duration of a step with prompts beside running sequences, from their second token on, relative
            to one without; several prompts raise it by their number relative to that of the sequences. 0 for no limit.
        blocks: KV blocks in device memory.
        lower: KV blocks in each lower tier, faster tiers first: memory of the host, disk.
        lower_rates: tokens per second that each lower tier loads.
        eviction: which cached blocks leave first: ``lru``, or the name of a policy of the installed KV stores; with
            ``/`` between them, one name per tier, device memory first.
        prefetch: whether KV is loaded while its request waits; otherwise a step waits for it.
    """

    step: Step = field(factory=lambda: Step(0.006, 1 / 20_000, 5e-5, 2e-8))
    chunk: int = field(default=2048, validator=validators.ge(1))
    max_batch: int = field(default=1024, validator=validators.ge(1))
    slowdown: float = field(default=0.0, validator=validators.ge(0))
    blocks: int = field(default=2000, validator=validators.ge(1))
    lower: tuple[int, ...] = ()
    lower_rates: tuple[float, ...] = ()
    eviction: str = "lru"
    prefetch: bool = False

    @property
    def rate(self) -> float:
        """Prompt tokens per second, without the constant part of a step."""
        return 1.0 / self.step.per_prompt

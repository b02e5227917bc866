"""A request of a simulation."""

from __future__ import annotations

from attrs import define

__all__ = ["Job"]


@define(eq=False)
class Job:
    """A request on its way through the cluster.

    Attributes:
        number: its position in the trace.
        arrived: time of its arrival.
        prompt_tokens: tokens of its prompt.
        output_tokens: tokens of its output.
        keys: keys of the prompt's full blocks.
        blocks: blocks of prompt and output.
        session: conversation that it belongs to.
        router: gateway that it arrived at.
        done: output tokens of earlier attempts.
        attempts: number of instances that it was sent to.
        slot: instance that it is on; -1 if none.
        first_at: time of its first token; negative before.
        left: prompt tokens still to compute in this attempt.
        estimate: prompt tokens to compute, as they were when it was sent to its instance.
        ready_at: time at which its KV is loaded from lower tiers.
        is_ready: whether it arrived outside of starts.
        is_started: whether this attempt has generated a token.
        entered: value of the instance's counter of tokens at the first token of this attempt.
    """

    number: int
    arrived: float
    prompt_tokens: int
    output_tokens: int
    keys: tuple[int, ...]
    blocks: int
    session: str = ""
    router: int = 0
    done: int = 0
    attempts: int = 0
    slot: int = -1
    first_at: float = -1.0
    left: int = 0
    estimate: int = 0
    ready_at: float = 0.0
    is_ready: bool = True
    is_started: bool = False
    entered: int = 0

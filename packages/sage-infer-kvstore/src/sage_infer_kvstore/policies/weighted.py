"""Policies that weigh the last use of a prompt: by how urgent its requests are, or by the cost to compute it again."""

from __future__ import annotations

import math

from sage_infer_kvstore.policies.base import Request
from sage_infer_kvstore.policies.prompts import Prompt, PromptOrder

__all__ = ["RecomputeCost", "Urgency"]

_PATIENCE_S = 10.0  # of a request that does not say
_LEAST_S, _MOST_S = 1.0, 64.0
_ATTENTION_TOKENS = 8192


class Urgency(PromptOrder):
    """The policy ``slo``: the prompt leaves first whose age times the patience of its request is largest.

    A prompt whose request may wait for a minute leaves sixty times sooner than one with a target of a second. Patience
    is rounded to powers of two from 1 to 64 s. Blocks that an urgent prompt shares with a patient one remain the urgent
    one's. Where all requests are equally urgent, the order is that of the last use of prompts.
    """

    def _class_of(self, request: Request | None, *, turn: int, new: int, length: int) -> int:
        patience = request.patience_s if request is not None else None
        bounded = min(max(_PATIENCE_S if patience is None else patience, _LEAST_S), _MOST_S)
        return round(math.log2(bounded))

    def _value(self, prompt: Prompt, now: float) -> float:
        return (prompt.at - now) * float(2**prompt.of)

    def _takes(self, prompt: Prompt, before: Prompt) -> bool:
        return bool(prompt.of <= before.of)


class RecomputeCost(PromptOrder):
    """The policy ``recompute``: a prompt leaves later, the more it costs to compute its end again (GreedyDual).

    A block costs as much as its tokens, and more with each token before it, for attention: twice as much at 8,192
    tokens. The value of a prompt is this cost plus the value of the prompt that had left last when it was last used,
    so that what is not used leaves in the end.
    """

    def __init__(self, page_size: int) -> None:
        super().__init__(page_size)
        self._gone = 0.0  # value of the prompt that left last
        self._values: dict[Prompt, float] = {}

    def _class_of(self, request: Request | None, *, turn: int, new: int, length: int) -> int:
        return round(4 * math.log2(1.0 + length * self._page_size / _ATTENTION_TOKENS))

    def _used(self, prompt: Prompt) -> None:
        self._values[prompt] = self._gone + 2.0 ** (prompt.of / 4)

    def _value(self, prompt: Prompt, now: float) -> float:
        return self._values[prompt]

    def remove(self, key: bytes) -> None:
        if key in self._held:
            self._gone = max(self._gone, self._values[self._prompt_of[key]])
        super().remove(key)

    def _left(self, prompt: Prompt) -> None:
        super()._left(prompt)
        if not prompt.held:
            del self._values[prompt]

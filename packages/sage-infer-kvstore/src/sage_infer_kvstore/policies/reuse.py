"""The policy ``reuse``: blocks of prompts that are unlikely to be continued soon leave first."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from sage_infer_kvstore.policies.base import Request
from sage_infer_kvstore.policies.prompts import REMEMBERED, Prompt, PromptOrder
from sage_infer_kvstore.policies.reuse_model import ChainClass, ReuseModel

__all__ = ["LearnedReuse"]

_TURNS = (2, 3, 4, 6)
_FIRST_TOKENS = (1000, 4000, 8000, 16000)  # of a first turn
_MORE_TOKENS = (4000,)  # that a later turn adds
_UNKNOWN: ChainClass = (0, 0)  # of a block that no prompt contained yet


class LearnedReuse(PromptOrder):
    """Learns from all requests how soon a prompt is continued, by its turn, the tokens that it added, and its age.

    The prompt whose reuse is least likely per second of memory loses its blocks first. Until something is learned, the
    order is that of the last use of prompts. Arguments: see ``PromptOrder``.
    """

    def __init__(self, page_size: int, *, remembered: int = REMEMBERED) -> None:
        super().__init__(page_size, remembered=remembered)
        self._model = ReuseModel()

    def asked(self, keys: Sequence[bytes], now: float, request: Request | None = None) -> None:
        super().asked(keys, now, request)
        if self._model.is_due:
            self._model.rebuild((prompt.of, now - prompt.at) for prompt in self._open)

    def _class_of(self, request: Request | None, *, turn: int, new: int, length: int) -> ChainClass:
        if request is None:
            return _UNKNOWN
        tokens = new * self._page_size
        edges = _FIRST_TOKENS if turn == 1 else _MORE_TOKENS
        return 1 + bisect.bisect_right(_TURNS, turn), bisect.bisect_right(edges, tokens)

    def _value(self, prompt: Prompt, now: float) -> float:
        return self._model.value(prompt.of, now - prompt.at)

    def _ended(self, prompt: Prompt, now: float, *, is_continued: bool) -> None:
        note = self._model.continued if is_continued else self._model.forgotten
        note(prompt.of, now - prompt.at)

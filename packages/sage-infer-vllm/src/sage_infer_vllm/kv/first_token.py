"""The logits processor that begins the output of a decode with the token that prefill chose."""

from __future__ import annotations

from typing import Any

from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality

from sage_infer_vllm.kv.plan import FIRST_TOKEN

__all__ = ["FirstToken"]


class FirstToken(LogitsProcessor):  # type: ignore[misc]  # vLLM is not there when types are checked
    """Acts on rows without output whose request has ``FIRST_TOKEN``; the row's generator draws as for any token."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        self._rows: dict[int, tuple[int, list[int]]] = {}  # row of the batch → token, and the output so far

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._rows.pop(row, None)
        for row, params, _, output in batch_update.added:
            token = (params.extra_args or {}).get(FIRST_TOKEN)
            if token is None:
                self._rows.pop(row, None)
            else:
                self._rows[row] = int(token), output
        for source, target, direction in batch_update.moved:
            moved, replaced = self._rows.pop(source, None), self._rows.pop(target, None)
            if moved is not None:
                self._rows[target] = moved
            if replaced is not None and direction == MoveDirectionality.SWAP:
                self._rows[source] = replaced

    def apply(self, logits: Any) -> Any:
        for row, (token, output) in self._rows.items():
            if not output:
                logits[row].fill_(float("-inf"))
                logits[row, token] = 0.0
        return logits

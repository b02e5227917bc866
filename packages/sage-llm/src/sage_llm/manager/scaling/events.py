"""What happened to the number of a model's replicas: for ``sage llm status``, metrics and the log."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from typing import Any, Literal

from attrs import frozen

__all__ = ["ScaleEvents", "ScaleKind"]

log = logging.getLogger("sage_llm.scaling")

ScaleKind = Literal["up", "down", "ready", "stopped", "failed", "withdrawn"]
"""up and down: a plan. ready, stopped: it was carried out for one replica. failed: a replica did not start. withdrawn:
a replica was not ready in time, or is no longer needed."""

_KEPT = 64
_WARNINGS = ("failed", "withdrawn")


@frozen
class _Event:
    at: float
    kind: ScaleKind
    text: str


class ScaleEvents:
    """The latest events of one model, and how many there were of each kind."""

    def __init__(self, model_id: str) -> None:
        self._model_id = model_id
        self._events: deque[_Event] = deque(maxlen=_KEPT)
        self.counts: Counter[ScaleKind] = Counter()

    def add(self, kind: ScaleKind, text: str) -> None:
        self._events.append(_Event(time.monotonic(), kind, text))
        self.counts[kind] += 1
        log.log(
            logging.WARNING if kind in _WARNINGS else logging.INFO, "%s: %s: %s", self._model_id, kind, text
        )

    def rows(self) -> list[dict[str, Any]]:
        """The events as data, the latest one last."""
        now = time.monotonic()
        return [{"ago_s": now - event.at, "kind": event.kind, "text": event.text} for event in self._events]

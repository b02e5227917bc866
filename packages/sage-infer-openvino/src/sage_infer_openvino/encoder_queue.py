"""The encoder's thread: computes together what has come in meanwhile, and gives every caller its own rows."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import numpy.typing as npt
from attrs import define, field
from sage_infer.errors import EngineDead, InvalidRequest, RequestCancelled, SageInferError

from sage_infer_openvino.encoder import Encoder

__all__ = ["Embedded", "EncoderQueue"]

Embedded = tuple[npt.NDArray[np.float32], int]
"""Vectors, and how many tokens went into them."""

_MERGED_TOKENS = 8192  # calls are merged up to here; a longer line waits for the next round


@define(eq=False)
class _Call:
    texts: Sequence[str | Sequence[int]]
    truncate: bool
    future: Future[Embedded] = field(factory=Future)


class EncoderQueue:
    """Owns an encoder. Methods may be called from any thread."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.finished = self.tokens = 0
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards the next three
        self._open: set[_Call] = set()
        self._running: set[_Call] = set()
        self.stopped: SageInferError | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sage-openvino-encoder", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        with self._lock:
            return len(self._open) - len(self._running)

    def submit(self, texts: Sequence[str | Sequence[int]], *, truncate: bool) -> Future[Embedded]:
        """Queue a call; its future may be cancelled until it runs.

        Raises:
            EngineDead: the encoder has stopped.
        """
        call = _Call(texts, truncate)
        with self._lock:
            if self.stopped is not None:
                raise EngineDead(f"the encoder has stopped: {self.stopped}; open the backend again")
            self._open.add(call)
            self._calls.put(call)
        call.future.add_done_callback(lambda _: self._forget(call))
        return call.future

    def close(self) -> None:
        """End open calls with ``RequestCancelled`` and stop the thread. Safe to call twice."""
        self._closing.set()
        self._calls.put(None)
        self._thread.join()

    def _forget(self, call: _Call) -> None:
        with self._lock:
            self.finished += 1
            self._open.discard(call)
            self._running.discard(call)

    # --- in the thread

    def _run(self) -> None:
        reason: SageInferError = RequestCancelled("the backend was closed")
        try:
            while (call := self._calls.get()) is not None and not self._closing.is_set():
                self._compute(call)
        except BaseException as error:  # whatever it is, nobody may be left waiting
            if not self._closing.is_set():
                reason = EngineDead(f"the encoder stopped with {type(error).__name__}: {error}")
                reason.__cause__ = error
        with self._lock:
            self.stopped = reason
            left = list(self._open)
        for call in left:
            if call in self._running or call.future.set_running_or_notify_cancel():
                call.future.set_exception(reason)

    def _compute(self, first: _Call) -> None:
        """Compute ``first``, and with it what else waits, up to ``_MERGED_TOKENS``."""
        calls: list[tuple[_Call, int, int]] = []
        token_ids: list[list[int]] = []
        call: _Call | None = first
        merged = 0
        while call is not None:
            own = self._take(call)
            if own is not None:
                calls.append((call, len(token_ids), len(token_ids) + len(own)))
                token_ids += own
                merged += sum(map(len, own))
            try:
                call = self._calls.get_nowait() if merged < _MERGED_TOKENS else None
            except queue.Empty:
                break
            if call is None and merged < _MERGED_TOKENS:
                self._calls.put(None)  # the sign to stop, for _run
        vectors = np.empty((len(token_ids), self.encoder.dimension), np.float32)
        for group, rows in self.encoder.compute(token_ids):
            vectors[group] = rows
            if self._closing.is_set():
                raise RequestCancelled("the backend was closed")
        for call, start, end in calls:
            count = sum(map(len, token_ids[start:end]))
            self.tokens += count
            call.future.set_result((vectors[start:end], count))

    def _take(self, call: _Call) -> list[list[int]] | None:
        """The call's token ids; None where it was cancelled, or has its error already."""
        if not call.future.set_running_or_notify_cancel():
            return None
        with self._lock:
            self._running.add(call)
        try:
            return self.encoder.tokenize(call.texts, truncate=call.truncate)
        except InvalidRequest as error:
            call.future.set_exception(error)
            return None

"""The encoder thread: computes the texts of all open calls in batches and returns each caller's rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import numpy.typing as npt
from attrs import define, field
from sage_infer.errors import EngineDead, Overloaded, RequestCancelled, SageInferError

from sage_infer_openvino.encoder.batches import BatchLine
from sage_infer_openvino.encoder.encoder import Encoder, EncoderInput

__all__ = ["EncoderQueue", "Rows"]

Rows = npt.NDArray[np.float32]
_RETRY_S = (0.05, 30.0)


@define(eq=False)
class _Call:
    inputs: Sequence[EncoderInput]
    rows: Rows
    left: int
    future: Future[Rows] = field(factory=Future)
    accepted: float = field(factory=time.perf_counter)

    @property
    def begun(self) -> bool:
        return self.left < len(self.inputs)


class EncoderQueue:
    """Owns an encoder. Methods may be called from any thread.

    ``max_queue`` limits the open texts; a larger call is accepted only if it is alone.
    """

    def __init__(self, encoder: Encoder, token_budget: int, max_queue: int) -> None:
        self.encoder = encoder
        self._max_queue = max_queue
        self._texts = 0  # in the open calls
        self._text_s = 0.0  # time per text, a running mean
        self.finished = self.tokens = self.steps = 0
        self.step_s: float | None = None
        self.stopped: SageInferError | None = None
        self._closing = False
        self._open: set[_Call] = set()
        self._line: BatchLine[_Call] = BatchLine(token_budget)
        self._changed = threading.Condition()  # guards all of the above
        self._thread = threading.Thread(target=self._run, name="sage-openvino-encoder", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Calls with at least one computed text."""
        with self._changed:
            return sum(call.begun for call in self._open)

    @property
    def waiting(self) -> int:
        with self._changed:
            return sum(not call.begun for call in self._open)

    @property
    def waiting_tokens(self) -> int:
        """Tokens of the uncomputed texts."""
        with self._changed:
            return self._line.tokens

    @property
    def oldest_wait_s(self) -> float:
        """Seconds since the arrival of the longest waiting call; 0 if none is waiting."""
        with self._changed:
            accepted = [call.accepted for call in self._open if not call.begun]
        return time.perf_counter() - min(accepted) if accepted else 0.0

    def submit(self, inputs: Sequence[EncoderInput], *, batch_limit: int | None = None) -> Future[Rows]:
        """Queue a call of at least one input; its rows are returned in order. Its future may be cancelled at any time.

        At most ``batch_limit`` of its inputs are computed in one batch.

        Raises:
            EngineDead: the encoder has stopped.
            Overloaded: too many texts are open.
        """
        call = _Call(inputs, np.empty((len(inputs), self.encoder.dimension), np.float32), len(inputs))
        with self._changed:
            if self.stopped is not None:
                raise EngineDead(f"the encoder has stopped: {self.stopped}; open the backend again")
            if self._open and self._texts + len(inputs) > self._max_queue:
                low, high = _RETRY_S
                raise Overloaded(
                    f"{self._texts} texts are open, {len(inputs)} more would exceed max_queue={self._max_queue}; "
                    "try again later, or raise max_queue",
                    retry_after=min(max(self._texts * self._text_s, low), high),
                )
            self._open.add(call)
            self._texts += len(inputs)
            self._line.add(call, map(len, inputs), limit=batch_limit)
            self._changed.notify()
        call.future.add_done_callback(lambda _: self._forget(call))
        return call.future

    def close(self) -> None:
        """End open calls with ``RequestCancelled`` and stop the thread. Safe to call twice."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _forget(self, call: _Call) -> None:
        with self._changed:
            self.finished += 1
            self._open.discard(call)
            self._texts -= len(call.inputs)
            self._line.discard(call)

    # --- in the thread

    def _run(self) -> None:
        reason: SageInferError = RequestCancelled("the backend was closed", by="close")
        try:
            while batch := self._next_batch():
                self._compute(batch)
        except BaseException as error:  # on any error, no caller may be left waiting
            reason = EngineDead(f"the encoder stopped with {type(error).__name__}: {error}")
            reason.__cause__ = error
        with self._changed:
            self.stopped = reason
            left = list(self._open)
        for call in left:
            if call.future.set_running_or_notify_cancel():
                call.future.set_exception(reason)

    def _next_batch(self) -> list[tuple[_Call, int]]:
        """Wait for a batch; empty if the thread should end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._line)
            batch = [] if self._closing else self._line.next_batch()
            for call, _ in batch:
                call.left -= 1
            return batch

    def _compute(self, batch: list[tuple[_Call, int]]) -> None:
        started = time.perf_counter()
        rows = self.encoder.compute([call.inputs[index] for call, index in batch])
        self.step_s = time.perf_counter() - started
        self.steps += 1
        self._text_s += 0.1 * (self.step_s / len(batch) - self._text_s)
        if self._closing:
            return
        for row, (call, index) in zip(rows, batch, strict=True):
            call.rows[index] = row
        for call in {id(call): call for call, _ in batch}.values():
            # A running future cannot be cancelled, so it is marked as running only now.
            if not call.left and call.future.set_running_or_notify_cancel():
                with self._changed:
                    self.tokens += sum(map(len, call.inputs))
                call.future.set_result(call.rows)

"""Conversion of vLLM's outputs to a stream's deltas. Runs per token, so it does not validate and creates one object."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sage_infer.contracts import BufferedTokenStream
from sage_infer.errors import EngineDead, RequestCancelled, SageInferError
from sage_infer.schemas import FinishReason, Timing, TokenDelta, TokenLogprob, Usage

__all__ = ["Delivery"]


class Delivery:
    """Delivers one request's outputs to its stream. The engine calls ``take`` with each output.

    ``ended`` is called once with the delivery, in the event loop's thread, when the request ends for any reason.

    Attributes:
        cached: prompt tokens found in a cache, if known better than vLLM reports it.
        handed: ``kv_transfer_params`` that the engine's connector returned when the request ended.
        loaded: called when the KV loaded for the request is no longer read: at its first output or its end.
        closed: called at its end.
        failed: called with an error of vLLM's, which rarely names the cause; ends the delivery, or has it ended later.
    """

    __slots__ = ("_cached", "_ended", "_first", "_queue_s", "cached", "closed", "collector", "failed", "handed",
                 "lengths", "loaded", "logprobs", "prompt_tokens", "reason", "request_id", "started",
                 "stream")  # fmt: skip

    def __init__(
        self,
        request_id: str,
        *,
        prompt_tokens: int,
        logprobs: int | None,
        cancel: Callable[[Delivery], None],
        ended: Callable[[Delivery], None],
    ) -> None:
        self.request_id = request_id
        self.stream = BufferedTokenStream(request_id, lambda: cancel(self))
        self.logprobs = logprobs
        self.collector: Any = None
        self.lengths: dict[int, int] = {}
        self.reason: FinishReason = "stop"
        self._ended: Callable[[Delivery], None] | None = ended
        self.prompt_tokens = prompt_tokens
        self.cached: int | None = None
        self.handed: Any = None
        self.loaded: Callable[[], None] | None = None
        self.closed: Callable[[], None] | None = None
        self.failed: Callable[[Delivery, EngineDead], None] = Delivery.fail
        self._cached = 0
        self._queue_s = 0.0
        self.started = time.perf_counter()
        self._first = 0.0

    @property
    def has_output(self) -> bool:
        """Whether the first token has arrived."""
        return self._first > 0

    def has_ended(self) -> bool:
        return self._ended is None

    @property
    def context_tokens(self) -> int:
        """Tokens of the prompt and of the output so far."""
        return self.prompt_tokens + sum(self.lengths.values())

    def take(self, output: Any) -> None:
        """An output of the engine: one step's tokens of one or more completions, or the error that ended it."""
        if self._ended is None:
            return
        if isinstance(output, Exception):
            self._failed(output)
            return
        if not self._first:
            self._first = time.perf_counter()
            self._release()
        push, lengths = self.stream.push, self.lengths
        for completion in output.outputs:
            index, tokens, reason = completion.index, completion.token_ids, completion.finish_reason
            if reason is not None:
                if reason not in ("stop", "length"):
                    self._interrupted(reason)
                    return
                if index == 0:
                    self.reason = reason
            lengths[index] = lengths.get(index, 0) + len(tokens)
            logprobs = None if self.logprobs is None else _logprobs(completion, self.logprobs)
            push(TokenDelta(completion.text, tuple(tokens), index, logprobs, reason))
        if output.finished:
            self._finished(output)

    def fail(self, error: SageInferError) -> None:
        """End the stream with an error; afterwards outputs of the engine are ignored."""
        if self._ended is not None:
            self.stream.fail(error, self.usage(), self.timing())
            self._close()

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=sum(self.lengths.values()),
            cached_tokens=self._cached if self.cached is None else self.cached,
        )

    def timing(self) -> Timing:
        now = time.perf_counter()
        first = self._first or now
        gaps = max(self.lengths.values(), default=0) - 1
        ttft = first - self.started
        return Timing(
            queue_s=min(self._queue_s, ttft),
            ttft_s=ttft,
            total_s=now - self.started,
            inter_token_s=(now - first) / gaps if gaps > 0 else None,
        )

    def _finished(self, output: Any) -> None:
        self._cached = output.num_cached_tokens or 0
        self.handed = output.kv_transfer_params
        if output.metrics is not None:  # in seconds of the engine core's clock
            self._queue_s = max(output.metrics.scheduled_ts - output.metrics.queued_ts, 0.0)
        self.stream.finish(self.reason, self.usage(), self.timing())
        self._close()

    def _interrupted(self, reason: str) -> None:
        if reason == "abort":
            self.fail(RequestCancelled(f"request {self.request_id} was cancelled"))
        else:
            self.fail(
                SageInferError(
                    f"vLLM ended request {self.request_id} with {reason!r}, an internal error that affects only "
                    "this request; retry it"
                )
            )

    def _failed(self, error: Exception) -> None:
        if isinstance(error, SageInferError):
            self.fail(error)
        else:
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            self.failed(
                self,
                EngineDead(f"vLLM's engine stopped while the request ran ({what}); open the backend again"),
            )

    def _release(self) -> None:
        loaded, self.loaded = self.loaded, None
        if loaded is not None:
            loaded()

    def _close(self) -> None:
        self._release()
        closed, self.closed = self.closed, None
        if closed is not None:
            closed()
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(self)


def _logprobs(completion: Any, count: int) -> tuple[TokenLogprob, ...]:
    """The chosen tokens' log probabilities with the ``count`` best alternatives; ranks start at 1."""
    found = []
    for token, entries in zip(completion.token_ids, completion.logprobs or (), strict=False):
        chosen = entries[token]
        best = sorted((entry.rank, i, entry) for i, entry in entries.items() if entry.rank <= count)
        alternatives = tuple((i, entry.decoded_token or "", entry.logprob) for _, i, entry in best[:count])
        found.append(TokenLogprob(token, chosen.decoded_token or "", chosen.logprob, alternatives))
    # vLLM's stop_reason is the id of a stop token, None for an end-of-sequence token, and the text of a stop string.
    if found and completion.finish_reason == "stop" and not isinstance(completion.stop_reason, str):
        found[-1].is_end = True
    return tuple(found)

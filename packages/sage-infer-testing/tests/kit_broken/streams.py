"""Engines with one mistake each in what a stream says, or in how they run, and the contract tests that must find it."""

from __future__ import annotations

import time
from typing import Any

import attrs
from kit_reference.llm import ReferenceLLM
from kit_reference.request import Request
from kit_reference.sampling import Sequence_
from sage_infer.contracts import BufferedTokenStream
from sage_infer.errors import SageInferError
from sage_infer.schemas import Timing, TokenDelta, Usage

from kit_broken.mistakes import found_by


@found_by("test_max_tokens_is_kept", "test_usage_counts_the_tokens")
class CountsWrongly(ReferenceLLM):
    def advance(self, request: Request, sequence: Sequence_) -> None:
        super().advance(request, sequence)
        request.stream.push(
            TokenDelta("", (1,), sequence.index, None, None)
        ) if not sequence.finish_reason else None


@found_by("test_every_completion_finishes_once")
class EmitsAfterTheEnd(ReferenceLLM):
    def settle(self, request: Request) -> None:
        if all(s.finish_reason for s in request.sequences):
            request.stream.push(TokenDelta("more", (1,)))
        super().settle(request)


@found_by("test_every_completion_finishes_once")
class ForgetsTheFinishReason(ReferenceLLM):
    def advance(self, request: Request, sequence: Sequence_) -> None:
        push = request.stream.push
        request.stream.push = lambda delta: push(attrs.evolve(delta, finish_reason=None))  # type: ignore[method-assign]
        super().advance(request, sequence)


class EarlyStream(BufferedTokenStream):
    @property
    def usage(self) -> Usage:
        return Usage(prompt_tokens=1)


class ReplayingStream(BufferedTokenStream):
    def __aiter__(self) -> Any:
        self._ready[:0] = self.__dict__.setdefault("old", [])
        return super().__aiter__()

    def push(self, delta: TokenDelta) -> None:
        super().push(delta)
        self.__dict__.setdefault("late", []).append(delta)

    def finish(self, *args: Any) -> None:
        super().finish(*args)
        self.old = self.late


class DeafStream(BufferedTokenStream):
    def cancel(self) -> None:
        """Does not hear."""


def streaming(stream: type, *tests: str) -> None:
    class WithStream(ReferenceLLM):
        def accept(self, *args: Any) -> list[Request]:
            requests = super().accept(*args)
            for request in requests:
                request.stream.__class__ = stream
            return requests

    WithStream.__name__ = f"With{stream.__name__}"
    globals()[WithStream.__name__] = found_by(*tests)(WithStream)


streaming(EarlyStream, "test_results_are_none_until_the_end")
streaming(ReplayingStream, "test_a_finished_stream_stays_finished")
streaming(
    DeafStream, "test_leaving_the_loop_frees_the_request", "test_cancel_frees_the_request",
    "test_leaving_async_with_frees_the_request", "test_cancelling_the_reading_task_frees_the_request",
    "test_cancel_ends_all_completions",
)  # fmt: skip


@found_by("test_counters_grow")
class CountsNothing(ReferenceLLM):
    def stats(self) -> Any:
        return attrs.evolve(super().stats(), finished=0, output_tokens=0)


@found_by("test_timing_is_ordered")
class TimeRunsBackwards(ReferenceLLM):
    timing = Timing(queue_s=3.0, ttft_s=2.0, total_s=1.0, inter_token_s=0.0)

    def settle(self, request: Request) -> None:
        finish = request.stream.finish
        request.stream.finish = lambda reason, usage, timing: finish(reason, usage, self.timing)  # type: ignore[method-assign]
        super().settle(request)


@found_by("test_tokens_arrive_as_they_are_made")
class AllAtOnce(ReferenceLLM):
    def advance(self, request: Request, sequence: Sequence_) -> None:
        held: list[TokenDelta] = self.__dict__.setdefault("deltas", [])
        real, request.stream.push = request.stream.push, held.append  # type: ignore[method-assign]
        super().advance(request, sequence)
        request.stream.push = real  # type: ignore[method-assign]
        if sequence.finish_reason:
            tokens = tuple(t for d in held for t in d.token_ids)
            real(TokenDelta("".join(d.text for d in held), tokens, 0, None, sequence.finish_reason))
            held.clear()


@found_by("test_is_healthy")
class CannotStart(ReferenceLLM):
    async def start(self) -> None:
        raise SageInferError("the model is not here")


@found_by("test_greedy_is_deterministic")
class Hangs(ReferenceLLM):
    def admit(self) -> None:
        """Nobody gets in."""


@found_by("test_greedy_is_deterministic")
class BlocksTheLoop(ReferenceLLM):
    def admit(self) -> None:
        time.sleep(2)  # not to wait for something: to do what must not be done


@found_by("test_timing_is_ordered")
class NoGap(TimeRunsBackwards):
    timing = Timing(queue_s=0.0, ttft_s=0.0, total_s=0.0)

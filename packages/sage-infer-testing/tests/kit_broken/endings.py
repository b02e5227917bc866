"""Engines with one mistake each in giving requests up, in closing, or in keeping requests apart."""

from __future__ import annotations

from typing import Any

from kit_reference.llm import ReferenceLLM
from kit_reference.request import TOKEN_BYTES
from kit_reference.sampling import Sequence_
from sage_infer.contracts import Health
from sage_infer.errors import InvalidRequest

from kit_broken.mistakes import found_by


@found_by("test_cancel_frees_the_request", "test_leaving_the_loop_frees_the_request")
class LeaksOnCancel(ReferenceLLM):
    def drop(self, request_id: str) -> None:
        self.running = [r for r in self.running if r.request_id != request_id]
        self.waiting = [r for r in self.waiting if r.request_id != request_id]


@found_by(
    "test_abort_frees_the_request", "test_abort_reaches_every_part", "test_abort_after_prefill_frees_the_kv"
)
class IgnoresAborts(ReferenceLLM):
    async def abort(self, request_id: str) -> None:
        """Does nothing."""


@found_by("test_abort_reaches_every_part")
class AbortsWhatBeginsAlike(ReferenceLLM):
    def belongs(self, part: str, request_id: str) -> bool:
        return part.startswith(request_id)


@found_by("test_abort_of_an_unknown_request_does_nothing")
class KnowsEveryRequest(ReferenceLLM):
    async def abort(self, request_id: str) -> None:
        if not any(self.belongs(r.request_id, request_id) for r in [*self.running, *self.waiting]):
            raise InvalidRequest(f"no request {request_id!r}")
        await super().abort(request_id)


@found_by(
    "test_concurrent_requests_do_not_mix",
    "test_several_prompts_give_streams_in_order", "test_requests_of_different_lengths_join_and_leave",
)  # fmt: skip
class MixesRequests(ReferenceLLM):
    def choose(self, sequence: Sequence_) -> tuple[int, Any]:
        others = [s for r in self.running for s in r.sequences if s.pages and s is not sequence]
        return super().choose(others[0] if others and len(sequence.output) > 2 else sequence)


@found_by("test_others_go_on_when_one_is_cancelled")
class DisturbsNeighbours(ReferenceLLM):
    def drop(self, request_id: str) -> None:
        super().drop(request_id)
        for request in [*self.running, *self.waiting]:
            request.prompt = (*request.prompt[:-1], 1)
            for sequence in (s for s in request.sequences if s.computed):
                self.slot(sequence, sequence.computed - 1)[:] = bytes(TOKEN_BYTES)


@found_by("test_equal_prompts_at_once_agree", "test_more_requests_than_the_batch_holds")
class DependsOnOrder(ReferenceLLM):
    def choose(self, sequence: Sequence_) -> tuple[int, Any]:
        place = next((i for i, r in enumerate(self.running) if sequence in r.sequences), 0)
        token, logprob = super().choose(sequence)
        return (token + place) % 90, logprob


@found_by("test_deadline_ends_the_request")
class IgnoresDeadlines(ReferenceLLM):
    def expire(self) -> None:
        """Never."""


@found_by("test_close_ends_open_requests")
class LeavesReadersWaiting(ReferenceLLM):
    async def close(self) -> None:
        self.running, self.waiting = [], []
        await super().close()


@found_by("test_close_twice_is_safe")
class ClosesOnce(ReferenceLLM):
    async def close(self) -> None:
        if self.state == "dead":
            raise RuntimeError("closed already")
        await super().close()


@found_by("test_close_without_start_is_safe")
class MustBeStarted(ReferenceLLM):
    async def close(self) -> None:
        assert self.task is not None or self.state == "dead"
        await super().close()


@found_by("test_is_dead_after_close", "test_work_after_close_is_refused")
class NeverDies(ReferenceLLM):
    async def close(self) -> None:
        await super().close()
        self.state = "ok"


@found_by("test_is_dead_after_close", "test_is_healthy")
class SickWithoutReason(ReferenceLLM):
    async def health(self) -> Health:
        return Health(status="dead" if self.state == "dead" else "starting")

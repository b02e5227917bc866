"""Engines with a fault in queueing, ending or reporting requests."""

from __future__ import annotations

import asyncio
from typing import Any

import attrs
from kit_broken.endings import IgnoresAborts, LeavesReadersWaiting, NeverDies
from kit_broken.inputs import OwnIds, SharesIds
from kit_broken.requests import BlamesTheCaller, DropsWhatItDoesNotKnow, HoldsForEver
from kit_broken.resuming import RepeatsDeliveredText
from kit_reference.llm import ALL_FEATURES, ReferenceLLM
from kit_reference.request import PAGES_PER_SEQUENCE, Request
from sage_infer.contracts import DecodeResult, Health
from sage_infer.errors import RequestCancelled

from kit_mutants.engines import backend

SOON = {"settle_s": 0.3}


class Queueing(ReferenceLLM):
    """Orders its queue in a way of its own."""

    def place(self, request: Request) -> Any:
        """What the queue is sorted by."""
        return request.options.priority, request.order

    def admit(self) -> None:
        self.waiting.sort(key=self.place)
        while self.waiting and len(self.running) < self.batch:
            if PAGES_PER_SEQUENCE * self.waiting[0].params.n > len(self.free):
                return
            self.running.append(request := self.waiting.pop(0))
            self.compute_prompt(request)


@backend(
    "priority is dropped: first come, first served",
    "test_smaller_priorities_start_first",
    r"started in the order \[5, -1, 0\]",
)
class DropsPriority(Queueing):
    def place(self, request: Request) -> Any:
        return request.order


@backend(
    "larger priorities go first", "test_smaller_priorities_start_first", r"started in the order \[5, 0, -1\]"
)
class LargerFirst(Queueing):
    def place(self, request: Request) -> Any:
        return -request.options.priority if request.options.priority > -100 else -1000, request.order


@backend("deadline is dropped", "test_deadline_ends_the_request", "normal end instead of RequestCancelled")
class DropsDeadlines(ReferenceLLM):
    def expire(self) -> None:
        """Never."""


@backend(
    "deadlines of waiting requests are not looked at",
    "test_waiting_requests_can_be_ended",
    "deadline .* waiting request only after|deadline did not end",
)
class DeadlinesOfRunningOnly(ReferenceLLM):
    def expire(self) -> None:
        waiting, self.waiting = self.waiting, []
        super().expire()
        self.waiting = waiting


@backend("abort does nothing", "test_abort_frees_the_request", "normal end instead of RequestCancelled")
class DropsAborts(IgnoresAborts):
    pass


@backend(
    "abort does not find waiting requests",
    "test_waiting_requests_can_be_ended",
    "abort (did not end|ended a waiting request only after)",
)
class AbortsRunningOnly(ReferenceLLM):
    async def abort(self, request_id: str) -> None:
        waiting, self.waiting = self.waiting, []
        await super().abort(request_id)
        self.waiting = waiting + self.waiting


@backend("an abort is blamed on a deadline", "test_abort_frees_the_request", "the error says 'deadline'")
class BlamesTheDeadline(ReferenceLLM):
    async def abort(self, request_id: str) -> None:
        for request in [*self.running, *self.waiting]:
            if self.belongs(request.request_id, request_id):
                self.end(request, RequestCancelled("ended", by="deadline"))


@backend(
    "blocks of cancelled requests are lost",
    "test_cancel_frees_the_request",
    "did not become idle with .* KV blocks free",
    **SOON,
)
class LosesBlocks(ReferenceLLM):
    def drop(self, request_id: str) -> None:
        for request in [*self.running, *self.waiting]:
            for sequence in request.sequences if request.request_id == request_id else ():
                sequence.pages = []
        super().drop(request_id)


@backend(
    "blocks of decoded prefills are lost",
    "test_decode_frees_the_kv",
    "did not become idle with .* KV blocks free",
    **SOON,
)
class LosesPrefills(ReferenceLLM):
    async def decode(self, state: Any, *, request_id: str, options: Any = None) -> DecodeResult:
        result = await super().decode(state, request_id=request_id, options=options)
        self.free = self.free[1:]
        return result


@backend(
    "a hold of prefill never ends",
    "test_a_hold_ends_by_itself",
    "did not become idle with .* KV blocks free",
    **SOON,
)
class HoldsPrefills(HoldsForEver):
    pass


@backend("close hangs", "test_close_twice_is_safe", "did not end within", timeout_s=2.0)
class HangsInClose(ReferenceLLM):
    async def close(self) -> None:
        await asyncio.Event().wait()


@backend("close leaves readers waiting", "test_close_ends_open_requests", "did not end within", timeout_s=2.0)
class ForgetsReaders(LeavesReadersWaiting):
    pass


@backend("a closed instance takes requests", "test_work_after_close_is_refused", "DID NOT RAISE .*EngineDead")
class WorksWhenClosed(NeverDies):
    pass


@backend(
    "end by close is blamed on the caller",
    "test_close_ends_open_requests",
    "cancelled by close, but the error says 'caller'",
)
class BlamesTheCallerForClose(BlamesTheCaller):
    pass


@backend("health is ok before start", "test_is_starting_before_start", "status 'ok' before start")
class HealthyTooEarly(ReferenceLLM):
    async def health(self) -> Health:
        return Health(status="ok") if self.state == "new" else await super().health()


@backend("running never returns to zero", "test_counters_grow", "did not become idle", **SOON)
class NeverIdle(ReferenceLLM):
    def stats(self) -> Any:
        return attrs.evolve(super().stats(), running=1)


@backend(
    "stats never count an open request", "test_open_requests_are_counted", "never said running or waiting"
)
class AlwaysIdle(ReferenceLLM):
    def stats(self) -> Any:
        return attrs.evolve(super().stats(), running=0, waiting=0)


@backend("cached tokens are invented", "test_a_new_prompt_is_not_cached", "never run is cached")
class InventsCachedTokens(ReferenceLLM):
    def compute_prompt(self, request: Request) -> None:
        super().compute_prompt(request)
        request.cached = len(request.prompt) - 1


@backend(
    "cached tokens are counted without a cache",
    "test_cached_tokens_are_not_invented",
    "prefix_caching is not claimed",
)
class CountsWithoutClaiming(ReferenceLLM):
    def __init__(self) -> None:
        super().__init__(tuple(f for f in ALL_FEATURES if f != "prefix_caching"))


@backend("cache_salt is dropped", "test_salts_do_not_share", "found the blocks of a salt")
class DropsSalts(ReferenceLLM):
    def compute_prompt(self, request: Request) -> None:
        request.options = attrs.evolve(request.options, cache_salt="")
        super().compute_prompt(request)


@backend(
    "an unknown option is dropped", "test_an_unknown_option_is_refused_by_name", "unheard_of was accepted"
)
class DropsUnknownOptions(DropsWhatItDoesNotKnow):
    pass


@backend(
    "options that are not claimed are dropped",
    "test_options_that_are_not_claimed_are_refused_by_name",
    "tenant was accepted",
)
class DropsUnclaimedOptions(ReferenceLLM):
    def __init__(self) -> None:
        super().__init__(tuple(f for f in ALL_FEATURES if f != "tenant"))

    def check(self, params: Any, prompts: Any, options: Any) -> None:
        super().check(params, prompts, options and attrs.evolve(options, tenant=""))


@backend(
    "the id of an open request is accepted again",
    "test_request_id_in_use_is_refused",
    "DID NOT RAISE .*InvalidRequest",
)
class AcceptsUsedIds(SharesIds):
    pass


@backend("request ids are replaced", "test_one_prompt_keeps_its_request_id", "kit-")
class ReplacesIds(OwnIds):
    pass


@backend("a resumed output repeats delivered text", "test_resume_continues_greedy_output", "resume")
class RepeatsText(RepeatsDeliveredText):
    pass

"""Engines with one mistake each in options, reports, events, holds and progress."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import attrs
from kit_reference.llm import ReferenceLLM
from sage_infer.contracts import KVEvents, KVSnapshot
from sage_infer.errors import RequestCancelled, UnsupportedFeature
from sage_infer.schemas import Prompt, RequestOptions, SamplingParams
from sage_infer.sdk import accepted_options

from kit_broken.mistakes import found_by


@found_by("test_an_unknown_option_is_refused_by_name", "test_unknown_options_are_refused_in_both_phases")
class DropsWhatItDoesNotKnow(ReferenceLLM):
    def check(self, params: SamplingParams, prompts: Any, options: Any) -> None:
        known = None if options is None else accepted_options(self.features, options)
        super().check(params, prompts, known)


@found_by("test_an_unknown_option_is_refused_by_name")
class TakesNoSubclass(ReferenceLLM):
    def check(self, params: SamplingParams, prompts: Any, options: Any) -> None:
        if options is not None and type(options) is not RequestOptions:
            raise UnsupportedFeature("these options are of a later version: unheard_of")
        super().check(params, prompts, options)


@found_by("test_an_unknown_parameter_is_refused_by_name")
class DropsUnknownParameters(ReferenceLLM):
    def check(self, params: SamplingParams, prompts: Any, options: Any) -> None:
        fields = {a.name: getattr(params, a.name) for a in attrs.fields(SamplingParams)}
        super().check(SamplingParams(**fields), prompts, options)


class RefusesVaguely(ReferenceLLM):
    def __init__(self) -> None:
        super().__init__(features=("streaming", "chat"))

    def check(self, *args: Any) -> None:
        try:
            super().check(*args)
        except UnsupportedFeature:
            raise UnsupportedFeature("this backend does not do that") from None


found_by(
    "test_options_that_are_not_claimed_are_refused_by_name",
    "test_parameters_that_are_not_claimed_are_refused_by_name",
)(RefusesVaguely)


@found_by("test_options_that_are_claimed_are_accepted", "test_parameters_that_are_claimed_are_accepted")
class ClaimsTooMuch(ReferenceLLM):
    def check(self, params: SamplingParams, prompts: Any, options: Any) -> None:
        if options is not None and options.slo is not None:
            raise UnsupportedFeature("slo is not supported")
        if params.min_p:
            raise UnsupportedFeature("min_p is not supported")
        super().check(params, prompts, options)


@found_by("test_no_options_are_as_default_ones")
class WantsNoOptions(ReferenceLLM):
    def check(self, params: SamplingParams, prompts: Any, options: Any) -> None:
        if options is not None:
            raise UnsupportedFeature("no options here")
        super().check(params, prompts, options)


@found_by("test_template_variables_are_refused")
class DropsTemplateVariables(ReferenceLLM):
    def __init__(self) -> None:
        super().__init__(features=("streaming", "chat"))

    async def render_chat(self, messages: Any, *, template_variables: Any = None, **options: Any) -> Prompt:
        return await super().render_chat(messages, **options)


@found_by("test_media_in_a_message_are_refused")
class DropsMedia(ReferenceLLM):
    def needs(self, feature: str, asked: bool) -> None:
        super().needs(feature, asked and feature != "multimodal")


@found_by("test_template_variables_are_taken")
class RefusesTemplateVariables(ReferenceLLM):
    def needs(self, feature: str, asked: bool) -> None:
        if feature == "template_variables" and asked:
            raise UnsupportedFeature("template_variables are not supported")
        super().needs(feature, asked)


@found_by("test_a_hold_ends_by_itself")
class HoldsForEver(ReferenceLLM):
    async def prefill(self, prompts: Any, *, hold_s: Any = None, **options: Any) -> Any:
        return await super().prefill(prompts, **options)


@found_by("test_deadline_ends_the_request", "test_close_ends_open_requests")
class BlamesTheCaller(ReferenceLLM):
    def end(self, request: Any, error: Any) -> None:
        super().end(request, RequestCancelled(str(error)))


# --- reports


@found_by("test_describes_itself_the_same_each_time", "test_reports_count_up")
class AnotherGenerationEachTime(ReferenceLLM):
    def describe(self) -> Any:
        self.cache.generation += 1
        return super().describe()


@found_by("test_reports_count_up")
class CountsNoReports(ReferenceLLM):
    def report(self) -> Any:
        self.reported = 0
        return super().report()


@found_by("test_reports_agree_with_stats")
class ReportsOtherNumbers(ReferenceLLM):
    def report(self) -> Any:
        return attrs.evolve(super().report(), kv_blocks_free=0)


@found_by("test_steps_grow_with_work")
class StandsStill(ReferenceLLM):
    def gauges(self) -> Any:
        return {**super().gauges(), "steps": 0}


@found_by("test_only_running_instances_describe_themselves")
class DescribesItselfAnyTime(ReferenceLLM):
    def describe(self) -> Any:
        state, self.state = self.state, "ok"
        try:
            return super().describe()
        finally:
            self.state = state


# --- events


@found_by("test_a_snapshot_and_events_are_the_next_snapshot", "test_computed_blocks_are_stored")
class NamesBlocksWrongly(ReferenceLLM):
    async def kv_snapshot(self) -> KVSnapshot:
        snapshot = await super().kv_snapshot()
        return attrs.evolve(
            snapshot, stored=tuple(attrs.evolve(s, keys=(s.keys[0][::-1],)) for s in snapshot.stored)
        )


@found_by("test_computed_blocks_are_stored")
class ForgetsItsBlocks(ReferenceLLM):
    async def kv_snapshot(self) -> KVSnapshot:
        return attrs.evolve(await super().kv_snapshot(), stored=())


@found_by("test_a_snapshot_and_events_are_the_next_snapshot")
class LosesEvents(ReferenceLLM):
    async def kv_events(self, since: int) -> AsyncIterator[KVEvents]:
        async for event in super().kv_events(since):
            if event.seq % 2:
                yield event


@found_by("test_evicted_blocks_are_removed")
class NeverRemoves(ReferenceLLM):
    async def kv_events(self, since: int) -> AsyncIterator[KVEvents]:
        async for event in super().kv_events(since):
            yield attrs.evolve(event, removed=())


@found_by("test_close_ends_the_events")
class LeavesEventReadersWaiting(ReferenceLLM):
    async def kv_events(self, since: int) -> AsyncIterator[KVEvents]:
        async for event in super().kv_events(since):
            yield event
        await self.work.wait()


# --- progress


@found_by("test_progress_is_reported_during_start")
class ReportsPercent(ReferenceLLM):
    async def start(self) -> None:
        self.progress("reading the model", 50.0)
        await super().start()


@found_by("test_progress_is_reported_during_start")
class ReportsNothing(ReferenceLLM):
    def on_progress(self, report: Any) -> None:
        """Does not keep it."""


@found_by("test_progress_is_reported_during_start")
class ReportsForEver(ReferenceLLM):
    async def health(self) -> Any:
        self.progress("being well", None)
        return await super().health()

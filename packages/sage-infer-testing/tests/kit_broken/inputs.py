"""Engines with one mistake each in what they accept, refuse or say of themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import kit_reference.sampling as sampling
from kit_reference.llm import ReferenceLLM
from kit_reference.request import SCHEMA, TOKEN_BYTES, Request
from sage_infer.contracts import ChatAnswer
from sage_infer.errors import CapabilityMismatch, InvalidRequest
from sage_infer.schemas import Prompt, SamplingParams

from kit_broken.mistakes import found_by


@found_by("test_has_the_shape_of_its_protocol")
class LacksAbort(ReferenceLLM):
    async def render_chat(self, messages: Any) -> Prompt:  # type: ignore[override]
        return await super().render_chat(messages)


@found_by("test_tool_calls_are_read_out_of_an_answer")
class NeverCallsATool(ReferenceLLM):
    async def parse_tool_calls(self, text: str, *, tools: Any = None) -> ChatAnswer:
        return ChatAnswer(content=text)


@found_by("test_kv_schema_is_the_capability_s")
class AnotherSchema(ReferenceLLM):
    def get_kv_schema(self) -> Any:
        return attrs.evolve(SCHEMA, page_size=16)


@found_by("test_capability_is_stable")
class CapabilityOfTheMoment(ReferenceLLM):
    def get_capability(self) -> Any:
        self.asked = getattr(self, "asked", 0) + 1
        return attrs.evolve(super().get_capability(), ttft_hint_ms=float(self.asked))


@found_by("test_stats_are_gauges")
class NegativeGauges(ReferenceLLM):
    def stats(self) -> Any:
        return attrs.evolve(super().stats(), kv_blocks_free=self.total + 1)


@found_by("test_prompt_over_the_limit_is_refused")
class VagueLimit(ReferenceLLM):
    def check_tokens(self, tokens: tuple[int, ...]) -> None:
        try:
            super().check_tokens(tokens)
        except InvalidRequest:
            raise InvalidRequest("prompt too long") from None


@found_by("test_prompt_that_leaves_no_room_is_refused", "test_prompt_over_the_limit_is_refused")
class CutsThePrompt(ReferenceLLM):
    def check_tokens(self, tokens: tuple[int, ...]) -> None:
        """Lets everything in."""

    def accept(self, prompts: Any, *args: Any) -> list[Request]:
        if isinstance(prompts, tuple):
            prompts = prompts[:32]
        return super().accept(prompts, *args)


@found_by("test_token_outside_the_vocabulary_is_refused")
class AnyToken(ReferenceLLM):
    def accept(self, prompts: Any, *args: Any) -> list[Request]:
        if isinstance(prompts, list) and isinstance(prompts[0], int):
            prompts = [token % sampling.VOCABULARY for token in prompts]
        return super().accept(prompts, *args)


@found_by("test_one_wrong_prompt_starts_none")
class StartsTheGoodOnes(ReferenceLLM):
    def accept(self, prompts: Any, *args: Any) -> list[Request]:
        if isinstance(prompts, list) and len(prompts) == 2:
            self.waiting += super().accept(prompts[0], attrs.evolve(args[0], max_tokens=None), *args[1:])
            self.work.set()
        return super().accept(prompts, *args)


@found_by("test_empty_prompt_is_refused")
class NothingIsFine(ReferenceLLM):
    async def generate(self, prompts: Any, *args: Any, **options: Any) -> Any:
        return await super().generate(prompts, *args, **options) if prompts else []


@found_by("test_request_id_in_use_is_refused")
class SharesIds(ReferenceLLM):
    def check_id(self, request_id: str) -> None:
        """Does not look."""


@found_by("test_full_queue_is_overloaded")
class NeverFull(ReferenceLLM):
    def check_queue(self, count: int) -> None:
        """There is always room."""


@found_by("test_one_prompt_keeps_its_request_id")
class OwnIds(ReferenceLLM):
    def accept(self, prompts: Any, params: SamplingParams, request_id: Any, *rest: Any) -> list[Request]:
        return super().accept(prompts, params, f"my-{request_id}", *rest)


@found_by("test_a_finished_request_id_can_be_used_again")
class RemembersIds(ReferenceLLM):
    def check_id(self, request_id: str) -> None:
        ids: set[str] = self.__dict__.setdefault("ids", set())
        if request_id in ids:
            raise InvalidRequest(f"{request_id} was used")
        ids.add(request_id)


@found_by(
    "test_generation_prompt_can_be_left_out", "test_malformed_chat_is_refused", "test_chat_becomes_a_prompt"
)
class CarelessChat(ReferenceLLM):
    async def render_chat(self, messages: Any, **options: Any) -> Prompt:
        return Prompt(text="assistant: ")


@found_by("test_token_ids_are_used_as_they_are")
class AddsToTokenIds(ReferenceLLM):
    def accept(self, prompts: Any, *args: Any) -> list[Request]:
        if isinstance(prompts, list | tuple) and isinstance(prompts[0], int):
            prompts = [5, *prompts]
        return super().accept(prompts, *args)


@found_by("test_text_prompt_may_be_a_string_or_a_prompt")
class WrappedPromptsDiffer(ReferenceLLM):
    def accept(self, prompts: Any, *args: Any) -> list[Request]:
        if isinstance(prompts, Prompt) and prompts.text:
            prompts = prompts.text + " "
        return super().accept(prompts, *args)


@found_by("test_a_cached_prefix_changes_nothing")
class StaleCache(ReferenceLLM):
    def compute_prompt(self, request: Request) -> None:
        super().compute_prompt(request)
        if request.cached:
            self.slot(request.sequences[0], len(request.prompt) - 1)[:] = bytes(TOKEN_BYTES)


@found_by("test_shown_tokens_are_those_computed")
class ShowsNoStartToken(ReferenceLLM):
    async def tokenize(self, prompt: Any) -> list[int]:
        return (await super().tokenize(prompt))[1:]


@found_by("test_tokens_become_their_text")
class LosesBlanks(ReferenceLLM):
    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return (await super().detokenize(token_ids)).replace(" ", "")


@found_by("test_unknown_token_ids_have_no_text")
class InventsText(ReferenceLLM):
    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return await super().detokenize([abs(token) % 90 for token in token_ids])


@found_by("test_names_what_a_profile_asks_too_much")
class RefusesProfilesVaguely(ReferenceLLM):
    def load_quant_profile(self, profile: Any) -> None:
        raise CapabilityMismatch("this profile is not supported")


@found_by("test_a_profile_is_in_force_after_start")
class ForgetsItsProfile(ReferenceLLM):
    def load_quant_profile(self, profile: Any) -> None:
        """Takes it, and says nothing of it."""


@found_by(
    "test_refuses_media", "test_refuses_chats", "test_refuses_prefill", "test_refuses_quant_profiles",
    "test_parameters_that_are_not_claimed_are_refused_by_name", "test_an_unknown_parameter_is_refused_by_name",
    "test_options_that_are_not_claimed_are_refused_by_name", "test_an_unknown_option_is_refused_by_name",
)  # fmt: skip
class AcceptsAnything(ReferenceLLM):
    """Claims little and refuses nothing."""

    def __init__(self) -> None:
        super().__init__(features=("streaming",))

    def needs(self, feature: str, asked: bool) -> None:
        """Takes it."""

    def check(self, *args: Any) -> None:
        """Takes it."""

    def load_quant_profile(self, profile: Any) -> None:
        """Takes it."""

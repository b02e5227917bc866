"""Engines with one mistake each in prefill, decode or the transfer of KV, and the contract tests that must find it."""

from __future__ import annotations

import os
from typing import Any

import attrs
from kit_reference.llm import ReferenceLLM
from kit_reference.request import SCHEMA, TOKEN_BYTES, Request
from kit_reference.sampling import Sequence_
from sage_infer.contracts import DecodeResult, PrefillResult
from sage_infer.schemas import DecodeState, Prompt

from kit_broken.mistakes import found_by


@found_by("test_prefill_and_decode_equal_generate")
class DropsTheFirstToken(ReferenceLLM):
    async def decode(self, state: DecodeState, *, request_id: str, options: Any = None) -> DecodeResult:
        result = await super().decode(state, request_id=request_id)
        del result.stream._ready[0]  # type: ignore[attr-defined]
        return result


@found_by("test_a_state_decodes_once", "test_unknown_state_is_refused")
class ComputesAgain(ReferenceLLM):
    async def decode(self, state: DecodeState, *, request_id: str, options: Any = None) -> DecodeResult:
        if state.request_id not in self.held:
            prompt = Prompt(token_ids=state.prompt_token_ids)
            return DecodeResult(stream=(await self.generate(prompt, state.params))[0])
        return await super().decode(state, request_id=request_id)


@found_by("test_state_survives_json")
class StateOfTuples(ReferenceLLM):
    def state_of(self, request: Request, sequence: Sequence_) -> DecodeState:
        return attrs.evolve(super().state_of(request, sequence), extensions={"reference": (1, 2)})


@found_by("test_state_describes_the_request", "test_several_prompts_give_states_in_order")
class NamelessStates(ReferenceLLM):
    async def prefill(self, *args: Any, **options: Any) -> PrefillResult:
        result = await super().prefill(*args, **options)
        states = tuple(attrs.evolve(s, request_id=f"my-{s.request_id}") for s in result.states)
        self.held |= {f"my-{name}": held for name, held in self.held.items()}
        return attrs.evolve(result, states=states)


@found_by("test_a_request_that_prefill_finishes")
class ForgetsThatItIsOver(ReferenceLLM):
    def state_of(self, request: Request, sequence: Sequence_) -> DecodeState:
        return attrs.evolve(super().state_of(request, sequence), finish_reason=None)


@found_by("test_decode_frees_the_kv")
class KeepsDecodedKV(ReferenceLLM):
    async def decode(self, state: DecodeState, *, request_id: str, options: Any = None) -> DecodeResult:
        result = await super().decode(state, request_id=request_id)
        self.free = self.free[1:]
        return result


@found_by("test_prefill_over_the_limit_is_refused")
class PrefillsAnything(ReferenceLLM):
    async def prefill(self, prompts: Any, **options: Any) -> PrefillResult:
        return await super().prefill(prompts[:16], **options)


@found_by("test_export_gives_whole_checksummed_chunks")
class NoChecksums(ReferenceLLM):
    async def export_kv(self, state: DecodeState) -> Any:
        moved, buffers = await super().export_kv(state)
        return attrs.evolve(moved, chunks=state.chunks), buffers


@found_by("test_export_of_what_is_not_held_is_refused")
class ExportsAnything(ReferenceLLM):
    async def export_kv(self, state: DecodeState) -> Any:
        return await super().export_kv(state) if state.request_id in self.held else (state, [])


@found_by("test_damaged_kv_is_refused")
class TrustsBuffers(ReferenceLLM):
    def verify(self, state: DecodeState, buffers: Any) -> None:
        """Looks at nothing."""


@found_by("test_kv_of_another_kind_is_refused")
class TakesAnyKV(ReferenceLLM):
    async def import_kv(self, state: DecodeState, buffers: Any) -> DecodeState:
        return await super().import_kv(attrs.evolve(state, model_id=self.name, kv_schema=SCHEMA), buffers)


@found_by("test_imported_kv_decodes_as_if_computed_here")
class ImportsZeros(ReferenceLLM):
    async def import_kv(self, state: DecodeState, buffers: Any) -> DecodeState:
        state = await super().import_kv(state, buffers)
        (sequence,) = self.held[state.request_id][0].sequences
        self.slot(sequence, sequence.computed - 1)[:] = bytes(TOKEN_BYTES)
        return state


@found_by("test_another_process_goes_on")
class KnowsItsProcess(ReferenceLLM):
    def choose(self, sequence: Sequence_) -> tuple[int, Any]:
        token, logprob = super().choose(sequence)
        return (token + os.getpid()) % 90, logprob

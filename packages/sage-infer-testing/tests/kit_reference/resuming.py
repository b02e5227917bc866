"""How the reference engine resumes: given tokens are replayed as output, and text begins where it was delivered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sage_infer.contracts import BufferedTokenStream
from sage_infer.errors import CapabilityMismatch, InvalidRequest
from sage_infer.schemas import DecodeState, Prompt, RequestOptions

from kit_reference.request import Request
from kit_reference.sampling import Sequence_, forced_text

__all__ = ["Resumes"]


class Resumes:
    """What a backend with ``resume`` has; the engine mixes it in."""

    engine: Any  # the engine itself, to which all of this belongs

    async def resume(
        self, states: Sequence[DecodeState], *, request_id: str, options: RequestOptions | None = None
    ) -> BufferedTokenStream:
        self.engine.needs("resume", True)
        self.check_states(states)
        first = states[0]
        (request,) = self.engine.accept(
            Prompt(token_ids=first.prompt_token_ids), first.params, request_id, options
        )
        request.seed = first.seed
        request.sequences = [request.sequences[state.index] for state in states]
        for sequence, state in zip(request.sequences, states, strict=True):
            sequence.seed = first.seed
            self.replay(request, sequence, state)
        self.engine.waiting.append(request)
        self.engine.work.set()
        stream: BufferedTokenStream = request.stream
        return stream

    def check_states(self, states: Sequence[DecodeState]) -> None:
        if not states:
            raise InvalidRequest("there is no state to resume")
        if any(state.model_id != self.engine.name for state in states):
            raise CapabilityMismatch(f"a state is of another model than {self.engine.name!r}")
        first = states[0]
        same: list[Any] = [(state.prompt_token_ids, state.params, state.seed) for state in states]
        if any(one != same[0] for one in same):
            raise InvalidRequest("the states are of different requests")
        indices = [state.index for state in states]
        if len(set(indices)) < len(indices) or max(indices) >= first.params.n:
            raise InvalidRequest(f"the states have the indices {indices}, and n is {first.params.n}")
        limit = first.params.max_tokens
        for state in states:
            if state.finish_reason or (limit is not None and len(state.output_token_ids) >= limit):
                raise InvalidRequest(f"completion {state.index} has finished")
            self.engine.check_tokens(state.prompt_token_ids + state.output_token_ids)

    def replay(self, request: Request, sequence: Sequence_, state: DecodeState) -> None:
        forced = forced_text(sequence)
        for position, token in enumerate(state.output_token_ids):
            if forced is not None and token != ord(forced[position]) - 32:
                raise InvalidRequest(f"token {position} of the output is against the constraint")
            sequence.output.append(token)
            sequence.take(token, full=False)
            if sequence.finish_reason is not None:
                raise InvalidRequest(f"token {position} of the output ended it")
        if state.delivered_chars > sequence.given:
            raise InvalidRequest(f"{state.delivered_chars} characters delivered, {sequence.given} there")
        sequence.given = state.delivered_chars

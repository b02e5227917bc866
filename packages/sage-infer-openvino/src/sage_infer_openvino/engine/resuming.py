"""Resuming requests with existing output: validation of states, and replay of their tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sage_infer.errors import InvalidRequest
from sage_infer.schemas import DecodeState

from sage_infer_openvino.engine.completion import append_token
from sage_infer_openvino.engine.sequence import EngineRequest, SequenceState

__all__ = ["checked_states", "replay"]


def checked_states(states: Sequence[DecodeState]) -> list[DecodeState]:
    """The states of one request's unfinished completions, in the order of their indices.

    Raises:
        InvalidRequest: a state is invalid; the message names it.
    """
    if not states:
        raise InvalidRequest("no state to resume; expected one for each unfinished completion")
    first, seen = states[0], set()
    params = first.params
    if params.seed is not None and params.seed != first.seed:
        raise InvalidRequest(f"the state's seed is {first.seed}, but that of its params is {params.seed}")
    for state in states:
        which = f"the state of completion {state.index}"
        for name in ("prompt_token_ids", "params", "seed"):
            if getattr(state, name) != getattr(first, name):
                raise InvalidRequest(
                    f"{which} and that of completion {first.index} differ in {name}; "
                    "resume requires the states of one request"
                )
        if state.index in seen:
            raise InvalidRequest(f"{which} is repeated; expected one for each completion")
        if state.index >= params.n:
            raise InvalidRequest(f"{which} has an invalid index; expected less than n = {params.n}")
        if state.finish_reason is not None:
            raise InvalidRequest(f"{which} has finished ({state.finish_reason}); resume only unfinished ones")
        if params.max_tokens is not None and len(state.output_token_ids) >= params.max_tokens:
            raise InvalidRequest(
                f"{which} has {len(state.output_token_ids)} output tokens, but max_tokens is "
                f"{params.max_tokens}: it has finished with 'length'"
            )
        seen.add(state.index)
    return sorted(states, key=lambda state: state.index)


def replay(request: EngineRequest, states: Sequence[DecodeState], eos_token_ids: Collection[int]) -> None:
    """Replay the states' output in new sequences: penalties, constraint, stop strings and text.

    It modifies only the request, so any thread may call it before the request is submitted.

    Raises:
        InvalidRequest: the tokens are not a possible output, or their text is shorter than ``delivered_chars``.
    """
    for sequence, state in zip(request.sequences, states, strict=True):
        shown = [
            _replay_token(sequence, token, position, eos_token_ids)
            for position, token in enumerate(state.output_token_ids)
        ]
        text = "".join(shown)
        if state.delivered_chars > len(text):
            raise InvalidRequest(
                f"delivered_chars of completion {state.index} is {state.delivered_chars}, but its "
                f"{len(shown)} tokens have {len(text)} characters of text"
            )
        sequence.undelivered = text[state.delivered_chars :]
        sequence.given = len(shown)


def _replay_token(sequence: SequenceState, token: int, position: int, eos_token_ids: Collection[int]) -> str:
    text = append_token(sequence, token, None, eos_token_ids).text
    which = f"token {position} of the output of completion {sequence.index} (id {token})"
    if sequence.grammar is not None and sequence.grammar.failed:
        raise InvalidRequest(f"{which} violates the request's constraint")
    if sequence.finish_reason is not None:
        raise InvalidRequest(f"{which} ended the output ({sequence.finish_reason}); nothing can follow it")
    return text

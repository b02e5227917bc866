"""Export and import of a held request as plain data."""

from __future__ import annotations

import secrets

import attrs
from sage_infer.errors import CapabilityMismatch, InvalidRequest
from sage_infer.schemas import DecodeState
from sage_infer.sdk import KVStates, first_logprob, logprob_as_json

from sage_infer_openvino.engine.completion import append_token
from sage_infer_openvino.engine.engine import DecoderEngine
from sage_infer_openvino.engine.grammar.compiler import GrammarMatcher
from sage_infer_openvino.engine.requests import RequestFactory
from sage_infer_openvino.engine.sequence import EngineRequest

__all__ = ["StateKeeper"]


@attrs.frozen(kw_only=True)
class StateKeeper(KVStates):
    """Exports and imports states of one instance; ``kv_model`` is the fingerprint of the prepared weights."""

    eos_token_ids: frozenset[int]

    def of(self, request: EngineRequest) -> DecodeState:
        """The state of a request after prefill. It has KV for the prompt, not yet for the first token."""
        (sequence,) = request.sequences
        delta = request.first_delta
        return DecodeState(
            request_id=request.request_id,
            model_id=self.model_id,
            instance_id=self.instance_id,
            prompt_token_ids=request.prompt,
            output_token_ids=sequence.tokens[sequence.prompt_length :],
            params=request.params,
            seed=request.seed,
            kv_schema=self.schema,
            chunks=()
            if sequence.finish_reason
            else self.chunks(request.request_id, request.prompt, request.params, request.salt),
            finish_reason=sequence.finish_reason,
            first_logprobs=logprob_as_json(delta.logprobs[0])
            if delta is not None and delta.logprobs
            else None,
            extensions=self.extensions(salted=bool(request.salt)),
            weights_id=self.weights_id,
            first_text=None if delta is None else delta.text,
        )

    def find(self, engine: DecoderEngine, state: DecodeState) -> EngineRequest:
        """The held request of a state. Runs in the engine thread.

        Raises:
            InvalidRequest: its KV is not in this instance, or no longer.
        """
        if state.instance_id != self.instance_id:
            raise InvalidRequest(
                f"the KV of request {state.request_id!r} is in instance {state.instance_id}, but this is "
                f"{self.instance_id}; move it with export_kv and import_kv"
            )
        request = engine.held(state.request_id)
        (sequence,) = request.sequences
        if tuple(sequence.tokens) != state.prompt_token_ids + state.output_token_ids:
            raise InvalidRequest(
                f"the tokens of held request {state.request_id!r} differ from those of the state"
            )
        return request

    def restore(
        self, state: DecodeState, requests: RequestFactory, grammar: GrammarMatcher | None
    ) -> EngineRequest:
        """Reconstruct the request of a state as after prefill, without its blocks.

        Raises:
            InvalidRequest, UnsupportedFeature: the state is invalid for this instance.
            CapabilityMismatch: the sequence is too long for this instance.
        """
        request = requests.from_state(state, grammar)
        (sequence,) = request.sequences
        (token,) = state.output_token_ids
        delta = append_token(sequence, token, first_logprob(state), self.eos_token_ids)
        if state.finish_reason is not None:
            delta.finish_reason = sequence.finish_reason = state.finish_reason
        elif sequence.finish_reason is not None:
            raise CapabilityMismatch(
                f"the sequence of request {state.request_id!r} has {len(sequence.tokens)} tokens, "
                "which exceeds the limit of this instance; raise max_sequence_length"
            )
        request.first_delta = delta
        request.hold = True
        if not self.has_own_keys(state):
            request.salt, request.is_private = secrets.token_bytes(16), True
        return request

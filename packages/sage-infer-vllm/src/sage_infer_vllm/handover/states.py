"""States of prefilled requests as plain data."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from sage_infer.schemas import DecodeState, FinishReason, SamplingParams, TokenLogprob
from sage_infer.sdk import KVStates, logprob_as_json

__all__ = ["States"]


@attrs.frozen(kw_only=True)
class States(KVStates):
    """Makes and checks the states of one instance; ``kv_model`` names the weights and how they are computed."""

    def of(
        self,
        request_id: str,
        prompt: Sequence[int],
        token: int,
        params: SamplingParams,
        *,
        seed: int,
        salt: str,
        cached_tokens: int,
        text: str,
        logprob: TokenLogprob | None,
        finish_reason: FinishReason | None,
    ) -> DecodeState:
        """The state after prefill. It has KV for the prompt, not yet for the first token."""
        tokens = tuple(prompt)
        return DecodeState(
            request_id=request_id,
            model_id=self.model_id,
            instance_id=self.instance_id,
            prompt_token_ids=tokens,
            output_token_ids=(token,),
            params=params,
            seed=seed,
            kv_schema=self.schema,
            chunks=() if finish_reason else self.chunks(request_id, tokens, params, salt.encode()),
            finish_reason=finish_reason,
            first_logprobs=None if logprob is None else logprob_as_json(logprob),
            extensions=self.extensions(salted=bool(salt), cached_tokens=cached_tokens),
            weights_id=self.weights_id,
            first_text=text,
        )

    def cached_tokens(self, state: DecodeState) -> int:
        """Tokens that prefill found in a cache; 0 where the state does not say."""
        found = self.own(state).get("cached_tokens", 0)
        return found if isinstance(found, int) and 0 <= found <= len(state.prompt_token_ids) else 0

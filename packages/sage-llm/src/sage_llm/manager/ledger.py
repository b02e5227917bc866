"""What a request has delivered: enough to continue it exactly on another instance."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from attrs import define, field
from sage_infer.schemas import DecodeState, FinishReason, SamplingParams, TokenDelta

__all__ = ["Ledger", "Record"]

_MAX_TOKENS = 65_536  # recorded per completion: 256 KiB; a longer output cannot migrate


@define(eq=False)
class Record:
    """One completion.

    Attributes:
        token_ids: the tokens that the consumer has received.
        chars: number of characters of their text that it has received.
        finish_reason: set once the completion has finished.
    """

    token_ids: array[int] = field(factory=lambda: array("I"))
    chars: int = 0
    finish_reason: FinishReason | None = None


class Ledger:
    """The delivered output of one request.

    Attributes:
        prompt: token ids of the prompt; None if unknown.
        params: sampling parameters with the seed in force.
        records: the completions by index.
        tokens: number of tokens of all completions.
        has_started: whether the consumer has received something.
        obstacle: why the output cannot be continued elsewhere; empty if it can.
    """

    __slots__ = ("has_started", "obstacle", "params", "prompt", "records", "tokens")

    def __init__(self, prompt: tuple[int, ...] | None, params: SamplingParams) -> None:
        self.prompt, self.params = prompt, params
        self.records = [Record() for _ in range(params.n)]
        self.tokens, self.has_started = 0, False
        self.obstacle = "" if prompt is not None else "the token ids of its prompt are unknown"

    @classmethod
    def of_states(cls, states: Sequence[DecodeState], params: SamplingParams) -> Ledger:
        """The ledger of a request that began elsewhere; completions without a state have finished."""
        ledger = cls(states[0].prompt_token_ids, params)
        open_states = {state.index: state for state in states}
        for index, record in enumerate(ledger.records):
            if (state := open_states.get(index)) is None:
                record.finish_reason = "stop"
            else:
                record.token_ids.extend(state.output_token_ids)
                record.chars = state.delivered_chars
                ledger.tokens += len(state.output_token_ids)
        ledger.has_started = ledger.tokens > 0
        return ledger

    def learn_prompt(self, token_ids: tuple[int, ...]) -> None:
        """The server that renders the prompt has returned its token ids, before any output."""
        if not self.has_started:
            self.prompt, self.obstacle = token_ids, ""

    def commit(self, delta: TokenDelta) -> None:
        """Record a delta; call it together with its delivery."""
        record, ids = self.records[delta.index], delta.token_ids
        if len(ids) == 1:
            record.token_ids.append(ids[0])
        else:
            record.token_ids.extend(ids)
        record.chars += len(delta.text)
        self.tokens += len(ids)
        if delta.finish_reason is not None:
            record.finish_reason = delta.finish_reason
        if not self.has_started:
            self._first(delta)
        if delta.reasoning or delta.tool_calls:
            self.obstacle = "its engine parsed reasoning or tool calls, whose position in the text is unknown"
        elif len(record.token_ids) > _MAX_TOKENS:
            self.obstacle = f"its output has more than {_MAX_TOKENS} tokens"

    def _first(self, delta: TokenDelta) -> None:
        self.has_started = bool(delta.token_ids or delta.text or delta.reasoning or delta.tool_calls)
        if self.has_started and not delta.token_ids and not self.obstacle:
            self.obstacle = "its server does not return token ids"

    @property
    def open_indices(self) -> list[int]:
        """Completions that have not finished; those at ``max_tokens`` count as finished."""
        return [i for i, record in enumerate(self.records) if self._is_open(record)]

    def _is_open(self, record: Record) -> bool:
        longest = self.params.max_tokens
        return record.finish_reason is None and (longest is None or len(record.token_ids) < longest)

    @property
    def finish_reason(self) -> FinishReason:
        """Finish reason of completion 0."""
        return self.records[0].finish_reason or "length"

    def states(self, request_id: str, model_id: str, instance_id: str) -> list[DecodeState]:
        """One state per open completion, for ``Resuming.resume``."""
        assert self.prompt is not None, "obstacle is set"
        return [
            DecodeState(
                request_id=request_id,
                model_id=model_id,
                instance_id=instance_id,
                prompt_token_ids=self.prompt,
                output_token_ids=tuple(self.records[index].token_ids),
                params=self.params,
                seed=self.params.seed or 0,
                index=index,
                delivered_chars=self.records[index].chars,
            )
            for index in self.open_indices
        ]

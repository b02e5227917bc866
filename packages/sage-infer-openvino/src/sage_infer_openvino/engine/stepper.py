"""One engine step: run the scheduled tokens through the model and sample new ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

from attrs import define, field
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import TokenDelta

from sage_infer_openvino.engine.completion import append_token
from sage_infer_openvino.engine.paged_runner import PagedRunner, SequenceSlice
from sage_infer_openvino.engine.sampler import Sampler
from sage_infer_openvino.engine.sequence import EngineRequest, SequenceState

__all__ = ["Stepper"]


@define(eq=False)
class Stepper:
    """Runs steps of one model. ``computed`` receives the number of new tokens with KV per sequence."""

    runner: PagedRunner
    sampler: Sampler
    eos_token_ids: Collection[int]
    computed: Callable[[SequenceState, int], None]
    prompt_tokens: int = field(default=0, init=False)
    output_tokens: int = field(default=0, init=False)

    def run(
        self, step: Sequence[tuple[SequenceState, int]]
    ) -> tuple[list[tuple[SequenceState, TokenDelta]], dict[EngineRequest, InvalidRequest]]:
        """Compute each sequence's next tokens; fully computed sequences get one new token.

        Returns the new tokens, and the requests whose constraint failed or whose logits are not finite.
        """
        slices = []
        now = time.perf_counter()
        for sequence, count in step:
            tokens = sequence.tokens[sequence.computed : sequence.computed + count]
            slices.append(SequenceSlice(tokens, sequence.computed, sequence.blocks))
            if sequence.request.clock.started is None:
                sequence.request.clock.started = now
                sequence.request.fetched = None  # pages that arrived too late
        logits = self.runner.step(slices)
        due: list[int] = []
        for row, (sequence, count) in enumerate(step):
            if sequence.new_length == 0:
                self.prompt_tokens += count
            self.computed(sequence, count)
            if sequence.computed == len(sequence.tokens):
                due.append(row)
        masks, failed = {}, {}
        for row in due:
            sequence = step[row][0]
            if sequence.grammar is not None:
                try:
                    masks[row] = sequence.grammar.allowed(self.runner.vocab_size)
                except InvalidRequest as error:
                    failed[sequence.request] = error
        rows = [row for row in due if step[row][0].request not in failed]
        sequences = [step[row][0] for row in rows]
        if not sequences:
            return [], failed
        allowed = {i: masks[row] for i, row in enumerate(rows) if row in masks}
        chosen = self.sampler.choose(sequences, logits if len(rows) == len(step) else logits[rows], allowed)
        new = []
        for sequence, pair in zip(sequences, chosen, strict=True):
            if pair is None:
                failed[sequence.request] = InvalidRequest(
                    "the model computes no finite logit for the next token; check its weights and precision"
                )
                continue
            token, logprob = pair
            sequence.request.clock.token()
            new.append((sequence, append_token(sequence, token, logprob, self.eos_token_ids)))
        self.output_tokens += len(new)
        return [pair for pair in new if pair[0].request not in failed], failed

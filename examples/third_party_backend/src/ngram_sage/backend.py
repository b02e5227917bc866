"""The contract's face: the base of the SDK does everything but the model."""

from __future__ import annotations

import codecs
import random
import secrets
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from sage_infer.contracts import ProgressReport
from sage_infer.schemas import ModelDescriptor, Prompt, SamplingParams, TokenDelta
from sage_infer.sdk import BaseInferenceBackend, Completion, choose_token

from ngram_sage.model import END, LIMIT, VOCABULARY, Ngrams, read_corpus

__all__ = ["NgramBackend"]


class NgramBackend(BaseInferenceBackend):
    """Continuous batching in its simplest form: a task a request, a step at a time."""

    name = "ngram"
    features = ("streaming", "seed", "parallel_sampling", "min_p")
    precisions = ("fp64",)
    max_sequence_length, vocabulary = LIMIT, VOCABULARY

    def __init__(self, model: ModelDescriptor, *, order: int = 8) -> None:
        super().__init__(model)
        self._order = order

    def load(self, report: ProgressReport) -> None:
        text = read_corpus(Path(self.model.model_path))
        report("counting", None)
        self._ngrams = Ngrams(text, self._order)

    def encode(self, prompt: Prompt) -> Sequence[int]:
        return tuple((prompt.text or "").encode())

    async def complete(
        self, token_ids: Sequence[int], params: SamplingParams, *, max_tokens: int
    ) -> AsyncIterator[TokenDelta]:
        seed = secrets.randbits(63) if params.seed is None else params.seed
        outputs = [_Output(params, token_ids, index, seed, max_tokens) for index in range(params.n)]
        while unfinished := [output for output in outputs if output.finish_reason is None]:
            for output in unfinished:
                yield output.step(self._ngrams)


class _Output(Completion):
    """One of a request's ``n`` outputs; its text never shows half a character."""

    def __init__(
        self, params: SamplingParams, prompt: Sequence[int], index: int, seed: int, max_tokens: int
    ) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        super().__init__(
            params,
            max_tokens=max_tokens,
            decode=lambda token: "" if token == END else decoder.decode(bytes([token])),
            flush=lambda: decoder.decode(b"", final=True),
            eos_token_ids=[END],
            index=index,
        )
        self._params, self._prompt = params, prompt
        self._random = random.Random(f"{seed}/{index}")

    def step(self, model: Ngrams) -> TokenDelta:
        """Choose the next token."""
        likely = dict(enumerate(model.probabilities([*self._prompt, *self.token_ids])))
        if self._params.ignore_eos or len(self.token_ids) + 1 < self._params.min_tokens:
            del likely[END]
        return self.push(choose_token(likely, self._params, self._random))

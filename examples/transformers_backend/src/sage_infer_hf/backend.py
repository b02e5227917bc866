"""The backend ``hf``. The base class of the SDK does all that is not the engine's.

An engine that batches and schedules requests itself yields its own deltas in ``complete``, or implements
``sage_infer.contracts.InferenceBackend`` without the base.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from sage_infer.contracts import ProgressReport
from sage_infer.schemas import Prompt, SamplingParams, TokenDelta
from sage_infer.sdk import BaseInferenceBackend, Completion, choose_token

from sage_infer_hf.engine import Engine

__all__ = ["HfBackend"]


class HfBackend(BaseInferenceBackend):
    """``InferenceBackend`` on ``Engine``. Claim a feature once the kit's tests of it pass."""

    name = "hf"
    hardware = "cpu"
    features = ("streaming", "tokenize", "seed", "parallel_sampling", "min_p")
    precisions = ("fp32",)
    max_sequence_length = 1 << 20  # ``load`` lowers it to the model's

    def load(self, report: ProgressReport) -> None:
        self.engine = Engine(Path(self.model.model_path))
        self.vocabulary = self.engine.vocabulary
        self.max_sequence_length = min(self.max_sequence_length, self.engine.max_sequence_length)

    def unload(self) -> None:
        self.engine.close()

    def encode(self, prompt: Prompt) -> Sequence[int]:
        return self.engine.encode(prompt.text or "")

    def decode_tokens(self, token_ids: Sequence[int]) -> str:
        return self.engine.decode(token_ids)

    async def complete(
        self, token_ids: Sequence[int], params: SamplingParams, *, max_tokens: int
    ) -> AsyncIterator[TokenDelta]:
        seed = secrets.randbits(63) if params.seed is None else params.seed
        outputs = [_Output(self.engine, params, max_tokens, index, seed) for index in range(params.n)]
        while unfinished := [output for output in outputs if output.finish_reason is None]:
            for output in unfinished:
                sequence = [*token_ids, *output.token_ids]
                yield output.push(output.choose(await asyncio.to_thread(self.engine.weights, sequence)))


class _Output(Completion):
    """One of a request's ``n`` outputs; its text never shows part of a character."""

    def __init__(
        self, engine: Engine, params: SamplingParams, max_tokens: int, index: int, seed: int
    ) -> None:
        super().__init__(
            params, max_tokens=max_tokens, decode=self._text, flush=self._rest,
            eos_token_ids=engine.end_token_ids, index=index,
        )  # fmt: skip
        self._engine, self._sampling = engine, params
        self._draw = random.Random(f"{seed}/{index}")
        self._tail: list[int] = []  # the last tokens, whose text ends with the text not shown yet
        self._shown = ""  # the beginning of that text, which is shown

    def choose(self, weights: Mapping[int, float]) -> int:
        """Sample the next token, without the end of the sequence where it is not wanted."""
        params, unwanted = self._sampling, self._engine.end_token_ids
        if not params.ignore_eos and len(self.token_ids) + 1 >= params.min_tokens:
            unwanted = ()
        kept = {token: weight for token, weight in weights.items() if weight > 0 and token not in unwanted}
        return choose_token(kept, params, self._draw)

    def _text(self, token: int) -> str:
        self._tail.append(token)
        text = self._engine.decode(self._tail)
        if text.endswith("\ufffd"):
            return ""
        new = text[len(self._shown) :]
        self._tail = [token]  # tokenizers decode the next token after the one before it
        self._shown = self._engine.decode(self._tail)
        return new

    def _rest(self) -> str:
        return self._engine.decode(self._tail)[len(self._shown) :] if self._tail else ""

"""Tokens, sampling and stopping of the reference engine: a character is a token."""

from __future__ import annotations

import math
import random

import attrs
from sage_infer.schemas import FinishReason, Prompt, SamplingParams, TokenLogprob

EOS, BOS, VOCABULARY = 96, 97, 98


def tokenize(prompt: Prompt) -> tuple[int, ...]:
    if prompt.token_ids is not None:
        return prompt.token_ids
    tokens = [ord(c) - 32 if 32 <= ord(c) < 127 else 95 for c in prompt.text or ""]
    return (BOS, *tokens) if prompt.add_special_tokens else tuple(tokens)


def detokenize(token: int) -> str:
    return "" if token >= EOS else "\n" if token == 95 else chr(token + 32)


@attrs.define(eq=False, slots=False)
class Sequence_:
    """One completion as it grows."""

    index: int
    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    pages: list[int] = attrs.field(factory=list)
    computed: int = 0
    output: list[int] = attrs.field(factory=list)
    text: str = ""
    given: int = 0
    finish_reason: FinishReason | None = None
    draw_index: int = attrs.Factory(lambda self: self.index, takes_self=True)

    def take(self, token: int, full: bool) -> str:
        """Add a token's text; returns what can be given out now, and sets ``finish_reason`` at the end."""
        params, count = self.params, len(self.output)
        armed = count >= params.min_tokens
        forced = forced_text(self)
        if forced is not None:
            self.finish_reason = "stop" if count == len(forced) else None
        elif armed and (token in params.stop_token_ids or (token == EOS and not params.ignore_eos)):
            self.finish_reason = "stop"
            return self.flush()
        self.text += detokenize(token)
        cut = self.stop_position() if armed else -1
        if cut >= 0:
            self.text, self.finish_reason = self.text[:cut], "stop"
        elif self.finish_reason is None and (full or count == params.max_tokens):
            self.finish_reason = "length"
        return self.flush() if self.finish_reason else self.give(len(self.text) - self.held_back())

    def stop_position(self) -> int:
        return min((p for s in self.params.stop if (p := self.text.find(s)) >= 0), default=-1)

    def held_back(self) -> int:
        """Characters at the end that could begin a stop string."""
        lengths = (n for s in self.params.stop for n in range(1, len(s)) if self.text.endswith(s[:n]))
        return max(lengths, default=0)

    def flush(self) -> str:
        return self.give(len(self.text))

    def give(self, end: int) -> str:
        new, self.given = self.text[self.given : end], max(self.given, end)
        return new


def forced_text(sequence: Sequence_) -> str | None:
    """The canned answer to a constraint."""
    guided = sequence.params.guided
    if guided is None:
        return None
    if guided.choice:
        return guided.choice[sequence.seed % len(guided.choice)]
    if guided.regex:
        return "2024-05"
    return "yes" if guided.grammar else '{"ready": true, "colour": "red"}'


def logits(entry: bytes, sequence: Sequence_) -> list[float]:
    draw = random.Random(entry)
    values = [draw.gauss(0, 3) for _ in range(VOCABULARY)]
    if sequence.params.ignore_eos:
        values[EOS] = values[BOS] = -1e9
    params = sequence.params
    for token in {*sequence.prompt, *sequence.output} if params.repetition_penalty != 1 else ():
        value = values[token]
        values[token] = value / params.repetition_penalty if value > 0 else value * params.repetition_penalty
    for token in set(sequence.output):
        count = sequence.output.count(token)
        values[token] -= params.presence_penalty + params.frequency_penalty * count
    return values


def pick(entry: bytes, sequence: Sequence_) -> tuple[int, TokenLogprob | None]:
    """The next token, with log probabilities where asked for."""
    params = sequence.params
    values = logits(entry, sequence)
    forced = forced_text(sequence)
    if forced is not None:
        values = [-1e9] * VOCABULARY
        values[ord(forced[len(sequence.output)]) - 32] = 0.0
    norm = max(values) + math.log(sum(math.exp(v - max(values)) for v in values))
    order = sorted(range(VOCABULARY), key=lambda t: -values[t])
    token = order[0] if params.temperature == 0 else draw_token(values, order, sequence)
    if params.logprobs is None:
        return token, None
    best = tuple((t, detokenize(t), values[t] - norm) for t in order[: params.logprobs])
    return token, TokenLogprob(token, detokenize(token), values[token] - norm, best)


def draw_token(values: list[float], order: list[int], sequence: Sequence_) -> int:
    params = sequence.params
    top = values[order[0]]
    weights = [math.exp((values[t] - top) / params.temperature) for t in order]
    total, reached, kept = sum(weights), 0.0, 0
    for weight in weights:
        if kept and (reached >= params.top_p * total or weight < params.min_p or kept == params.top_k):
            break
        reached, kept = reached + weight, kept + 1
    draw = random.Random(f"{sequence.seed}/{sequence.draw_index}/{len(sequence.output)}")
    return draw.choices(order[:kept], weights[:kept])[0]

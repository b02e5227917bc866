"""Synthetic traces: chat sessions whose prompts grow, and RAG requests over shared documents."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from itertools import accumulate
from typing import Any

import attrs
from attrs import field, frozen, validators
from sage_infer.errors import InvalidRequest

from sage_llm.simulator.schemas import Row
from sage_llm.simulator.traces import Trace

__all__ = ["WORKLOADS", "Rag", "Sessions", "synthetic"]


@frozen(kw_only=True)
class Sessions:
    """Chats: sessions begin at random times (Poisson); each turn's prompt is the whole conversation so far.

    Attributes:
        requests: number of requests.
        rate: sessions that begin per second.
        turns: mean number of turns of a session (geometric).
        gap_s: mean time from the end of a turn's prompt to the next turn (exponential).
        system: tokens of the prompt that all sessions of one kind begin with.
        kinds: number of different system prompts.
        prompt: mean new tokens of a turn (exponential).
        output: mean tokens of an output (exponential).
        block: tokens per KV block.
    """

    requests: int = field(default=10_000, validator=validators.ge(1))
    rate: float = field(default=1.0, validator=validators.gt(0))
    turns: float = field(default=3.0, validator=validators.ge(1))
    gap_s: float = field(default=60.0, validator=validators.gt(0))
    system: int = field(default=500, validator=validators.ge(0))
    kinds: int = field(default=4, validator=validators.ge(1))
    prompt: float = field(default=800.0, validator=validators.gt(0))
    output: float = field(default=300.0, validator=validators.gt(0))
    block: int = field(default=64, validator=validators.ge(1))

    def rows(self, seed: int) -> Iterator[Row]:
        """Yield the requests in the order of their arrival; memory grows with the open sessions only."""
        rng = random.Random(seed)
        due: list[tuple[float, int, int, int, int]] = []  # time, session, kind, tokens so far, turns left
        at, session = 0.0, 0
        for _ in range(self.requests):
            while not due or due[0][0] > at:
                heappush(
                    due, (at, session, rng.randrange(self.kinds), self.system, _geometric(rng, self.turns))
                )
                session += 1
                at += rng.expovariate(self.rate)
            now, number, kind, before, left = heappop(due)
            prompt, output = before + _length(rng, self.prompt), _length(rng, self.output)
            yield Row(now, prompt, output, self._keys(number, kind, prompt), f"session-{number}")
            if left > 1:
                gap = rng.expovariate(1 / self.gap_s)
                heappush(due, (now + gap, number, kind, prompt + output, left - 1))

    def _keys(self, session: int, kind: int, prompt: int) -> tuple[int, ...]:
        shared = self.system // self.block
        return tuple(
            _key(1, kind, place) if place < shared else _key(2, session, place)
            for place in range(prompt // self.block)
        )


@frozen(kw_only=True)
class Rag:
    """RAG requests: a system prompt, some documents of a collection, most of them popular ones, and a question.

    Attributes:
        requests: number of requests.
        rate: requests per second (Poisson).
        system: tokens of the common system prompt.
        documents: size of the collection.
        chosen: documents in each prompt.
        document: tokens of each document.
        skew: exponent of their popularity (Zipf); 0 for equally popular ones.
        question: mean tokens of a question (exponential).
        output: mean tokens of an output (exponential).
        block: tokens per KV block.
    """

    requests: int = field(default=10_000, validator=validators.ge(1))
    rate: float = field(default=10.0, validator=validators.gt(0))
    system: int = field(default=256, validator=validators.ge(0))
    documents: int = field(default=1000, validator=validators.ge(1))
    chosen: int = field(default=4, validator=validators.ge(1))
    document: int = field(default=512, validator=validators.ge(1))
    skew: float = field(default=1.0, validator=validators.ge(0))
    question: float = field(default=60.0, validator=validators.gt(0))
    output: float = field(default=150.0, validator=validators.gt(0))
    block: int = field(default=64, validator=validators.ge(1))

    def rows(self, seed: int) -> Iterator[Row]:
        """Yield the requests in the order of their arrival."""
        rng = random.Random(seed)
        totals = list(accumulate(1 / (place + 1) ** self.skew for place in range(self.documents)))
        at = 0.0
        chosen = min(self.chosen, self.documents)
        for number in range(self.requests):
            at += rng.expovariate(self.rate)
            found: dict[int, None] = {}
            while len(found) < chosen:
                found[rng.choices(range(self.documents), cum_weights=totals)[0]] = None
            context = self.system + chosen * self.document
            prompt = context + _length(rng, self.question)
            parent, keys = 0, []
            for place in range(prompt // self.block):
                end = (place + 1) * self.block
                if end <= self.system:
                    part = 0
                elif end <= context:
                    part = 1 + list(found)[(end - self.system - 1) // self.document]
                else:
                    part = -1 - number
                parent = _key(3, parent, part)
                keys.append(parent)
            yield Row(at, prompt, _length(rng, self.output), tuple(keys))


def _key(*parts: int) -> int:
    """A key that depends on all parts, the same in every process."""
    value = 0
    for part in parts:
        value = (value * 0x9E3779B97F4A7C15 + part + 0x7F4A7C15) & 0xFFFFFFFFFFFFFFF
        value ^= value >> 29
    return value


def _length(rng: random.Random, mean: float) -> int:
    return max(round(rng.expovariate(1 / mean)), 1)


def _geometric(rng: random.Random, mean: float) -> int:
    """A number of at least 1 with this mean."""
    count = 1
    while rng.random() < 1 - 1 / mean:
        count += 1
    return count


WORKLOADS: dict[str, type[Any]] = {"sessions": Sessions, "rag": Rag}


def synthetic(text: str, seed: int = 0) -> Trace | None:
    """Return the trace of ``sessions`` or ``rag``, perhaps with parameters: ``sessions:requests=1000,rate=2``.

    Returns None if the text names no synthetic workload.

    Raises:
        InvalidRequest: it has no such parameter, or a value is not valid.
    """
    name, _, given = text.partition(":")
    workload = WORKLOADS.get(name)
    if workload is None:
        return None
    known = attrs.fields_dict(workload)
    values: dict[str, Any] = {}
    for part in filter(None, given.split(",")):
        key, _, value = part.partition("=")
        if key.strip() not in known:
            raise InvalidRequest(
                f"{name} has no parameter {key.strip()!r}; its parameters: {', '.join(known)}"
            )
        convert: Callable[[str], Any] = type(known[key.strip()].default)
        try:
            values[key.strip()] = convert(value)
        except ValueError:
            what = "a whole number" if convert is int else "a number"
            raise InvalidRequest(f"{name}: {key.strip()} must be {what}, not {value!r}") from None
    try:
        made = workload(**values)
    except ValueError as error:
        raise InvalidRequest(f"{name}: {error}") from None
    return Trace.of(text, made.block, lambda: made.rows(seed))

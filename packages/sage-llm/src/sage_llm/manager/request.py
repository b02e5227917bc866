"""One generating request, from its arrival to its one end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Literal

import attrs
from attrs import define, field
from sage_infer.contracts import BufferedTokenStream
from sage_infer.errors import RequestCancelled, SageInferError
from sage_infer.schemas import Prompt, RequestOptions, SamplingParams, Timing, Usage

from sage_llm.chains import ChainStep
from sage_llm.classifier import Classified
from sage_llm.manager.ledger import Ledger
from sage_llm.manager.live_instance import Attempt, LiveInstance
from sage_llm.manager.passed_chat import PassedChat
from sage_llm.types import RequestView

__all__ = ["ManagedRequest", "Outcome"]

Outcome = Literal["finished", "cancelled", "refused", "failed"]


@define(eq=False)
class ManagedRequest:
    """A request with one prompt.

    Attributes:
        request_id: its id, unique among open requests.
        model_id: the model that it is for.
        prompt: the prompt, as token ids where the model's tokenizer is known.
        ledger: its output so far, with the seed in force.
        stream: what the caller reads.
        accepted: done when an instance has accepted it; has the error of a refused request.
        attempt: current attempt; None while it waits.
        number: number of attempts so far.
        migrations: moves after the first token.
        retries: moves before the first token.
        crashes: number of instances that ended while it ran there.
        crash_tokens: output tokens of the attempt that ended with the last crash.
        excluded: instances that it is not sent to again.
        chat: the chat, if the instances render it; ``prompt`` then only stands for its length.
        classified, view: what policies see of it.
        planned: moves for a drain or a pause, which do not count against the limit.
        pauses: number of times it was paused for a more urgent request; ``is_paused`` until it runs again.
        prefetched: instance that was told of it while it waited, and the pages of its KV that are in the fastest tier
            there; None if there are none.
        step: its place in a chain; None without one.
        outcome: how it ended; None while it is open.
    """

    request_id: str
    model_id: str
    prompt: Prompt
    ledger: Ledger
    options: RequestOptions
    prompt_tokens: int
    on_end: Callable[[ManagedRequest], object]
    on_cancel: Callable[[ManagedRequest], None]
    stream: BufferedTokenStream = field(init=False)
    accepted: asyncio.Future[None] = field(init=False)
    attempt: Attempt | None = None
    number: int = 0
    migrations: int = 0
    retries: int = 0
    crashes: int = 0
    crash_tokens: int = 0
    excluded: set[LiveInstance] = field(factory=set)
    chat: PassedChat | None = None
    classified: Classified | None = None
    view: RequestView | None = None
    planned: int = 0
    pauses: int = 0
    is_paused: bool = False
    prefetched: tuple[str, int] | None = None
    step: ChainStep | None = None
    outcome: Outcome | None = None
    arrived: float = field(factory=time.monotonic)
    dispatched_at: float | None = None
    last_dispatched_at: float = 0.0
    first_at: float | None = None

    def __attrs_post_init__(self) -> None:
        self.stream = BufferedTokenStream(self.request_id, lambda: self.on_cancel(self))
        self.accepted = asyncio.get_running_loop().create_future()

    @property
    def params(self) -> SamplingParams:
        return self.ledger.params

    @property
    def is_suspect(self) -> bool:
        """Whether it must run alone next, because it ran on two instances that crashed."""
        return self.crashes >= _SUSPECT

    @property
    def is_cleared(self) -> bool:
        """Whether its current attempt has come further than the one that crashed."""
        return self.attempt is not None and self.attempt.output_tokens >= self.crash_tokens + _CLEAR_TOKENS

    def options_now(self) -> RequestOptions:
        """The options with the rest of the deadline, and with the priority of the request's band on its instance.

        A chain's request with a deadline is ahead of others of its band, also of those that the instance has accepted.
        """
        options = self.options
        priority = options.priority
        if self.classified is not None and self.attempt is not None and not self.attempt.instance.is_joined:
            priority = self.classified.band - (self.step is not None and options.deadline is not None)
        if options.deadline is None:
            return options if priority == options.priority else attrs.evolve(options, priority=priority)
        left = options.deadline - (time.monotonic() - self.arrived)
        return attrs.evolve(options, deadline=max(left, 0.0), priority=priority)

    def sent(self, now: float) -> int:
        """Count a dispatch, and return its number."""
        self.number += 1
        self.last_dispatched_at, self.is_paused = now, False
        if self.dispatched_at is None:
            self.dispatched_at = now
        return self.number

    @property
    def can_continue(self) -> bool:
        """Whether it may be paused and can be continued exactly, if its instance supports that."""
        return self.pauses < _MOST_PAUSES and not self.crashes and not self.ledger.obstacle

    # --- its one end

    def finish(self, usage: Usage | None, timing: Timing | None) -> None:
        """End it normally; ``usage`` and ``timing`` are the engine's, of the last attempt."""
        if self._end("finished"):
            self._accept()
            self.stream.finish(self.ledger.finish_reason, self._usage(usage), self._timing(timing))

    def fail(self, error: SageInferError) -> None:
        """End it with an error: refused if no instance has accepted it yet."""
        if isinstance(error, RequestCancelled):
            outcome: Outcome = "cancelled"
        else:
            outcome = "failed" if self.accepted.done() else "refused"
        if self._end(outcome):
            if self.accepted.done():
                self.stream.fail(error, self._usage(None), self._timing(None))
            else:
                self.accepted.set_exception(error)
                self.accepted.exception()  # retrieved, even if the caller has gone
                self.stream.fail(error)

    def accept(self) -> None:
        """An instance has accepted it."""
        self._accept()

    def _accept(self) -> None:
        if not self.accepted.done():
            self.accepted.set_result(None)

    def _end(self, outcome: Outcome) -> bool:
        if self.outcome is not None:
            return False
        self.outcome = outcome
        self.on_end(self)
        return True

    def _usage(self, found: Usage | None) -> Usage:
        """Tokens of the whole request; the engine's count if it ran in one place."""
        if found is not None and not self.migrations:
            return found
        prompt = found.prompt_tokens if found is not None else self.prompt_tokens
        cached = 0 if found is None else min(found.cached_tokens, self.prompt_tokens)
        if self.ledger.prompt is not None:
            prompt = len(self.ledger.prompt)
        return Usage(
            prompt_tokens=prompt, completion_tokens=self.ledger.tokens, cached_tokens=min(cached, prompt)
        )

    def _timing(self, found: Timing | None) -> Timing:
        """Times since the arrival here, which include the wait for an instance."""
        now = time.monotonic()
        first = self.first_at if self.first_at is not None else now
        waited = (self.dispatched_at or now) - self.arrived
        queue = waited + (found.queue_s if found is not None and not self.migrations else 0.0)
        steps = max(len(record.token_ids) for record in self.ledger.records) - 1
        between = (now - first) / steps if steps > 0 else None
        return Timing(
            queue_s=queue,
            ttft_s=first - self.arrived,
            total_s=now - self.arrived,
            inter_token_s=found.inter_token_s if found is not None and not self.migrations else between,
        )


_SUSPECT, _CLEAR_TOKENS = 2, 8
_MOST_PAUSES = 8  # then it runs to its end

"""One running instance: its identity, state word, load report and open attempts."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, Literal

from attrs import define, field
from sage_infer.compat import timeout
from sage_infer.errors import Overloaded
from sage_infer.schemas import InstanceDescriptor, InstanceReport

from sage_llm.manager.breaker import Breaker
from sage_llm.replicas.connect import ConnectedReplica
from sage_llm.replicas.spans import OpenSpan

__all__ = ["Attempt", "LiveInstance", "InstanceWord"]

InstanceWord = Literal["ready", "probation", "suspect", "lost", "draining", "dead"]
"""State of an instance.

ready: accepts requests. probation: accepts few requests, after a restart or a silence. suspect: accepts no new
requests. lost: its requests have moved, and it may return. draining: finishes or hands over its requests. dead: its
connection is closed.
"""

_GAPS = 128
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0  # after a refusal
_JOINED = "openai"
_BATCHES = 3  # one is computed, the next one is ready, and one collects requests
_SPARE = 2  # requests beyond the engine's batch, so that its next step always has a prompt


@define(eq=False)
class Attempt:
    """One dispatch of a request to an instance.

    Attributes:
        number: larger than those of the request's earlier attempts; output of earlier ones is dropped.
        instance: where it runs.
        request_id: its id on the instance.
        prompt_tokens: number of prompt tokens, for the load of the instance.
        has_output: whether a token has arrived.
        cancel: ends it on the instance.
        span: its span, if requests are traced.
        is_prefill: it only computes the prompt, for another instance.
        awaits_kv: another instance computes the prompt.
    """

    number: int
    instance: LiveInstance
    request_id: str
    prompt_tokens: int
    output_tokens: int = 0
    has_output: bool = False
    cancel: Callable[[], object] = field(default=lambda: None)
    span: OpenSpan = field(factory=OpenSpan)
    is_prefill: bool = False
    awaits_kv: bool = False


@define(eq=False)
class LiveInstance:
    """A connected replica.

    Attributes:
        slot: number of the instance in snapshots.
        attempts: open attempts by their id on the instance. Load is derived from this table, never counted.
        calls: open calls with one result: batches of embedding and reranking requests, and questions about texts.
        forming: batches that wait for further requests, by key; they are in ``calls``, too.
        report, heard_at: latest report, and when it arrived.
        steps_at: when the number of steps last grew, or nothing ran.
        allowance: number of concurrent requests in probation; doubles with each request that produces output.
        backlog_until: no new requests before this time, because the engine refused one.
        on_doubt: called when it may have lost its room for a new request.
    """

    slot: int
    connected: ConnectedReplica
    model_id: str
    word: InstanceWord = "ready"
    reason: str = ""
    since: float = field(factory=time.monotonic)
    since_start: float = field(factory=time.monotonic)
    attempts: dict[str, Attempt] = field(factory=dict)
    calls: set[asyncio.Future[Any]] = field(factory=set)
    forming: dict[Hashable, Any] = field(factory=dict)
    report: InstanceReport | None = None
    heard_at: float = field(factory=time.monotonic)
    steps: int = 0
    steps_at: float = field(factory=time.monotonic)
    gaps: deque[float] = field(factory=lambda: deque(maxlen=_GAPS))
    allowance: int = 1
    backlog_until: float = 0.0
    migrated_in: int = 0
    migrated_out: int = 0
    served: int = 0
    breaker: Breaker = field(factory=Breaker)
    is_isolated: bool = False
    encodes: bool = field(init=False)
    """Whether it embeds or reranks."""
    _batch: int = field(init=False)
    _changed: asyncio.Event = field(factory=asyncio.Event)
    on_move: Callable[[LiveInstance], object] = field(default=lambda instance: None)
    on_doubt: Callable[[LiveInstance], object] = field(default=lambda instance: None)
    on_heard: Callable[[LiveInstance, InstanceReport], object] = field(default=lambda instance, report: None)

    def __attrs_post_init__(self) -> None:
        capability = self.descriptor.capability
        self.encodes = capability.instance_type == "embedding"
        self._batch = capability.max_batch_size + _SPARE

    @property
    def descriptor(self) -> InstanceDescriptor:
        return self.connected.descriptor

    @property
    def instance_id(self) -> str:
        return self.connected.descriptor.instance_id

    @property
    def generation(self) -> int:
        return self.connected.descriptor.generation

    @property
    def features(self) -> tuple[str, ...]:
        return self.connected.descriptor.capability.features

    @property
    def backend(self) -> Any:
        return self.connected.backend

    @property
    def limit(self) -> int:
        """Maximum number of concurrent requests; further ones wait in the control plane."""
        return min(self._batch, self.allowance) if self.word == "probation" else self._batch

    @property
    def is_open(self) -> bool:
        """Whether it may get new requests at all."""
        return self.word in ("ready", "probation") and not self.is_isolated

    def has_room(self, now: float) -> bool:
        """Whether it can get a new request now."""
        return (
            self.is_open
            and now >= self.backlog_until
            and self.breaker.allows(now)
            and (
                self._has_room_in_batch if self.encodes else len(self.attempts) + len(self.calls) < self.limit
            )
        )

    @property
    def keeps_room(self) -> bool:
        """Whether room that it has now can only end by what calls ``on_doubt``."""
        return self.word == "ready" and not self.encodes and not self.breaker.is_open

    def add(self, attempt: Attempt) -> None:
        """Count a request that is sent to it."""
        self.attempts[attempt.request_id] = attempt
        self._filled()

    def add_call(self, call: asyncio.Future[Any]) -> None:
        self.calls.add(call)
        self._filled()

    def _filled(self) -> None:
        if len(self.attempts) + len(self.calls) >= self.limit:
            self.on_doubt(self)

    def isolate(self) -> None:
        """Send it nothing but the request that it gets now."""
        self.is_isolated = True
        self.on_doubt(self)

    def refused(self, error: Overloaded, now: float) -> None:
        """Its engine had no room for a request: send it none for as long as it says, within bounds."""
        self.backlog_until = now + min(max(error.retry_after, _SHORTEST_PAUSE_S), _LONGEST_PAUSE_S)
        self.on_doubt(self)

    def failed(self, now: float) -> None:
        """Count a request that failed there otherwise."""
        self.breaker.failed(now)
        self.on_doubt(self)

    @property
    def is_joined(self) -> bool:
        """Whether it is a server of others, which orders requests itself, and may refuse priorities."""
        return self.descriptor.capability.backend_name == _JOINED

    @property
    def _has_room_in_batch(self) -> bool:
        most = min(self.allowance, _BATCHES) if self.word == "probation" else _BATCHES
        return len(self.calls) < most or bool(self.forming)

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens of requests without output."""
        return sum(a.prompt_tokens for a in self.attempts.values() if not (a.has_output or a.awaits_kv))

    @property
    def running(self) -> int:
        return sum(a.has_output for a in self.attempts.values())

    @property
    def context_tokens(self) -> int:
        """Tokens of requests with output."""
        return sum(a.prompt_tokens + a.output_tokens for a in self.attempts.values() if a.has_output)

    def left(self) -> None:
        """An attempt or a call has left it; called by who removed it."""
        self._changed.set()

    async def until_idle(self, within_s: float | None = None) -> None:
        """While it drains, wait until nothing runs on it, for at most ``within_s`` seconds."""
        with suppress(TimeoutError):
            async with timeout(within_s):
                while (self.attempts or self.calls) and self.word == "draining":
                    self._changed.clear()
                    await self._changed.wait()

    def move(self, word: InstanceWord, reason: str = "") -> None:
        if word != self.word:
            self.word, self.since = word, time.monotonic()
            if word == "probation":
                self.allowance = 1
        self.reason = reason
        self._changed.set()
        self.on_move(self)

    def heard(self, report: InstanceReport) -> None:
        """Take over a report."""
        now = time.monotonic()
        if self.report is not None:
            self.gaps.append(now - self.heard_at)
        if report.steps != self.steps or report.running == 0:
            self.steps, self.steps_at = report.steps, now
        self.report, self.heard_at = report, now
        self.on_heard(self, report)

    def produced(self) -> None:
        """Record a first token or a result: a request worked here."""
        self.breaker.succeeded()
        self.served += 1
        if self.word == "probation":
            self.allowance *= 2
            self.on_move(self)
            if self.allowance >= self.descriptor.capability.max_batch_size:
                self.move("ready")

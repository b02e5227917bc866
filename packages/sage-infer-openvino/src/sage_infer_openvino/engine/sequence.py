"""A request in the engine and its completions: tokens, blocks, and output."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Callable

from attrs import define, field
from sage_infer.contracts import BufferedTokenStream
from sage_infer.schemas import FinishReason, SamplingParams, Timing, TokenDelta, Usage

from sage_infer_openvino.engine.grammar import GrammarMatcher
from sage_infer_openvino.engine.stop_strings import StopStringDetector
from sage_infer_openvino.models.tokenizer import IncrementalDetokenizer

__all__ = ["Clock", "EngineRequest", "SequenceState"]


@define(eq=False)
class SequenceState:
    """The tokens of one completion and the blocks that hold their KV. Belongs to the engine thread.

    ``computed`` tokens have their KV in ``blocks``; the rest (a prompt, or one new token) is computed next. It
    is reset to 0 by preemption, and everything is recomputed.

    A resumed sequence begins with ``given`` output tokens, and its next delta with their ``undelivered`` text.
    """

    request: EngineRequest
    index: int
    tokens: list[int]
    prompt_length: int
    max_length: int
    detokenizer: IncrementalDetokenizer
    stop_strings: StopStringDetector | None
    computed: int = 0
    blocks: list[int] = field(factory=list)
    keys: list[bytes] = field(factory=list, repr=False)  # of the full blocks of its tokens
    finish_reason: FinishReason | None = None
    grammar: GrammarMatcher | None = None
    given: int = 0
    undelivered: str = ""

    @property
    def output_length(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def new_length(self) -> int:
        """Output tokens without those that it was resumed with."""
        return self.output_length - self.given


@define
class Clock:
    """A request's moments, on ``time.perf_counter``'s clock."""

    accepted: float = field(factory=time.perf_counter)
    started: float | None = None
    first_token: float | None = None
    last_token: float | None = None

    def token(self) -> None:
        self.last_token = time.perf_counter()
        if self.first_token is None:
            self.first_token = self.last_token

    def restart(self) -> None:
        """Restart the clock: the first token exists already, and earlier times belong to another call."""
        self.accepted = self.started = self.first_token = self.last_token = time.perf_counter()

    def timing(self, longest_output: int) -> Timing:
        """The request's times if it ends now. ``longest_output`` is in tokens chosen here."""
        now = time.perf_counter()
        first, last = self.first_token, self.last_token
        gaps = longest_output - 1
        return Timing(
            queue_s=(now if self.started is None else self.started) - self.accepted,
            ttft_s=(now if first is None else first) - self.accepted,
            total_s=now - self.accepted,
            inter_token_s=(last - first) / gaps
            if first is not None and last is not None and gaps > 0
            else None,
        )


@define(eq=False)
class EngineRequest:
    """One prompt with its ``n`` sequences, and the stream that its consumer reads.

    ``loop`` is the consumer's event loop; everything that touches ``stream`` runs there. With ``hold`` the
    sequence stops after its first token and keeps its blocks for ``hold_s`` seconds, until ``decode`` continues it;
    ``on_held`` is then called in ``loop``, with the error where prefill ended in one. ``siblings`` are all requests
    of the same call.
    """

    request_id: str
    params: SamplingParams
    prompt: tuple[int, ...]
    loop: asyncio.AbstractEventLoop
    priority: int = 0
    deadline: float | None = None  # on time.perf_counter's clock
    seed: int = field(factory=lambda: secrets.randbits(63))
    stream: BufferedTokenStream | None = None
    salt: bytes = b""  # only requests with equal salt share KV
    is_private: bool = False  # random salt: KV of a foreign engine is not shared
    hold: bool = False
    hold_s: float = math.inf
    held_until: float = math.inf  # on time.perf_counter's clock
    on_held: Callable[[BaseException | None], None] | None = None
    siblings: list[EngineRequest] = field(factory=list, repr=False)
    sequences: list[SequenceState] = field(factory=list, repr=False)
    first_delta: TokenDelta | None = None
    cached_tokens: int | None = None  # of the prompt, found when it was started first
    arrived_at: float = field(factory=time.perf_counter)  # its position in the queue, kept after preemption
    clock: Clock = field(factory=Clock)

    def usage(self) -> Usage:
        output = sum(sequence.output_length for sequence in self.sequences)
        return Usage(
            prompt_tokens=len(self.prompt), completion_tokens=output, cached_tokens=self.cached_tokens or 0
        )

    def timing(self) -> Timing:
        return self.clock.timing(max(sequence.new_length for sequence in self.sequences))

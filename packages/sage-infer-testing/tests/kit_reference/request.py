"""The form of the reference engine's KV, and a request while it is open."""

from __future__ import annotations

import itertools
import time

import attrs
from sage_infer.contracts import BufferedTokenStream
from sage_infer.schemas import KVCacheSchema, RequestOptions, SamplingParams, Timing, Usage

from kit_reference.sampling import Sequence_

SCHEMA = KVCacheSchema(dtype="fp32", page_size=8, num_layers=1, num_heads=1, head_dim=1)  # 8 bytes a token
TOKEN_BYTES = 8
LIMIT = 160
PAGES_PER_SEQUENCE = LIMIT // SCHEMA.page_size
ORDER = itertools.count()


@attrs.define(eq=False)
class Request:
    """One prompt's sequences and its stream."""

    request_id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    options: RequestOptions
    stream: BufferedTokenStream
    sequences: list[Sequence_]
    cached: int = 0
    accepted: float = attrs.field(factory=time.monotonic)
    started: float = 0.0
    first: float = 0.0
    order: int = attrs.field(factory=lambda: next(ORDER))

    @property
    def is_late(self) -> bool:
        late = self.options.deadline
        return late is not None and time.monotonic() > self.accepted + late

    def usage(self) -> Usage:
        made = sum(len(s.output) for s in self.sequences)
        return Usage(prompt_tokens=len(self.prompt), completion_tokens=made, cached_tokens=self.cached)

    def timing(self) -> Timing:
        now = time.monotonic()
        steps = max(len(s.output) for s in self.sequences) - 1
        gap = (now - self.first) / steps if steps > 0 else None
        first = self.first or now
        return Timing(
            queue_s=(self.started or now) - self.accepted, ttft_s=first - self.accepted,
            total_s=now - self.accepted, inter_token_s=gap,
        )  # fmt: skip

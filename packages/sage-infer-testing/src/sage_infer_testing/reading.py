"""Read a whole stream for comparison, and check the guarantees of every stream while reading."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from attrs import define, field
from sage_infer.contracts import PromptLike, TokenStream
from sage_infer.schemas import FinishReason, SamplingParams, Timing, TokenDelta, TokenLogprob, Usage

__all__ = ["Completion", "Output", "generate_all", "generate_one", "greedy", "read"]


@define
class Completion:
    """Everything that arrived for one index of a stream."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None


@define
class Output:
    """All output of a stream."""

    request_id: str
    deltas: list[TokenDelta]
    completions: dict[int, Completion]
    finish_reason: FinishReason | None
    usage: Usage | None
    timing: Timing | None

    @property
    def text(self) -> str:
        return self.completions[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.completions[0].token_ids

    def counted(self) -> Usage:
        """Return the usage; fail if the stream has none."""
        assert self.usage is not None, "usage is None after the stream has ended"
        return self.usage

    def measured(self) -> Timing:
        """Return the timing; fail if the stream has none."""
        assert self.timing is not None, "timing is None after the stream has ended"
        return self.timing


@define
class _Reader:
    completions: dict[int, Completion] = field(factory=dict)

    def take(self, delta: TokenDelta) -> None:
        completion = self.completions.setdefault(delta.index, Completion())
        assert completion.finish_reason is None, (
            f"completion {delta.index} got {delta!r} after its finish_reason {completion.finish_reason!r}"
        )
        completion.text += delta.text
        completion.token_ids += tuple(delta.token_ids)
        completion.logprobs += delta.logprobs or ()
        completion.finish_reason = delta.finish_reason


async def read(stream: TokenStream, begun: asyncio.Event | None = None) -> Output:
    """Read the whole stream. Fails if a completion continues after its end, or never ends.

    ``begun`` is set at the first delta, and at the end.
    """
    reader, deltas = _Reader(), []
    try:
        async for delta in stream:
            if begun is not None:
                begun.set()
            deltas.append(delta)
            reader.take(delta)
    finally:
        if begun is not None:
            begun.set()
    assert reader.completions, f"stream {stream.request_id!r} ended without a single delta"
    open_ones = [index for index, c in reader.completions.items() if c.finish_reason is None]
    assert not open_ones, (
        f"stream {stream.request_id!r} ended without a finish_reason for completion {open_ones}"
    )
    return Output(
        stream.request_id, deltas, reader.completions, stream.finish_reason, stream.usage, stream.timing
    )


def greedy(max_tokens: int, **more: Any) -> SamplingParams:
    """Return greedy sampling of exactly ``max_tokens`` tokens; end-of-sequence is ignored."""
    return SamplingParams(**{"temperature": 0.0, "max_tokens": max_tokens, "ignore_eos": True, **more})


async def generate_one(backend: Any, prompt: PromptLike, params: SamplingParams, **options: Any) -> Output:
    """Generate for one prompt and read the whole output."""
    streams = await backend.generate(prompt, params, **options)
    assert len(streams) == 1, f"one prompt must return one stream, got {len(streams)}"
    return await read(streams[0])


async def generate_all(backend: Any, prompts: Sequence[PromptLike], params: SamplingParams) -> list[Output]:
    """Generate for several prompts in one call and read all outputs, in the order of the prompts."""
    streams = await backend.generate(prompts, params)
    assert len(streams) == len(prompts), (
        f"{len(prompts)} prompts must return as many streams, got {len(streams)}"
    )
    return list(await asyncio.gather(*[read(stream) for stream in streams]))

"""Engines that compute nothing: every 5 ms they push one token to each stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import ClassVar

from sage_infer import BackendSpec, hookimpl
from sage_infer.contracts import BufferedTokenStream, PromptLike, TokenStream, as_prompts, request_ids
from sage_infer.schemas import RequestOptions, SamplingParams, Timing, TokenDelta, Usage
from sage_infer.sdk import BaseInferenceBackend

SAGE_INFER_CONTRACT = "1.0"
STEP_S = 0.005


@hookimpl
def sage_infer_backends() -> list[BackendSpec]:
    return [BackendSpec(name="timed", factory="timed_engine:TimedEngine", serves={"llm"})]


class SteppingEngine(BaseInferenceBackend):
    """Pushes one token per stream and step."""

    name: ClassVar[str] = "stepping"
    features: ClassVar[Sequence[str]] = ("streaming",)
    vocabulary = 1 << 16

    async def start(self) -> None:
        await super().start()
        self._open: dict[BufferedTokenStream, list[int]] = {}
        self._stepping = asyncio.get_running_loop().create_task(self._step())

    async def close(self) -> None:
        self._stepping.cancel()
        await super().close()

    async def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> list[TokenStream]:
        several = as_prompts(prompts)
        streams = [
            BufferedTokenStream(one, lambda: None) for one in request_ids(request_id or "r", len(several))
        ]
        self._open.update({stream: [0, params.max_tokens or 1] for stream in streams})
        return list(streams)

    async def _step(self) -> None:
        usage = Usage(prompt_tokens=1)
        timing = Timing(queue_s=0.0, ttft_s=0.0, total_s=0.0)
        while True:
            await asyncio.sleep(STEP_S)
            for stream, count in list(self._open.items()):
                count[0] += 1
                last = count[0] == count[1]
                stream.push(TokenDelta(self.text(), (count[0],), finish_reason="length" if last else None))
                if last:
                    del self._open[stream]
                    stream.finish("length", usage, timing)

    def text(self) -> str:
        """The text of the next token."""
        return " token"


class TimedEngine(SteppingEngine):
    """The text of a token is the time of its push on the machine's monotonic clock, in nanoseconds."""

    name: ClassVar[str] = "timed"

    def text(self) -> str:
        return f"{time.monotonic_ns()} "

"""The embedded engine, whose process ends when it is asked for a certain text."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Any

from sage_infer.contracts import PromptLike, TokenStream, as_prompts
from sage_infer.schemas import DecodeState, SamplingParams
from sage_infer_openvino.backend import OpenVINOBackend

__all__ = ["CrashingBackend"]

MARK = "poisonous lighthouse"


class CrashingBackend(OpenVINOBackend):
    """Crashes by SIGSEGV, as a fault in a kernel does."""

    async def generate(
        self, prompts: PromptLike | Sequence[PromptLike], params: SamplingParams, **options: Any
    ) -> list[TokenStream]:
        for prompt in as_prompts(prompts):
            ids = prompt.token_ids or ()
            if MARK in (prompt.text or await self.detokenize(list(ids))):
                os.kill(os.getpid(), signal.SIGSEGV)
        return await super().generate(prompts, params, **options)

    async def resume(self, states: Sequence[DecodeState], **options: Any) -> TokenStream:
        for state in states:
            if MARK in await self.detokenize(list(state.prompt_token_ids)):
                os.kill(os.getpid(), signal.SIGSEGV)
        return await super().resume(states, **options)

"""Prefill on one engine, decode on another: vLLM and OpenVINO with one model, in one process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import attrs
import pytest
from sage_infer import open_backend
from sage_infer.schemas import DecodeState, SamplingParams
from sage_infer.schemas.codec import from_json, to_json
from sage_infer_testing.loop import LoopThread

pytestmark = pytest.mark.skipif(
    find_spec("vllm") is None or find_spec("openvino") is None,
    reason="needs vLLM and OpenVINO in one environment; `hatch run vllm.0.32:across` has both",
)

TIMEOUT_S = 600.0
TOKENS = 12
NEAR_TIE = 0.02  # difference of log probabilities that the engines' own KV (equal to 1e-4) may decide
SUBJECTS = (
    "memory bandwidth", "the KV cache", "batching", "the length of a prompt", "quantization", "a page table",
    "a scheduler", "attention", "rotary embeddings", "a tokenizer",
)  # fmt: skip
FILLER = (
    "The engine reads a page of keys and values for every token that it computes, and writes one of its own. "
)
PARAMS = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
VLLM = {
    "dtype": "float32", "eager": True, "kv_cache_gb": 0.5, "max_batch_size": 32, "max_sequence_length": 1024,
}  # fmt: skip
OPENVINO = {"weight_format": "f32", "kv_cache_gb": 0.5, "max_batch_size": 32}


class Engines:
    """Opens each backend when it is first asked for, and keeps it."""

    def __init__(self) -> None:
        self.loop = LoopThread("engines")
        self._opened: dict[str, Any] = {}
        self._closers: list[Any] = []

    def get(self, name: str, **options: Any) -> Any:
        key = f"{name} {sorted(options.items())}"
        if key not in self._opened:
            context = open_backend(name, model="smollm2-135m", serves="llm", **options)
            self._opened[key] = self.loop.run(context.__aenter__(), timeout_s=TIMEOUT_S)
            self._closers.append(context)
        return self._opened[key]

    def close(self) -> None:
        for context in self._closers:
            self.loop.run(context.__aexit__(None, None, None), timeout_s=TIMEOUT_S)
        self.loop.close()


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    found = Engines()
    yield found
    found.close()


async def prompts(backend: Any) -> list[list[int]]:
    """Twenty prompts of 20 to 420 tokens, so of a part of a page, and of several."""
    texts = [
        FILLER * (2 * number) + f"In one sentence, why does {subject} matter?"
        for number, subject in enumerate((*SUBJECTS, *SUBJECTS))
    ]
    return [list(await backend.tokenize(text)) for text in texts]


async def output(stream: Any) -> tuple[list[int], list[float]]:
    """Tokens, and how far the second most likely one was at each."""
    tokens: list[int] = []
    gaps: list[float] = []
    async for delta in stream:
        tokens += delta.token_ids
        for entry in delta.logprobs or ():
            first, second = sorted((p for _, _, p in entry.alternatives), reverse=True)[:2]
            gaps.append(first - second)
    return tokens, gaps


async def own(backend: Any, prompt: list[int], first: int) -> tuple[list[int], list[float]]:
    """The target's own greedy tokens after the prompt and the first token."""
    params = attrs.evolve(PARAMS, max_tokens=TOKENS - 1, logprobs=2)
    (stream,) = await backend.generate([*prompt, first], params)
    return await output(stream)


async def handed_over(source: Any, target: Any, prompt: list[int], request_id: str) -> list[int]:
    """Tokens of a request that the source has prefilled and the target decodes."""
    result = await source.prefill(prompt, request_id=request_id, params=PARAMS)
    state, buffers = await source.export_kv(result.states[0])
    await source.abort(request_id)
    arrived = await target.import_kv(from_json(to_json(state), DecodeState), buffers)
    assert arrived.kv_schema == target.get_kv_schema()
    tokens, _ = await output((await target.decode(arrived, request_id=request_id)).stream)
    return tokens


async def agreement(source: Any, target: Any, near_tie: float) -> int:
    """How many of twenty continuations equal the target's own; each other must leave it at a near tie."""
    asked = await prompts(target)
    found = await asyncio.gather(
        *(handed_over(source, target, prompt, f"r{i}") for i, prompt in enumerate(asked))
    )
    expected = await asyncio.gather(
        *(own(target, prompt, tokens[0]) for prompt, tokens in zip(asked, found, strict=True))
    )
    equal = 0
    for (_, *rest), (tokens, gaps) in zip(found, expected, strict=True):
        assert len(rest) == len(tokens) == TOKENS - 1
        at = next((i for i, (a, b) in enumerate(zip(rest, tokens, strict=True)) if a != b), None)
        equal += at is None
        assert at is None or gaps[at] < near_tie, f"token {at + 1} differs where the gap is {gaps[at]:.3f}"
    return equal


@pytest.mark.parametrize(("source", "target"), [("vllm", "openvino"), ("openvino", "vllm")])
def test_the_target_continues_with_its_own_tokens(engines: Engines, source: str, target: str) -> None:
    options = {"vllm": VLLM, "openvino": OPENVINO}
    here, there = (engines.get(name, **options[name]) for name in (source, target))
    equal = engines.loop.run(agreement(here, there, NEAR_TIE), timeout_s=TIMEOUT_S)
    print(f"\n{source} -> {target}, float32: {equal} of 20 continuations equal the target's own")
    assert equal >= 18

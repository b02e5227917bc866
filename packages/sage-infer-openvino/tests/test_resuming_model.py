"""Outputs of the sample model in float32, resumed after every token, equal the uninterrupted ones."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
from openvino_toy import deltas, descriptor, run
from sage_infer.schemas import DecodeState, GuidedDecoding, SamplingParams, TokenDelta, Usage
from sage_infer_openvino.backend import OpenVINOBackend

pytestmark = pytest.mark.long

LENGTH = 48
CLOSE = 1e-3  # log probabilities: float32 sums in another order
QUESTION = "Write three sentences about lighthouses, with a café and an emoji."
TEXT = "Ahoy 🦜🌊🏴\u200d☠️ naïve 👩\u200d🚀!"
CALL = r'<tool_call>\n\{"name": "weather", "arguments": \{"city": "[A-Z][a-z]{2,9}", "days": [0-9]\}\}\n</tool_call>'
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}}},
}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "height": {"enum": [7, 70, 700]}},
    "required": ["name", "height"],
    "additionalProperties": False,
}
# Sums in another order move the borders between tokens by about 1e-6: with few of them no draw falls on one.
RANDOM = {"temperature": 0.9, "top_k": 8, "seed": 7, "ignore_eos": True}


@pytest.fixture(scope="module")
def backend(smollm2_gguf: Path, cache_dir: Path) -> Iterator[OpenVINOBackend]:
    model = descriptor(smollm2_gguf, "smollm2-135m")
    opened = OpenVINOBackend(
        model, cache_dir=str(cache_dir), kv_cache_gb=0.5, max_sequence_length=512, max_batch_size=64
    )
    asyncio.run(opened.start())
    yield opened
    asyncio.run(opened.close())


def joined(parts: Sequence[TokenDelta], index: int) -> tuple[list[int], str, str | None]:
    """Tokens, text and finish reason of one completion."""
    own = [delta for delta in parts if delta.index == index]
    return [t for d in own for t in d.token_ids], "".join(d.text for d in own), own[-1].finish_reason


async def whole_output(
    backend: OpenVINOBackend, prompt: list[int], params: SamplingParams
) -> list[TokenDelta]:
    (stream,) = await backend.generate(prompt, params)
    return await deltas(stream)


async def check_cut(
    backend: OpenVINOBackend, prompt: list[int], params: SamplingParams, whole: list[TokenDelta], cut: int
) -> None:
    """Resume after the first ``cut`` deltas, on what could be another instance, and compare."""
    given = whole[:cut]
    states, count = [], 0
    for index in range(params.n):
        own = [delta for delta in given if delta.index == index]
        if own and own[-1].finish_reason is not None:
            continue
        count += len(joined(whole, index)[0])
        states.append(
            DecodeState(
                request_id="elsewhere", model_id="smollm2-135m", instance_id="elsewhere", prompt_token_ids=prompt,
                output_token_ids=[t for d in own for t in d.token_ids], index=index, params=params,
                delivered_chars=sum(len(d.text) for d in own), seed=params.seed or 0,
            )
        )  # fmt: skip
    stream = await backend.resume(states, request_id=f"cut-{cut}")
    rest = await deltas(stream)
    for state in states:
        assert joined([*given, *rest], state.index) == joined(whole, state.index), f"cut after {cut}"
    assert stream.usage is not None
    cached = stream.usage.cached_tokens
    assert stream.usage == Usage(prompt_tokens=len(prompt), completion_tokens=count, cached_tokens=cached)
    for index in {state.index for state in states}:
        own, expected = ([d for d in parts if d.index == index] for parts in (rest, whole))
        for delta, wanted in zip(own, expected[-len(own) :], strict=True):
            assert _logprobs(delta) == pytest.approx(_logprobs(wanted), abs=CLOSE)


def _logprobs(delta: TokenDelta) -> list[float]:
    return [p for entry in delta.logprobs or () for p in (entry.logprob, *(a[2] for a in entry.alternatives))]


async def check_every_cut(
    backend: OpenVINOBackend, params: SamplingParams, question: str = QUESTION, tools: Any = None
) -> list[TokenDelta]:
    message = {"role": "user", "content": question}
    prompt = await backend.tokenize(await backend.render_chat([message], tools=tools))
    whole = await whole_output(backend, prompt, params)
    # One cut after each token, and for several completions after each step.
    cuts = range(0, len(whole), params.n)
    await asyncio.gather(*[check_cut(backend, prompt, params, whole, cut) for cut in cuts])
    return whole


@pytest.mark.parametrize(
    "params",
    [
        {"ignore_eos": True, "logprobs": 2},
        RANDOM,
        {**RANDOM, "repetition_penalty": 1.2, "presence_penalty": 1.0, "frequency_penalty": 1.0},
    ],
    ids=["greedy", "seeded", "penalties"],
)
def test_48_tokens(backend: OpenVINOBackend, params: dict[str, Any]) -> None:
    asked = SamplingParams(**{"temperature": 0.0, "max_tokens": LENGTH, **params})
    assert len(run(check_every_cut(backend, asked), 600)) == LENGTH


def test_three_completions(backend: OpenVINOBackend) -> None:
    """They end at different steps, so that later cuts have fewer states."""
    asked = SamplingParams(temperature=0.9, top_k=8, seed=7, n=3, max_tokens=LENGTH, stop=["."])
    whole = run(check_every_cut(backend, asked), 600)
    assert len({len(joined(whole, index)[0]) for index in range(3)}) > 1


def test_guided_json(backend: OpenVINOBackend) -> None:
    asked = SamplingParams(temperature=0.0, max_tokens=LENGTH, guided=GuidedDecoding(json_schema=SCHEMA))
    whole = run(check_every_cut(backend, asked, "Describe a lighthouse as JSON."), 600)
    assert joined(whole, 0)[2] == "stop"


def test_stop_string_across_the_cut(backend: OpenVINOBackend) -> None:
    async def main() -> None:
        prompt = await backend.tokenize(await backend.render_chat([{"role": "user", "content": QUESTION}]))
        plain = SamplingParams(temperature=0.0, max_tokens=LENGTH)
        tokens = joined(await whole_output(backend, prompt, plain), 0)[0]
        stop = await backend.detokenize(tokens[19:23])
        whole = await check_every_cut(backend, attrs.evolve(plain, stop=(stop,)))
        assert joined(whole, 0)[2] == "stop"
        assert [delta.text for delta in whole[-4:]] == [""] * 4, "no cut was inside the stop string"

    run(main(), 600)


def test_emoji_split_over_tokens(backend: OpenVINOBackend) -> None:
    asked = SamplingParams(temperature=0.0, max_tokens=LENGTH, guided=GuidedDecoding(choice=(TEXT,)))
    whole = run(check_every_cut(backend, asked), 600)
    assert joined(whole, 0)[1] == TEXT
    assert "" in [delta.text for delta in whole[:-1]], "no cut was inside a character"


def test_tool_call(backend: OpenVINOBackend) -> None:
    asked = SamplingParams(temperature=0.0, max_tokens=LENGTH, guided=GuidedDecoding(regex=CALL))
    whole = run(check_every_cut(backend, asked, "How is the weather in Oslo?", [TOOL]), 600)
    assert "weather" in joined(whole, 0)[1]
    assert joined(whole, 0)[2] == "stop"


def test_min_tokens(backend: OpenVINOBackend) -> None:
    """An end that comes before ``min_tokens`` is put off until then, wherever the cut is."""

    async def main() -> None:
        question = "What is the capital of France?"
        prompt = await backend.tokenize(await backend.render_chat([{"role": "user", "content": question}]))
        plain = SamplingParams(temperature=0.0, max_tokens=LENGTH)
        whole = await check_every_cut(backend, attrs.evolve(plain, min_tokens=24), question)
        assert len(await whole_output(backend, prompt, plain)) < 24 <= len(whole)

    run(main(), 600)

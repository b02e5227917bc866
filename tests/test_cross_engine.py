"""Prefill on one engine, decode on another: vLLM and OpenVINO with one model, in one process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import attrs
import pytest
from sage_infer import open_backend
from sage_infer.discovery import model_specs
from sage_infer.errors import CapabilityMismatch
from sage_infer.models import add_model
from sage_infer.plugins import open_transport
from sage_infer.schemas import DecodeState, SamplingParams
from sage_infer.schemas.codec import from_json, to_json
from sage_infer_testing.loop import LoopThread
from sage_infer_transport import TCPEndpoint, fetch_state, publish_state

pytestmark = pytest.mark.skipif(
    find_spec("vllm") is None or find_spec("openvino") is None,
    reason="needs vLLM and OpenVINO in one environment; `hatch run vllm.0.32:across` has both",
)

TIMEOUT_S = 600.0
TOKENS = 12
ROUNDED_TIE = {"f16": 0.2, "u8": 1.0}
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
    """Opens a backend when it is first asked for, and closes it for other options: one of each is in memory."""

    def __init__(self) -> None:
        self._loop = LoopThread("engines")
        self._open: dict[str, tuple[dict[str, Any], Any, Any]] = {}

    def run(self, coroutine: Any) -> Any:
        return self._loop.run(coroutine, timeout_s=TIMEOUT_S)

    def get(self, name: str, **options: Any) -> Any:
        if name in self._open and self._open[name][0] != options:
            self._close(name)
        if name not in self._open:
            context = open_backend(name, model="smollm2-135m", serves="llm", **options)
            self._open[name] = options, context, self.run(context.__aenter__())
        return self._open[name][2]

    def _close(self, name: str) -> None:
        _, context, _ = self._open.pop(name)
        self.run(context.__aexit__(None, None, None))

    def close(self) -> None:
        for name in list(self._open):
            self._close(name)
        self._loop.close()


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    add_model(model_specs()["smollm2-135m"])
    with pytest.MonkeyPatch.context() as patch:
        # One thread: threads that wait for each other by spinning are slow on a busy machine.
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
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
    print(f"\n{equal} of {len(asked)} continuations equal the target's own")
    return equal


@pytest.mark.parametrize(("source", "target"), [("vllm", "openvino"), ("openvino", "vllm")])
def test_the_target_continues_with_its_own_tokens(engines: Engines, source: str, target: str) -> None:
    """In float32, where both engines compute the same KV to 1e-4."""
    options = {"vllm": VLLM, "openvino": OPENVINO}
    here, there = (engines.get(name, **options[name]) for name in (source, target))
    assert engines.run(agreement(here, there, NEAR_TIE)) >= 18


def test_a_transport_carries_it_and_other_weights_are_refused(engines: Engines) -> None:
    source, target = engines.get("vllm", **VLLM), engines.get("openvino", **OPENVINO)

    async def main() -> None:
        prompt = (await prompts(target))[3]
        result = await source.prefill(prompt, request_id="moved", params=PARAMS)
        assert result.states[0].weights_id == (await weights_of(target))
        here, there = TCPEndpoint(), TCPEndpoint()
        transport = open_transport("tcp")
        try:
            state = await publish_state(result.states[0], source=source, endpoint=here)
            other = attrs.evolve(state, weights_id="0" * 32)
            with pytest.raises(CapabilityMismatch, match="with the weights 0000"):
                await fetch_state(other, target=target, endpoint=there, transport=transport)
            unknown = attrs.evolve(state, weights_id="")
            with pytest.raises(CapabilityMismatch, match="does not name its weights"):
                await fetch_state(unknown, target=target, endpoint=there, transport=transport)
            arrived, report = await fetch_state(state, target=target, endpoint=there, transport=transport)
            assert report.moved_bytes == sum(chunk.nbytes for chunk in state.chunks)
            tokens, _ = await output((await target.decode(arrived, request_id="moved")).stream)
            assert len(tokens) == TOKENS
        finally:
            await transport.close()
            here.close()
            there.close()
            await source.abort("moved")

    engines.run(main())


async def weights_of(backend: Any) -> str:
    result = await backend.prefill([1, 2, 3], request_id="weights", params=PARAMS)
    await backend.abort("weights")
    return str(result.states[0].weights_id)


@pytest.mark.parametrize("precision", ["f16", "u8"])
@pytest.mark.parametrize("is_source", [False, True], ids=["from-vllm", "to-vllm"])
def test_kv_of_fewer_bits_goes_both_ways(engines: Engines, precision: str, is_source: bool) -> None:
    """Rounded KV changes tokens, but only where the second choice was close to the first."""
    vllm, openvino = engines.get("vllm", **VLLM), engines.get("openvino", **OPENVINO, kv_precision=precision)
    source, target = (openvino, vllm) if is_source else (vllm, openvino)
    assert engines.run(agreement(source, target, ROUNDED_TIE[precision])) >= 10

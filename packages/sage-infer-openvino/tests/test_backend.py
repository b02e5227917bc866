"""The backend with the sample model: equal to transformers, alone and concurrently, in this and another process."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openvino_toy import deltas, descriptor, greedy, run, tokens
from sage_infer import open_backend
from sage_infer.contracts import InferenceBackend, KVTransfer, collect_text
from sage_infer.errors import ModelNotFound, SchemaError
from sage_infer.schemas import GuidedDecoding, Prompt, SamplingParams
from sage_infer.schemas.codec import to_json
from sage_infer_openvino.backend import OpenVINOBackend
from sage_infer_openvino.device import check_precision
from sage_infer_openvino.ov_runtime import ov

Reference = Callable[[str], list[dict[str, Any]]]
TIE = 1e-3  # float32 sums in another order may swap logits that are this near


@pytest.fixture(scope="module")
def backend(smollm2_gguf: Path, cache_dir: Path) -> Iterator[OpenVINOBackend]:
    model = descriptor(smollm2_gguf, "smollm2-135m")
    opened = OpenVINOBackend(model, cache_dir=str(cache_dir), kv_cache_gb=0.5, max_sequence_length=1024)
    asyncio.run(opened.start())
    yield opened
    asyncio.run(opened.close())


async def all_tokens(backend: OpenVINOBackend, prompts: Any, params: SamplingParams) -> list[list[int]]:
    return await asyncio.gather(*map(tokens, await backend.generate(prompts, params)))


def same(ours: list[int], case: dict[str, Any]) -> bool:
    """Whether an output is the reference's, up to a tie."""
    different = [i for i, (a, b) in enumerate(zip(ours, case["output"], strict=False)) if a != b]
    return not different or case["gaps"][different[0]] < TIE


def test_greedy_output_is_that_of_transformers(backend: OpenVINOBackend, reference: Reference) -> None:
    cases = reference("greedy_smollm2.json")
    outputs = run(all_tokens(backend, [case["prompt"] for case in cases], greedy(32)))
    assert [case["text"] for case, output in zip(cases, outputs, strict=True) if not same(output, case)] == []


@pytest.mark.long
def test_32_concurrent_prompts_equal_separate_ones(backend: OpenVINOBackend, reference: Reference) -> None:
    async def main() -> None:
        texts = [case["text"] for case in reference("greedy_smollm2.json")]
        prompts = [*texts, *(f"{text} and" for text in texts)][:32]
        together = await all_tokens(backend, prompts, greedy(8))
        for prompt, output in zip(prompts, together, strict=True):
            assert [output] == await all_tokens(backend, prompt, greedy(8)), prompt

    run(main())


def test_chat_answers(backend: OpenVINOBackend) -> None:
    async def main() -> None:
        prompt = await backend.render_chat([{"role": "user", "content": "What is the capital of France?"}])
        assert isinstance(prompt, Prompt)
        (stream,) = await backend.generate(prompt, SamplingParams(temperature=0.0, max_tokens=32))
        assert "Paris" in await collect_text(stream)
        assert stream.finish_reason == "stop"
        bare = await backend.render_chat([{"role": "user", "content": "Hi"}], add_generation_prompt=False)
        assert not (bare.text or "").endswith("assistant\n")

    run(main())


def test_streams_text_and_log_probabilities(backend: OpenVINOBackend) -> None:
    async def main() -> None:
        params = SamplingParams(temperature=1.0, seed=1, logprobs=2, max_tokens=8, n=2, ignore_eos=True)
        (stream,) = await backend.generate("Once upon a time", params)
        parts = await deltas(stream)
        assert len(parts) == 16
        for delta in parts:
            assert delta.logprobs is not None
            (entry,) = delta.logprobs
            assert entry.token_id == delta.token_ids[0]
            assert entry.logprob <= 0
            assert len(entry.alternatives) == 2

    run(main())


def test_its_capability(backend: OpenVINOBackend) -> None:
    assert isinstance(backend, InferenceBackend)
    assert isinstance(backend, KVTransfer)
    capability, schema = backend.get_capability(), backend.get_kv_schema()
    assert capability.kv_schema == schema
    assert (schema.num_layers, schema.num_heads, schema.head_dim, schema.dtype) == (30, 3, 64, "fp32")
    stats = backend.stats()
    assert capability.kv_cache_capacity_gb == stats.kv_blocks_total * schema.bytes_per_page / 2**30
    assert capability.kv_cache_capacity_gb == pytest.approx(0.5, abs=0.01)
    assert capability.hardware_backend == "cpu"
    assert capability.max_sequence_length == 1024
    assert {"chat", "kv_export", "prefill_decode"} <= set(capability.features)
    # fp16 only where the instance runs in it: some CPUs compute wrong numbers in it, which the start then finds out.
    assert set(capability.supported_precisions) == set(check_precision(ov.Core(), "CPU", "f32")) - {"fp16"}


CHILD = """
import asyncio, json, sys
from sage_infer.schemas import DecodeState
from sage_infer.schemas.codec import from_json
from sage_infer_openvino.backend import OpenVINOBackend
from sage_infer_openvino.device import check_precision
from sage_infer_openvino.ov_runtime import ov
from openvino_toy import descriptor, tokens

order = json.loads(sys.stdin.buffer.readline())
state = from_json(order["state"], DecodeState)
buffers = [memoryview(sys.stdin.buffer.read(size)) for size in order["sizes"]]

async def main():
    backend = OpenVINOBackend(descriptor(order["path"], "smollm2-135m"), cache_dir=order["cache"], kv_cache_gb=0.1)
    await backend.start()
    try:
        state_here = await backend.import_kv(state, buffers)
        return await tokens((await backend.decode(state_here, request_id="there")).stream)
    finally:
        await backend.close()

print(json.dumps(asyncio.run(main())))
"""


@pytest.mark.long
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 11}], ids=["greedy", "seeded"])
def test_another_process_continues_with_exported_kv(
    backend: OpenVINOBackend,
    smollm2_gguf: Path,
    cache_dir: Path,
    reference: Reference,
    sampling: dict[str, Any],
) -> None:
    prompt = reference("greedy_smollm2.json")[4]["prompt"] * 3  # several blocks, the last one not full
    params = greedy(16, **sampling)

    async def here() -> tuple[list[int], str, list[memoryview]]:
        (expected,) = await all_tokens(backend, prompt, params)
        result = await backend.prefill(prompt, request_id="here", params=params)
        state, buffers = await backend.export_kv(result.states[0])
        await backend.abort("here")
        return expected, to_json(state), buffers

    expected, state, buffers = run(here())
    assert len(buffers) > 1
    order = {
        "state": state,
        "sizes": [b.nbytes for b in buffers],
        "path": str(smollm2_gguf),
        "cache": str(cache_dir),
    }
    child = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=b"".join([json.dumps(order).encode() + b"\n", *buffers]),
        capture_output=True,
        timeout=600,
        cwd=Path(__file__).parent,
    )
    assert child.returncode == 0, child.stderr.decode()[-2000:]
    assert json.loads(child.stdout.splitlines()[-1]) == expected


@pytest.mark.long
def test_kv_of_another_precision_is_converted(
    backend: OpenVINOBackend, smollm2_gguf: Path, cache_dir: Path
) -> None:
    async def main() -> None:
        model = descriptor(smollm2_gguf, "smollm2-135m")
        result = await backend.prefill("The sky is", request_id="here", params=greedy(3))
        state, buffers = await backend.export_kv(result.states[0])
        await backend.abort("here")
        async with open_backend(
            "openvino", model=model, cache_dir=str(cache_dir), kv_cache_gb=0.1, kv_precision="u8", threads=1
        ) as small:
            schema = small.get_kv_schema()
            assert (schema.dtype, schema.value_scale_granularity, schema.zero_points) == (
                "int8",
                "token_head",
                True,
            )
            arrived = await small.import_kv(state, buffers)
            continued = await tokens((await small.decode(arrived, request_id="there")).stream)
            # The fourth token is a near tie, which rounding may decide either way.
            assert [continued] == await all_tokens(small, "The sky is", greedy(3))
            # Its own KV comes back to it, byte for byte.
            expected = await all_tokens(small, "The sky is", greedy(6))
            own = await small.prefill("The sky is", request_id="a", params=greedy(6))
            state, buffers = await small.export_kv(own.states[0])
            assert [b.nbytes for b in buffers] == [schema.bytes_per_page] * len(buffers)
            await small.abort("a")
            state = await small.import_kv(state, buffers)
            assert [await tokens((await small.decode(state, request_id="b")).stream)] == expected

    run(main())


@pytest.mark.long
def test_sequences_end_where_the_cache_does(smollm2_gguf: Path, cache_dir: Path) -> None:
    async def main() -> None:
        model = descriptor(smollm2_gguf, "smollm2-135m")
        async with open_backend(
            "openvino", model=model, cache_dir=str(cache_dir), kv_cache_gb=0.003
        ) as small:
            assert small.get_capability().max_sequence_length == 64  # two blocks
            (output,) = await all_tokens(small, "The sky is", greedy())
            assert len(output) == 61

    run(main())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"precision": "int3"}, "precision: must be one of"),
        ({"kv_cache_gb": 0}, "kv_cache_gb: must be"),
        ({"device": ""}, "an OpenVINO device such as CPU"),
        ({"threads": 0, "max_queue": 0}, "max_queue.*threads|threads.*max_queue|max_queue: must be"),
    ],
)
def test_wrong_options_are_rejected_immediately(options: dict[str, Any], says: str) -> None:
    with pytest.raises(SchemaError, match=says):
        OpenVINOBackend(descriptor(Path("/nowhere"), "x"), **options)


def test_a_missing_model(cache_dir: Path) -> None:
    async def main() -> None:
        missing = descriptor(Path("/nowhere/model.gguf"), "x")
        opened = OpenVINOBackend(missing, cache_dir=str(cache_dir))
        with pytest.raises(ModelNotFound, match=r"/nowhere/model.gguf: no such file"):
            await opened.start()
        await opened.close()

    run(main())


def test_a_prefix_that_was_computed_before_is_not_computed_again(backend: OpenVINOBackend) -> None:
    async def main() -> None:
        prompt = [100 + 7 * i % 5000 for i in range(400)]
        outputs, cached, ttft = [], [], []
        for _ in range(3):
            (stream,) = await backend.generate(prompt, greedy(12))
            outputs.append(await tokens(stream))
            assert stream.usage is not None
            assert stream.timing is not None
            cached.append(stream.usage.cached_tokens)
            ttft.append(stream.timing.ttft_s)
        assert outputs[1] == outputs[2] == outputs[0]
        assert cached == [0, 384, 384]
        assert min(ttft[1:]) < ttft[0] / 3

    run(main())


def test_guided_answers(backend: OpenVINOBackend) -> None:
    async def main() -> None:
        prompt = await backend.render_chat(
            [{"role": "user", "content": "Where is the Eiffel tower? Answer in JSON."}]
        )
        city = {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Berlin", "Rome"]}},
            "required": ["city"],
        }
        for constraint, answer in (
            (GuidedDecoding(json_schema={**city, "additionalProperties": False}), '{"city": "Paris"}'),
            (GuidedDecoding(choice=("Berlin", "Paris", "Rome")), "Paris"),
        ):
            params = SamplingParams(temperature=0.0, max_tokens=40, guided=constraint)
            (stream,) = await backend.generate(prompt, params)
            assert await collect_text(stream) == answer
            assert stream.finish_reason == "stop"

    run(main())

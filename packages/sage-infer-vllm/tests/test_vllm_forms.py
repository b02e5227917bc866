"""Models with every kind of attention on a real vLLM: they start, produce vLLM's tokens, and have an exact schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sage_infer.errors import BackendUnavailable, UnsupportedFeature
from sage_infer.schemas import KVCacheSchema, KVGroup, ModelDescriptor, SamplingParams
from sage_infer_testing.loop import LoopThread
from sage_infer_vllm.backend import VLLMBackend
from vllm_models import VOCABULARY, write_model
from vllm_toys import have_vllm

pytestmark = [
    pytest.mark.vllm_newest,
    pytest.mark.skipif(
        not have_vllm(), reason="vLLM is not installed in this environment; `hatch run vllm:test` has it"
    ),
]

OPTIONS: dict[str, Any] = {
    "eager": True, "kv_cache_gb": 0.05, "max_batch_size": 2, "max_sequence_length": 256,
    "engine_options": {"max_num_batched_tokens": 256},
}  # fmt: skip
# Longer than the windows, and than a page.
PROMPT = [3 + (7 * place) % (VOCABULARY - 3) for place in range(150)]
TOKENS = 12


@pytest.fixture
def loop(live: Any) -> Any:
    live.stop()  # one engine at a time
    thread = LoopThread("vllm-forms")
    yield lambda coroutine: thread.run(coroutine, timeout_s=300)
    thread.close()


async def _generated(backend: VLLMBackend) -> list[int]:
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    (stream,) = await backend.generate(PROMPT, params)
    return [token async for delta in stream for token in delta.token_ids]


async def _generated_by_vllm(backend: VLLMBackend) -> list[int]:
    running = backend._running
    assert running is not None
    compat = running.compat
    params = compat.SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    found: list[int] = []
    async for output in running.engine.llm.generate(compat.tokens_input(PROMPT), params, "raw"):
        found = list(output.outputs[0].token_ids)
    return found


def _groups(schema: KVCacheSchema) -> list[tuple[str, int | None, tuple[int, ...]]]:
    return [(group.kind, group.window, group.layers) for group in schema.groups]


@pytest.mark.parametrize(
    ("name", "dtype", "groups"),
    [
        ("gemma3", "float32", [("sliding", 64, (0, 1, 2, 3, 4)), ("full", None, (5,))]),
        ("gpt-oss", "float32", [("sliding", 64, (0,)), ("full", None, (1,))]),
        ("llama4", "float32", [("chunked", 128, (0, 1, 2)), ("full", None, (3,))]),
        ("deepseek-v3", "float32", []),
        # vLLM's CPU kernels for linear attention take bfloat16 only.
        ("qwen3-next", "bfloat16", [("state", None, (0, 1, 2)), ("full", None, (3,))]),
    ],
)
def test_a_model_of_this_form_runs(
    name: str, dtype: str, groups: Any, loop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(name, tmp_path / name, dtype)
    model = ModelDescriptor(model_id=name, model_type="llm", model_path=str(folder))
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # vLLM's variable, which the option must win over

    async def main() -> None:
        backend = VLLMBackend(model, dtype=dtype, **OPTIONS)
        await backend.start()
        try:
            assert await _generated(backend) == await _generated_by_vllm(backend)
            schema, capability = backend.get_kv_schema(), backend.get_capability()
            assert capability.kv_schema == schema
            assert _groups(schema) == groups
            assert schema.dtype == {"float32": "fp32", "bfloat16": "bf16"}[dtype]
            assert capability.kv_cache_capacity_gb == pytest.approx(OPTIONS["kv_cache_gb"], rel=0.05)
            if name == "deepseek-v3":
                assert (schema.num_heads, schema.head_dim, schema.value_dim) == (1, 512 + 64, 0)
                assert (schema.rope, schema.rope_dim) == ("interleaved", 64)
            else:
                assert (schema.num_heads, schema.head_dim, schema.value_dim) == (2, 32, None)
            assert (schema.state_bytes > 0) == (name == "qwen3-next")
            assert not {"kv_export", "kv_import", "prefill_decode"} & set(capability.features)
            with pytest.raises(UnsupportedFeature, match=r"several forms|differ in width"):
                await backend.prefill(PROMPT, request_id="apart")
        finally:
            await backend.close()

    loop(main())


def test_a_model_that_vllms_build_cannot_run_is_described_and_refused_by_cause(
    loop: Any, tmp_path: Path
) -> None:
    """Jamba: the CPU build has no kernel for Mamba's scan, and says so with the first request."""
    from sage_infer_vllm import compat
    from sage_infer_vllm.engine.engine import start_engine
    from sage_infer_vllm.models.kv_schema import describe_kv
    from sage_infer_vllm.platform import UPSTREAM
    from sage_infer_vllm.settings import VLLMSettings, engine_arguments

    folder = write_model("jamba", tmp_path / "jamba")
    model = ModelDescriptor(model_id="jamba", model_type="llm", model_path=str(folder))

    async def main() -> None:
        settings = VLLMSettings(dtype="float32", **OPTIONS)
        engine = await start_engine(
            lambda device: engine_arguments(settings, UPSTREAM, model, str(folder), device=device, runner="generate"),
            UPSTREAM, lambda device: {}, lambda stage, share: None, warm_up=False,
        )  # fmt: skip
        try:
            schema, reason = describe_kv(
                engine.kv, cache_dtype="auto", version=compat.version(), ranks=1, total_heads=2
            )
        finally:
            await engine.close()
        assert schema is not None, reason
        state, full = schema.groups
        assert (state.kind, state.layers, full) == ("state", (0,), KVGroup(layers=(1,)))
        # A convolution over three earlier inputs, and the scan's state: 256 channels each, in float32.
        assert state.state_bytes == 4 * 256 * (3 + 16)
        with pytest.raises(BackendUnavailable, match="selective_scan"):
            await VLLMBackend(model, dtype="float32", **OPTIONS).start()

    loop(main())

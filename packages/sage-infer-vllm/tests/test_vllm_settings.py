"""Options, sampling, prompts and texts: conversion to vLLM, and rejection before it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sage_infer.contracts import PromptLike, as_prompts
from sage_infer.errors import InvalidRequest, SchemaError, UnsupportedFeature
from sage_infer.schemas import GuidedDecoding, ModelDescriptor, Prompt, SamplingParams
from sage_infer_vllm.backend import VLLMBackend
from sage_infer_vllm.models.memory import engine_memory
from sage_infer_vllm.platform import UPSTREAM, Platform
from sage_infer_vllm.requests.prompts import TokenizedPrompt, tokenize
from sage_infer_vllm.requests.sampling import check_params, engine_params
from sage_infer_vllm.requests.texts import tokenize_pairs, tokenize_texts
from sage_infer_vllm.settings import (
    CPU_KV_GB,
    VLLMSettings,
    engine_arguments,
    engine_environment,
    visible_devices,
)
from vllm_toys import write_distribution

MODEL = ModelDescriptor(model_id="m", model_type="llm", model_path="/m", max_sequence_length=512)


def arguments(
    settings: VLLMSettings, *, platform: Platform = UPSTREAM, device: str = "cuda", connector_gap: str = ""
) -> dict[str, Any]:
    return engine_arguments(
        settings,
        platform,
        MODEL,
        "/folder",
        device=device,
        runner="generate",
        connector_gap=connector_gap,
    )


# --- options


@pytest.mark.parametrize(
    ("options", "weights", "kv"),
    [
        ({}, None, 16.0),
        ({"dtype": "float32"}, 32.0, 32.0),
        ({"kv_schema": {"preset": "fp8"}}, None, 8.0),
        ({"dtype": "bfloat16", "kv_schema": {"page_size": 16}}, None, 16.0),
    ],
)
def test_reported_memory_requirements(options: dict[str, Any], weights: float | None, kv: float) -> None:
    found = engine_memory(model=MODEL, options=options, hardware="cuda")
    assert (found.least_weight_bits, found.kv_bits, found.step_tokens) == (weights, kv, 8192)
    few = engine_memory(
        model=MODEL, options={"engine_options": {"max_num_batched_tokens": 512}}, hardware="cpu"
    )
    assert few.step_tokens == 512


def test_unset_options_are_left_to_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    found = arguments(VLLMSettings())
    assert found["model"] == "/folder"
    assert found["max_model_len"] == 512  # the model's own limit
    assert found["scheduling_policy"] == "priority"
    for name in (
        "max_num_seqs",
        "kv_cache_memory_bytes",
        "gpu_memory_utilization",
        "quantization",
        "enable_lora",
    ):
        assert name not in found
    assert arguments(VLLMSettings(), device="cpu")["kv_cache_memory_bytes"] == int(CPU_KV_GB * 2**30)


def test_vllms_own_variable_decides_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    assert "kv_cache_memory_bytes" not in arguments(VLLMSettings(), device="cpu")
    assert engine_environment(VLLMSettings(), UPSTREAM, MODEL, "cpu") == {}


def test_the_option_wins_over_vllms_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    explicit = VLLMSettings(kv_cache_gb=0.5)
    assert arguments(explicit, device="cpu")["kv_cache_memory_bytes"] == 2**29
    assert engine_environment(explicit, UPSTREAM, MODEL, "cpu") == {"VLLM_CPU_KVCACHE_SPACE": None}
    assert engine_environment(explicit, UPSTREAM, MODEL, "cuda") == {}


def test_threads_are_not_bound_to_the_cores_of_other_engines() -> None:
    two = VLLMSettings(threads=2)
    assert engine_environment(two, UPSTREAM, MODEL, "cpu") == {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "2",
    }
    assert engine_environment(two, UPSTREAM, MODEL, "cuda") == {}
    with pytest.raises(InvalidRequest, match="threads"):
        VLLMSettings(threads=0)


def test_an_engine_on_a_cpu_has_our_connector_unless_its_vllm_is_too_old() -> None:
    assert "kv_transfer_config" in arguments(VLLMSettings(), device="cpu")
    gap = "vLLM 0.18.1 has no hooks"
    assert "kv_transfer_config" not in arguments(VLLMSettings(), device="cpu", connector_gap=gap)
    with pytest.raises(UnsupportedFeature, match=r"kv_store is not supported: vLLM 0\.18\.1 has no hooks"):
        arguments(VLLMSettings(kv_store="paged"), device="cpu", connector_gap=gap)


def test_a_size_of_the_cache_that_the_vendors_build_ignores_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendor = Platform(
        backend_name="v", engine={"vllm": ""}, plugin_distributions={"toy-vllm-plugin": ""}, kv_bytes_since=">=0.23",
    )  # fmt: skip
    write_distribution(tmp_path / "new", "toy-vllm-plugin", "0.23.0.post1")
    write_distribution(tmp_path / "old", "toy-vllm-plugin", "0.18.0")
    with monkeypatch.context() as context:
        context.syspath_prepend(str(tmp_path / "new"))
        assert arguments(VLLMSettings(kv_cache_gb=1.0), platform=vendor)["kv_cache_memory_bytes"] == 2**30
    with monkeypatch.context() as context:
        context.syspath_prepend(str(tmp_path / "old"))
        assert "kv_cache_memory_bytes" not in arguments(VLLMSettings(), platform=vendor)
        with pytest.raises(
            UnsupportedFeature, match=r"no effect in toy-vllm-plugin 0\.18\.0; use memory_fraction"
        ):
            arguments(VLLMSettings(kv_cache_gb=1.0), platform=vendor)


def test_connectors_of_the_vendors_build() -> None:
    vendor = Platform(backend_name="v", engine={"vllm": ""}, kv_connectors=("Own",))

    def connecting(**config: str) -> VLLMSettings:
        return VLLMSettings(engine_options={"kv_transfer_config": config})

    assert arguments(connecting(kv_connector="Own"), platform=vendor)["kv_transfer_config"]
    assert arguments(connecting(kv_connector="Mine", kv_connector_module_path="mine"), platform=vendor)
    with pytest.raises(
        UnsupportedFeature, match="v does not support the KV connector 'Other'; supported: Own"
    ):
        arguments(connecting(kv_connector="Other"), platform=vendor)


def test_prefixes_are_cached_where_the_vendor_does() -> None:
    vendor = Platform(backend_name="v", engine={"vllm": ""}, prefix_caching=False)
    assert arguments(VLLMSettings())["enable_prefix_caching"] is True
    assert arguments(VLLMSettings(), platform=vendor)["enable_prefix_caching"] is False
    assert arguments(VLLMSettings(prefix_caching=True), platform=vendor)["enable_prefix_caching"] is True


def test_the_smaller_limit_wins_and_the_user_before_the_table() -> None:
    vendor = Platform(
        backend_name="v",
        engine={"vllm": ""},
        memory_fraction=0.8,
        engine_options={"block_size": 128, "seed": 1},
    )
    found = arguments(
        VLLMSettings(max_sequence_length=128, engine_options={"seed": 2}, adapters={"a": "/a", "b": "/b"}),
        platform=vendor,
    )
    assert found["max_model_len"] == 128
    assert found["gpu_memory_utilization"] == 0.8
    assert (found["block_size"], found["seed"]) == (128, 2)
    assert (found["enable_lora"], found["max_loras"], found["max_lora_rank"]) == (True, 2, 16)
    assert arguments(VLLMSettings(memory_fraction=0.5), platform=vendor)["gpu_memory_utilization"] == 0.5


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"dtype": "int8"}, "dtype"),
        ({"kv_cache_gb": 0}, "kv_cache_gb"),
        ({"memory_fraction": 1.5}, "memory_fraction"),
        ({"max_batch_size": 0}, "max_batch_size"),
        ({"engine_options": {"max_model_len": 9}}, "use max_sequence_length"),
        ({"engine_options": {"block_size": 9}}, "use kv_schema"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_loaded(option: dict[str, Any], message: str) -> None:
    with pytest.raises((InvalidRequest, SchemaError), match=message):
        VLLMBackend(MODEL, **option)


def test_devices_of_the_descriptor_become_the_platforms_variable() -> None:
    two = ModelDescriptor(model_id="m", model_type="llm", model_path="/m", device_ids=(1, 3))
    assert visible_devices(UPSTREAM, two, "cuda") == {"CUDA_VISIBLE_DEVICES": "1,3"}
    assert visible_devices(UPSTREAM, two, "cpu") == {}
    assert visible_devices(UPSTREAM, MODEL, "cuda") == {}
    with pytest.raises(InvalidRequest, match=r"device_ids \[1, 3\] cannot be selected on v"):
        visible_devices(Platform(backend_name="v", engine={"vllm": ""}), two, "npu")


# --- sampling

COMPAT = SimpleNamespace(
    SamplingParams=SimpleNamespace,
    StructuredOutputsParams=SimpleNamespace,
    RequestOutputKind=SimpleNamespace(DELTA="delta"),
)


@given(
    st.builds(
        SamplingParams,
        temperature=st.floats(0, 2),
        top_p=st.floats(0.01, 1),
        top_k=st.integers(0, 100),
        seed=st.none() | st.integers(0, 2**63 - 1),
        max_tokens=st.none() | st.integers(20, 50),
        min_tokens=st.integers(0, 20),
        stop=st.lists(st.text(min_size=1), max_size=3),
        stop_token_ids=st.lists(st.integers(0, 10), max_size=3),
        logprobs=st.none() | st.integers(0, 20),
    ),
    st.integers(1, 100),
)
def test_sampling_parameters_arrive_unchanged(params: SamplingParams, room: int) -> None:
    check_params(params, max_logprobs=20)
    found = engine_params(COMPAT, params, room=room)
    for name in ("temperature", "top_p", "top_k", "min_p", "seed", "n", "logprobs", "ignore_eos"):
        assert getattr(found, name) == getattr(params, name)
    assert (tuple(found.stop), tuple(found.stop_token_ids)) == (params.stop, params.stop_token_ids)
    assert found.max_tokens == min(params.max_tokens or room, room)
    assert 0 <= found.min_tokens <= found.max_tokens
    assert found.structured_outputs is None


@pytest.mark.parametrize(
    ("guided", "expected"),
    [
        ({"json_schema": {"type": "object"}}, {"json": '{"type": "object"}'}),
        ({"regex": "[a-z]"}, {"regex": "[a-z]"}),
        ({"grammar": "root ::= 'a'"}, {"grammar": "root ::= 'a'"}),
        ({"choice": ("a", "b")}, {"choice": ["a", "b"]}),
    ],
)
def test_constraints(guided: dict[str, Any], expected: dict[str, Any]) -> None:
    found = engine_params(COMPAT, SamplingParams(guided=GuidedDecoding(**guided)), room=9)
    assert vars(found.structured_outputs) == expected


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"temperature": 2.5}, r"up to 2, got 2\.5"),
        ({"temperature": 0.0, "n": 2}, "got n=2; set a temperature"),
        ({"logprobs": 30}, "up to 20 log probabilities per token, got logprobs=30"),
    ],
)
def test_unsupported_sampling_is_rejected_first(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedFeature, match=message):
        check_params(SamplingParams(**params), max_logprobs=20)


# --- prompts


class Tokenizer:
    """A token a character; 1 is the start token and 2 the end token, pairs have kinds."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [1] * add_special_tokens + [ord(letter) % 100 for letter in text]

    def __call__(
        self, text: str, pair: str | None = None, *, truncation: bool = False, max_length: int | None = None
    ) -> dict[str, list[int]]:
        first = [1, *self.encode(text, add_special_tokens=False)]
        if pair is None:
            kept = first[: max_length - 1] if truncation and max_length else first
            return {"input_ids": [*kept, 2]}
        second = [2, *self.encode(pair, add_special_tokens=False), 2]
        return {
            "input_ids": first + second,
            "token_type_ids": [0] * (len(first) + 1) + [1] * (len(second) - 1),
        }


def tokens(prompts: Any, limit: int = 10) -> list[TokenizedPrompt]:
    return asyncio.run(tokenize(Tokenizer(), as_prompts(prompts), vocab_size=100, limit=limit))


def test_every_form_of_a_prompt() -> None:
    assert tokens("ab") == [TokenizedPrompt([1, 97, 98], "ab")]
    assert tokens(Prompt(text="ab", add_special_tokens=False))[0].token_ids == [97, 98]
    assert tokens([3, 4]) == [TokenizedPrompt([3, 4], None)]
    assert [p.token_ids for p in tokens(["a", [5]])] == [[1, 97], [5]]
    long = tokens("a" * 5000, limit=6000)[0]
    assert len(long.token_ids) == 5001


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no prompts"),
        ([[5], [3, 120]], r"prompt 1 has token id 120; expected 0 to 99"),
        ("a" * 9, r"maximum context length is 10 tokens for prompt and output together, but prompt has 10"),
    ],
)
def test_prompts_that_are_refused(prompts: PromptLike, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        tokens(prompts)


# --- texts of the pooling runner


def test_texts_are_cut_or_refused() -> None:
    tokenizer = Tokenizer()
    (whole,) = tokenize_texts(tokenizer, ["abc"], limit=5, cut=False, vocab_size=100)
    assert whole.token_ids == [1, 97, 98, 99, 2]
    (cut,) = tokenize_texts(tokenizer, ["abcdefgh"], limit=5, cut=True, vocab_size=100)
    assert len(cut.token_ids) == 5
    assert cut.token_ids[-1] == 2  # the special tokens at both ends stay
    (ids,) = tokenize_texts(tokenizer, [[7] * 9], limit=5, cut=True, vocab_size=100)
    assert ids.token_ids == [7] * 5
    with pytest.raises(InvalidRequest, match="text 1 has 10 tokens, but the limit is 5"):
        tokenize_texts(tokenizer, ["a", "abcdefgh"], limit=5, cut=False, vocab_size=100)
    with pytest.raises(InvalidRequest, match="text 0 has token id 100"):
        tokenize_texts(tokenizer, [[100]], limit=5, cut=False, vocab_size=100)


def test_pairs_know_where_their_second_part_begins() -> None:
    pair, other = tokenize_pairs(Tokenizer(), "ab", ["c", "dd"], limit=8)
    assert pair.token_ids == [1, 97, 98, 2, 99, 2]
    assert (pair.second_from, other.second_from) == (4, 4)
    with pytest.raises(InvalidRequest, match="the query with document 0 has 6 tokens, but the limit is 5"):
        tokenize_pairs(Tokenizer(), "ab", ["c"], limit=5)

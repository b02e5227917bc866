"""The contract kit on real vLLM, with the sample models."""

from __future__ import annotations

import pytest
from sage_infer_testing import EmbeddingBackendContract, InferenceBackendContract
from sage_infer_testing.kits.generation.transfer import TransferTests
from vllm_toys import have_vllm

pytestmark = pytest.mark.vllm_newest

needs_vllm = pytest.mark.skipif(
    not have_vllm(), reason="vLLM is not installed in this environment; `hatch run vllm:test` has it"
)


@needs_vllm
class TestVLLM(InferenceBackendContract):
    backend_name = "vllm"
    model = "smollm2-135m"
    timeout_s = 900.0
    prompt_token_ids = (504, 3575, 282, 4649, 314)
    max_queue = 24
    tool_answer = (
        '<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call>', "clock", {"zone": "UTC"},
    )  # fmt: skip
    options = {  # noqa: RUF012 - as the kit declares it
        "max_queue": 24, "max_batch_size": 8, "kv_cache_gb": 0.5, "eager": True, "dtype": "float32",
        "tool_parser": "hermes",
        # The engine tries its largest step when it starts, and the kit starts several.
        "engine_options": {"max_num_batched_tokens": 256},
    }  # fmt: skip


@needs_vllm
class TestVLLMWithoutPrefixCaching(TransferTests):
    """Prefill and decode apart where every page of the prompt is copied."""

    backend_name = "vllm"
    model = "smollm2-135m"
    timeout_s = 900.0
    options = {**TestVLLM.options, "prefix_caching": False}  # noqa: RUF012 - as the kit declares it


@needs_vllm
class TestVLLMEmbedding(EmbeddingBackendContract):
    backend_name = "vllm-embedding"
    model = "minilm"
    timeout_s = 900.0
    normalized = True
    options = {"eager": True, "dtype": "float32", "max_batch_size": 16}  # noqa: RUF012 - as the kit declares it

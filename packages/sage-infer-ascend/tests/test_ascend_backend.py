"""Ascend as a platform of vLLM, up to the point where vLLM would be called, which is not here."""

from collections.abc import Mapping
from typing import ClassVar

import pytest
from sage_infer.errors import CapabilityMismatch
from sage_infer.schemas import ModelDescriptor
from sage_infer_testing import VLLMPlatformContract


class TestPlatform(VLLMPlatformContract):
    module = "sage_infer_ascend.plugin"
    stack: ClassVar[Mapping[str, str]] = {
        "vllm": "0.23.0",
        "vllm-ascend": "0.23.0.post1",
        "torch-npu": "2.10.0",
    }
    device = "npu"
    environment: ClassVar[Mapping[str, str]] = {"ASCEND_RT_VISIBLE_DEVICES": "2,3"}


def test_quantized_kv_comes_with_the_checkpoint_and_is_no_option() -> None:
    backend = pytest.importorskip("sage_infer_ascend.backend", reason="the backend is the extra [vllm]")
    model = ModelDescriptor(model_id="tiny", model_type="llm", model_path="/nowhere")
    with pytest.raises(CapabilityMismatch, match="ascend"):
        backend.AscendBackend(model, kv_schema={"preset": "int8"})

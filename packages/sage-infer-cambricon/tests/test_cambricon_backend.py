"""Cambricon as a platform of vLLM, up to the point where vLLM would be called, which is not here."""

from collections.abc import Mapping
from typing import ClassVar

from sage_infer_testing import VLLMPlatformContract


class TestPlatform(VLLMPlatformContract):
    module = "sage_infer_cambricon.plugin"
    stack: ClassVar[Mapping[str, str]] = {
        "vllm": "0.13.0",
        "vllm-mlu": "0.13.0+mlu1.2.pt29",
        "torch-mlu": "1.28.0",
    }
    device = "mlu"
    environment: ClassVar[Mapping[str, str]] = {"MLU_VISIBLE_DEVICES": "2,3"}

"""Kunlunxin as a platform of vLLM, up to the point where vLLM would be called, which is not here."""

from collections.abc import Mapping
from typing import ClassVar

from sage_infer_testing import VLLMPlatformContract


class TestPlatform(VLLMPlatformContract):
    module = "sage_infer_kunlunxin.plugin"
    stack: ClassVar[Mapping[str, str]] = {"vllm": "0.15.1", "vllm-kunlun": "0.15.1"}
    device = "cuda"
    environment: ClassVar[Mapping[str, str]] = {"XPU_VISIBLE_DEVICES": "2,3"}
